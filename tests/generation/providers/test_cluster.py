"""Which server gets a request: by load, by picture, and by who is there."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import ExitStack

import pytest

from chiasm.errors import GeneratorUnreachable
from chiasm.generation.providers.cluster import PATIENCE, Cluster, Facts, Server

URLS = ("http://a:8000", "http://b:8000", "http://c:8000", "http://d:8000")
PICTURES = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(2000)]


class Probe:
    """Says what a test has put in. away: urls that do not answer."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.loads: dict[str, int] = {}
        self.contexts: dict[str, int] = {}

    def facts(self, url: str) -> Facts:
        self._knock(url)
        return Facts("model", "/model", self.contexts.get(url, 4096))

    def load(self, url: str) -> int | None:
        self._knock(url)
        return self.loads.get(url)

    def _knock(self, url: str) -> None:
        if url in self.away:
            raise GeneratorUnreachable(f"{url} cannot be reached.")


def cluster_of(*urls: str, probe: Probe | None = None) -> Cluster:
    cluster = Cluster(urls, probe or Probe())
    cluster.connect()
    return cluster


def first(cluster: Cluster, picture: str | None = None) -> str:
    return next(cluster.order(picture)).url


def test_the_idle_take_turns() -> None:
    cluster = cluster_of(*URLS)
    assert Counter(first(cluster) for _ in range(40)) == dict.fromkeys(URLS, 10)


def test_the_least_busy_is_taken() -> None:
    cluster = cluster_of(*URLS)
    with ExitStack() as under_way:
        taken = []
        for _ in range(8):
            server = next(cluster.order())
            under_way.enter_context(cluster.asking(server))
            taken.append(server.url)
        assert Counter(taken) == dict.fromkeys(URLS, 2)
    assert all(server.load == 0 for server in cluster.servers)


def test_requests_of_others_count() -> None:
    probe = Probe()
    probe.loads = {URLS[0]: 5, URLS[1]: 1, URLS[2]: 9}
    cluster = cluster_of(*URLS[:3], probe=probe)
    assert {first(cluster) for _ in range(10)} == {URLS[1]}


def test_requests_of_ours_are_not_counted_twice() -> None:
    probe = Probe()
    cluster = cluster_of(*URLS[:2], probe=probe)
    one = cluster.servers[0]
    with cluster.asking(one), cluster.asking(one):
        probe.loads = {one.url: 3}
        cluster._look(one)
        assert (one.under_way, one.others, one.load) == (2, 1, 3)


def test_pictures_are_spread_and_stay() -> None:
    cluster = cluster_of(*URLS)
    homes = [first(cluster, picture) for picture in PICTURES]
    assert homes == [first(cluster, picture) for picture in PICTURES]
    counts = Counter(homes)
    # Of a fair draw of 2000 among four, fewer than 1 in 10⁶ are so far from 500.
    assert all(400 < counts[url] < 600 for url in URLS)


def test_a_server_that_goes_moves_its_own_pictures_only() -> None:
    cluster = cluster_of(*URLS)
    before = {picture: first(cluster, picture) for picture in PICTURES}
    cluster.failed(cluster.servers[1], GeneratorUnreachable("gone"))
    after = {picture: first(cluster, picture) for picture in PICTURES}
    moved = {picture for picture in PICTURES if before[picture] != after[picture]}
    assert moved == {picture for picture in PICTURES if before[picture] == URLS[1]}
    assert len({after[picture] for picture in moved}) == 3
    cluster._look(cluster.servers[1])
    assert before == {picture: first(cluster, picture) for picture in PICTURES}


def test_the_order_of_addresses_does_not_matter() -> None:
    one, other = cluster_of(*URLS), cluster_of(*reversed(URLS))
    assert all(first(one, each) == first(other, each) for each in PICTURES[:200])


def test_a_picture_is_not_waited_for_too_long() -> None:
    cluster = cluster_of(*URLS)
    home = next(cluster.order(PICTURES[0]))
    with ExitStack() as under_way:
        for _ in range(PATIENCE):
            under_way.enter_context(cluster.asking(home))
        assert first(cluster, PICTURES[0]) == home.url
        under_way.enter_context(cluster.asking(home))
        assert first(cluster, PICTURES[0]) != home.url
    assert first(cluster, PICTURES[0]) == home.url


def test_every_usable_server_comes_once() -> None:
    cluster = cluster_of(*URLS)
    cluster.failed(cluster.servers[2], GeneratorUnreachable("gone"))
    for picture in (None, PICTURES[0]):
        order = [server.url for server in cluster.order(picture)]
        assert sorted(order) == sorted(set(URLS) - {URLS[2]})


def test_some_may_be_away_at_first_but_not_all() -> None:
    probe = Probe()
    probe.away = {URLS[0]}
    cluster = cluster_of(*URLS[:2], probe=probe)
    assert [server.url for server in cluster.order()] == [URLS[1]]
    probe.away = set()
    cluster._look(cluster.servers[0])
    assert len(list(cluster.order())) == 2
    probe.away = set(URLS)
    with pytest.raises(GeneratorUnreachable, match="http://a:8000 cannot be reached"):
        cluster_of(*URLS[:2], probe=probe)


def test_the_smallest_context_counts() -> None:
    probe = Probe()
    probe.contexts = {URLS[0]: 8192, URLS[1]: 2048}
    cluster = cluster_of(*URLS[:2], probe=probe)
    assert cluster.context == 2048
    cluster.failed(cluster.servers[1], GeneratorUnreachable("gone"))
    assert cluster.context == 8192
    cluster.failed(cluster.servers[0], GeneratorUnreachable("gone"))
    assert cluster.context == 2048


def test_a_failure_is_counted_off() -> None:
    cluster = cluster_of(*URLS[:1])
    server: Server = cluster.servers[0]
    with pytest.raises(ValueError, match="x"), cluster.asking(server):
        raise ValueError("x")
    assert server.under_way == 0
