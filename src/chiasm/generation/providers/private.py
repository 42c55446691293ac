"""What of a provider's own words is not for callers: this server's key, and where it asks.

Where a provider refuses what a caller has asked for, the caller is told why in its words. Some
quote the key that they were sent, whole or as `sk-…abcd`, and proxies name the machine behind them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlsplit

from chiasm.errors import InvalidRequest

REMOVED = "[removed]"

_KEY_HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_RUN = 8  # letters of a key in a row that are no chance
_SHORTEST = 4  # a key of fewer letters is a word like others
_END = 2  # letters of a key beside a mask that tell of it
_WORD = re.compile(r"[^\s\"'`<>(){}\[\],;]+")
_MASK = re.compile(r"\*{2,}|…|\.{3,}|•{2,}|\bx{4,}|X{4,}")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'`<>]+", re.IGNORECASE)
_NUMBERS = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w]|\.\d)|\[[0-9a-f:]{2,}\](?::\d+)?",
    re.IGNORECASE,
)


class Private:
    """Keys and addresses of one provider, and texts without them."""

    def __init__(self, headers: Mapping[str, str], addresses: Iterable[str]) -> None:
        """headers: as they are sent, a key among them. addresses: base URLs."""
        sent = {name.lower(): value for name, value in headers.items()}
        keys = [sent[name].rpartition(" ")[2] for name in _KEY_HEADERS if sent.get(name)]
        self._keys = [key for key in dict.fromkeys(keys) if len(key) >= _SHORTEST]
        self._hosts = {host for each in addresses if (host := _host(each))}
        named = [re.escape(host) for host in sorted(self._hosts, key=len, reverse=True)]
        # A name without a dot may be a word like others, unless a port follows.
        self._named = [
            re.compile(
                rf"(?<![\w.-]){name}{'(?::[0-9]+)?' if '.' in name else ':[0-9]+'}(?![\w-]|\.\w)",
                re.IGNORECASE,
            )
            for name in named
        ]

    def hide(self, error: InvalidRequest) -> None:
        """Change the error's words, and the argument that it names."""
        error.message = self.without(error.message)
        error.args = (error.message,)
        error.param = error.param and self.without(error.param)

    def without(self, text: str) -> str:
        """The text with `[removed]` for each key and address."""
        for key in self._keys:
            for form in dict.fromkeys((key, quote(key, safe=""))):
                text = text.replace(form, REMOVED)
        text = _URL.sub(lambda found: REMOVED if self._is_ours(found[0]) else found[0], text)
        for name in self._named:
            text = name.sub(REMOVED, text)
        text = _NUMBERS.sub(lambda found: REMOVED if _is_inside(found[0]) else found[0], text)
        if not self._keys:
            return text
        return _WORD.sub(lambda found: REMOVED if self._tells(found[0]) else found[0], text)

    def _is_ours(self, url: str) -> bool:
        host = _host(url)
        return host in self._hosts or _is_inside(host)

    def _tells(self, word: str) -> bool:
        """Whether a word is a part of a key, or a key with its middle masked."""
        for key in self._keys:
            if any(key[at : at + _RUN] in word for at in range(len(key) - _RUN + 1)):
                return True
            mask = _MASK.search(word)
            if mask is not None:
                before, after = word[: mask.start()], word[mask.end() :].rstrip(".!?:")
                begins = len(before) > _END and key.startswith(before)
                ends = len(after) >= _END and key.endswith(after)
                if begins or ends:
                    return True
        return False


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_inside(address: str) -> bool:
    """Whether it is the number of a machine that outsiders cannot reach."""
    for text in (address, address.rpartition(":")[0]):
        try:
            return not ipaddress.ip_address(text.strip("[]")).is_global
        except ValueError:
            continue
    return False
