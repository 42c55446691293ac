"""Where pictures may be fetched from: addresses on the web, read once and strictly.

What is read here is what is asked for; no second parser ever sees the text, so none can disagree
(CVE-2026-24779). Whatever browsers repair (backslashes, line ends, letters beyond ASCII, numbers
for hosts) is refused instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from chiasm.errors import ConfigurationError

_LONGEST = 8192
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][\x21-\x7e]*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PORTS = {"https": 443, "http": 80}

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# What Python takes for public, or took in one of its versions, and is not: ways to wrap an IPv4
# address (RFC 4291 2.5.5, RFC 6052, RFC 8215, RFC 3056, RFC 4380, RFC 7526), addresses of a site,
# of segments, and for documentation (RFC 3879, RFC 9602, RFC 9637).
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16",
        "192.88.99.0/24", "fec0::/10", "5f00::/16", "3fff::/20",
    )
]  # fmt: skip
# Within ranges that are otherwise private: what a cloud's machines learn their secrets from.
_SECRETS = [ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")]
_CARRIER = ipaddress.ip_network("100.64.0.0/10")


@dataclass(frozen=True)
class Address:
    """An address that was read. target: path and query, as they are sent; no fragment."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The host, with its port where that is not the scheme's own: what Host says."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def read_address(text: str) -> Address | None:
    """An `http:` or `https:` address, or None for anything that leaves room for doubt."""
    if len(text) > _LONGEST:
        return None
    match = _ADDRESS.fullmatch(text.partition("#")[0])
    if match is None or "\\" in text or not text.isascii() or not text.isprintable():
        return None
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    if not _is_host(host) or not 0 < port < 65_536:
        return None
    target = match["target"] or "/"
    return Address(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _is_host(host: str) -> bool:
    labels = host.split(".")
    if labels[-1][:1].isdigit():  # a number in some reading: then in the plainest alone
        try:
            return str(ipaddress.IPv4Address(host)) == host
        except ValueError:
            return False
    return all(_LABEL.fullmatch(label) for label in labels)


@dataclass(frozen=True)
class AllowedHost:
    """A host that the operator allows. wildcard: every name below `host`, and not itself.

    private: it may lie in a private network or on this machine.
    """

    scheme: str
    host: str
    port: int
    wildcard: bool = False
    private: bool = False

    def admits(self, address: Address) -> bool:
        """Whether pictures may be fetched from there."""
        if (address.scheme, address.port) != (self.scheme, self.port):
            return False
        if self.wildcard:
            return address.host.endswith(f".{self.host}")
        return address.host == self.host


def read_hosts(text: str) -> tuple[AllowedHost, ...]:
    """Hosts as the setting `fetch.hosts` lists them, separated by commas.

    Each is a name, `*.` and a name for all names below it, or an address; `https` is meant unless
    `http://` stands before it; behind it may stand a port, and the word `private` for one in a
    private network. Raises ConfigurationError.
    """
    return tuple(_read_host(entry.strip()) for entry in text.split(",") if entry.strip())


def _read_host(entry: str) -> AllowedHost:
    name, _, option = entry.partition(" ")
    scheme, separator, rest = name.partition("://")
    if not separator:
        scheme, rest = "https", name
    wildcard = rest.startswith("*.")
    address = read_address(f"{scheme}://{rest.removeprefix('*.')}")
    if (
        address is None
        or address.target != "/"
        or rest.endswith("/")
        or option.strip() not in ("", "private")
        or (wildcard and ("." not in address.host or address.host[-1].isdigit()))
    ):
        raise ConfigurationError(
            f"fetch.hosts: {entry!r} is no host.",
            hint="Write images.example.com, *.example.com, http://intranet.example:8080 private.",
            param="fetch.hosts",
        )
    private = option.strip() == "private"
    return AllowedHost(address.scheme, address.host, address.port, wildcard, private)


def host_for(address: Address, hosts: Iterable[AllowedHost]) -> AllowedHost | None:
    """The allowed host that admits an address, a private one before others; or None."""
    found = [host for host in hosts if host.admits(address)]
    return max(found, key=lambda host: host.private, default=None)


def may_connect(text: str, *, private: bool) -> bool:
    """Whether a numeric address that a name has resolved to may be connected to.

    private: private networks and this machine itself may, but never link-local addresses, where
        clouds tell secrets.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if getattr(address, "scope_id", None) or address in _SECRETS:
        return False
    if private and (address.is_loopback or _is_private_network(address)):
        return True
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _is_private_network(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return address in ipaddress.ip_network("fc00::/7")
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    return address in _CARRIER or any(address in ipaddress.ip_network(n) for n in private)
