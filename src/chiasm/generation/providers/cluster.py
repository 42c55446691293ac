"""Which of several servers answers a request.

Each is looked at every other second; one that does not answer gets nothing until it does again.
Among the others the one with the fewest requests is taken, but a conversation about a picture goes
where its picture was before, whose keys and values that server may still hold: rendezvous hashing
(Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
Networking, 1998) of the first picture's digest, so that a server that comes or goes moves no
conversation but its own.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from chiasm.errors import ChiasmError

log = logging.getLogger("chiasm.generation")

CHECK_SECONDS = 2.0
PATIENCE = 4
"""So many requests more than the least busy server may one have that knows the picture."""


@dataclass(frozen=True)
class Facts:
    """What a server says of the model that it serves.

    root: where it was loaded from. context: tokens of prompt and answer. sees: it reads pictures;
    None where the server does not tell.
    """

    model: str
    root: str
    context: int
    sees: bool | None = None


class Probe(Protocol):
    """How a server is looked at. Both raise ChiasmError if it cannot answer."""

    def facts(self, url: str) -> Facts:
        """Ask once, when it is new or has come back."""
        ...

    def load(self, url: str) -> int | None:
        """Requests that it has running and waiting, from everyone; None if it does not tell."""
        ...


@dataclass(eq=False)
class Server:
    """One server as it was seen last.

    under_way: requests of ours. others: requests of everyone else. trouble: why it is not used;
    None while it is.
    """

    url: str
    under_way: int = 0
    others: int = 0
    facts: Facts | None = None
    trouble: ChiasmError | None = None

    @property
    def usable(self) -> bool:
        """Whether it may be asked."""
        return self.facts is not None and self.trouble is None

    @property
    def load(self) -> int:
        """Requests that it works on or has waiting, as far as is known."""
        return self.under_way + self.others


class Cluster:
    """Servers of one model. Safe to use from several threads."""

    def __init__(self, urls: Sequence[str], probe: Probe, *, every: float = CHECK_SECONDS) -> None:
        """every: seconds between two looks at a server."""
        self.servers = tuple(Server(url) for url in urls)
        self._probe = probe
        self._every = every
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self._stop = threading.Event()
        self._watchers = [
            threading.Thread(target=self._watch, args=(server,), name="watching", daemon=True)
            for server in self.servers
        ]

    def connect(self) -> Facts:
        """Look at every server once. Raises the first one's ChiasmError if none can be used."""
        for server in self.servers:
            self._look(server)
        known = self.facts
        troubles = [server.trouble for server in self.servers if server.trouble is not None]
        if known is None or len(troubles) == len(self.servers):
            raise troubles[0]
        for trouble in troubles:
            log.warning("%s", trouble)
        return known

    def watch(self) -> None:
        """Go on looking, in the background."""
        for watcher in self._watchers:
            watcher.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    @property
    def facts(self) -> Facts | None:
        """What the first server says that is there, or was."""
        known = [server for server in self.servers if server.facts is not None]
        known.sort(key=lambda server: not server.usable)
        return known[0].facts if known else None

    @property
    def context(self) -> int:
        """Tokens that every server takes that is there, or was."""
        known = [server for server in self.servers if server.facts is not None]
        there = [server for server in known if server.usable] or known
        return min(server.facts.context for server in there if server.facts is not None)

    def order(self, picture: str | None = None) -> Iterator[Server]:
        """The usable servers, the one to ask first; the next ones where that fails.

        picture: digest of the conversation's first picture, if it has any.
        """
        tried: set[str] = set()
        while True:
            with self._lock:
                left = [s for s in self.servers if s.usable and s.url not in tried]
                if not left:
                    return
                chosen = self._chosen(left, picture)
            tried.add(chosen.url)
            yield chosen

    def _chosen(self, servers: Sequence[Server], picture: str | None) -> Server:
        least = min(server.load for server in servers)
        if picture is not None:
            known = max(servers, key=lambda server: _weight(server.url, picture))
            if known.load <= least + PATIENCE:
                return known
        idle = [server for server in servers if server.load == least]
        return idle[next(self._turn) % len(idle)]

    @contextmanager
    def asking(self, server: Server) -> Iterator[None]:
        """Inside, the server has one request of ours more."""
        with self._lock:
            server.under_way += 1
        try:
            yield
        finally:
            with self._lock:
                server.under_way -= 1

    def failed(self, server: Server, trouble: ChiasmError) -> None:
        """It did not answer as it should: it gets nothing until it has been looked at again."""
        with self._lock:
            known, server.trouble = server.trouble, trouble
        if known is None and server.facts is not None:
            log.warning("%s is not used for now: %s", server.url, trouble)

    # Looking ---------------------------------------------------------------------------------

    def _watch(self, server: Server) -> None:
        while not self._stop.wait(self._every):
            self._look(server)

    def _look(self, server: Server) -> None:
        try:
            if not server.usable:
                self._welcome(server, self._probe.facts(server.url))
            running = self._probe.load(server.url)
        except ChiasmError as error:
            self.failed(server, error)
            return
        with self._lock:
            server.others = max(0, (running or 0) - server.under_way)

    def _welcome(self, server: Server, facts: Facts) -> None:
        with self._lock:
            back, server.facts, server.trouble = server.trouble is not None, facts, None
        if back:
            log.info("%s answers again", server.url)


def _weight(url: str, picture: str) -> bytes:
    return hashlib.sha256(f"{url} {picture}".encode()).digest()
