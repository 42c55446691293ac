"""Addresses are read once, strictly, and hosts are allowed by name."""

from __future__ import annotations

import pytest

from chiasm.errors import ConfigurationError
from chiasm.media.address import host_for, may_connect, read_address, read_hosts

PLAIN = {
    "https://example.com": ("https", "example.com", 443, "/"),
    "https://Example.COM/A%20b.png?x=1&y=/..": (
        "https",
        "example.com",
        443,
        "/A%20b.png?x=1&y=/..",
    ),
    "HTTP://example.com:8080/a": ("http", "example.com", 8080, "/a"),
    "https://example.com?x": ("https", "example.com", 443, "/?x"),
    "https://example.com/a#b": ("https", "example.com", 443, "/a"),
    "https://xn--bcher-kva.example/a": ("https", "xn--bcher-kva.example", 443, "/a"),
    "http://127.0.0.1:9/a": ("http", "127.0.0.1", 9, "/a"),
    "https://example.com/@b": ("https", "example.com", 443, "/@b"),
}

DOUBTFUL = [
    "https://example.com\\@evil.example/",
    "https:\\\\example.com/",
    "https:/\\example.com/",
    "https://example.com/a\\b",
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com:80@evil.example/",
    "https://example.com:/a",
    "https://example.com:0/",
    "https://example.com:99999/",
    "https://example.com:8o/",
    "https://exa mple.com/",
    "https://example.com/a b",
    "https://example.com/a\nb",
    "https://example.com/\r\nHost: evil.example",
    "https://example.com/\0",
    "https://exam\tple.com/",
    " https://example.com/",
    "https://example.com/ ",
    "https://[::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[::ffff:127.0.0.1]/",
    "https://bücher.example/",
    "https://ⓔxample.com/",
    "https://example。com/",
    "https://example.com/bü",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.0.1./",
    "https://1.2.3.4.5/",
    "https://256.1.1.1/",
    "https://example.com./",
    "https://example..com/",
    "https://.example.com/",
    "https://-example.com/",
    "https://%65xample.com/",
    "https:///a",
    "https://",
    "https:example.com",
    "//example.com/a",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "data:image/png;base64,",
    "javascript:alert(1)",
    f"https://example.com/{'a' * 9000}",
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_addresses_are_read(text: str) -> None:
    address = read_address(text)
    assert address is not None
    assert (address.scheme, address.host, address.port, address.target) == PLAIN[text]
    assert read_address(str(address)) == address


@pytest.mark.parametrize("text", DOUBTFUL)
def test_doubtful_addresses_are_not(text: str) -> None:
    assert read_address(text) is None


# Hosts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "address", "admitted"),
    [
        ("", "https://example.com/", False),
        ("example.com", "https://example.com/", True),
        ("example.com", "https://EXAMPLE.com/", True),
        ("example.com", "https://www.example.com/", False),
        ("example.com", "https://example.com.evil.example/", False),
        ("example.com", "https://notexample.com/", False),
        ("example.com", "http://example.com/", False),
        ("example.com", "https://example.com:8443/", False),
        ("example.com:8443", "https://example.com:8443/", True),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://evilexample.com/", False),
        ("http://example.com", "http://example.com/", True),
        ("http://example.com", "https://example.com/", False),
        ("a.example, b.example", "https://b.example/", True),
        ("http://127.0.0.1:8000 private", "http://127.0.0.1:8000/", True),
        ("http://127.0.0.1:8000 private", "http://127.0.0.1:8001/", False),
    ],
)
def test_a_host_admits_its_own_addresses(hosts: str, address: str, admitted: bool) -> None:
    read = read_address(address)
    assert read is not None
    assert (host_for(read, read_hosts(hosts)) is not None) == admitted


@pytest.mark.parametrize(
    "text",
    [
        "*", "*.com", "https://*", "a.example/path", "a.example/", "user@a.example", "[::1]",
        "a.*.example", "ftp://a.example", "a.example public", "a.example private public",
        "*.0.0.1", "a b", "a.example;b.example", "bücher.example",
    ],
)  # fmt: skip
def test_what_is_no_host_is_a_mistake_in_the_settings(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"fetch\.hosts"):
        read_hosts(text)


# Numeric addresses ------------------------------------------------------------------------------


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2001:4860:4860::8888"]
PRIVATE = ["127.0.0.1", "127.8.8.8", "::1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "fd12::1"]
PRIVATE += ["100.64.0.1"]
NEVER = [
    "169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1",
    "ff02::1", "240.0.0.1", "198.18.0.1", "192.0.2.1", "203.0.113.1", "192.88.99.1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:1::1", "fec0::1", "3fff::1",
    "2001:db8::1", "fd00:ec2::254", "100.100.100.200", "no number", "", "127.1", "0177.0.0.1",
]  # fmt: skip


def test_public_numbers_may_be_connected_to() -> None:
    for number in PUBLIC:
        assert may_connect(number, private=False), number
        assert may_connect(number, private=True), number


def test_private_numbers_only_where_that_was_said() -> None:
    for number in PRIVATE:
        assert not may_connect(number, private=False), number
        assert may_connect(number, private=True), number


def test_others_never() -> None:
    for number in NEVER:
        assert not may_connect(number, private=False), number
        assert not may_connect(number, private=True), number
