from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from chiasm import collector


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()
    gc.unfreeze()


class Node:
    """May be in a cycle with itself."""

    itself: Node


def cycle() -> weakref.ref[Node]:
    node = Node()
    node.itself = node
    return weakref.ref(node)


def make_many_objects() -> None:
    """Enough for several automatic collections of every generation."""
    for _ in range(20):
        [[] for _ in range(20_000)]


def test_cycles_are_kept_inside_and_collected_afterwards() -> None:
    with collector.paused():
        dead = cycle()
        make_many_objects()
        assert dead() is not None
    make_many_objects()
    gc.collect()
    assert dead() is None


def test_the_last_of_several_threads_turns_it_on_again() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with collector.paused():
            inside.set()
            leave.wait(60)

    other = threading.Thread(target=hold)
    with collector.paused():
        other.start()
        assert inside.wait(60)
    assert not gc.isenabled()
    leave.set()
    other.join()
    assert gc.isenabled()


def test_an_error_turns_it_on_again() -> None:
    with pytest.raises(ZeroDivisionError), collector.paused():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_who_works_without_a_collector_goes_on_without_it() -> None:
    gc.disable()
    with collector.paused():
        pass
    assert not gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_only_what_came_of_many_imports_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector.paused():
        pass
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(collector, "_MANY_MODULES", -1)
    with collector.paused():
        kept = [[]]
    assert gc.get_freeze_count() > 0
    assert not any(found is kept for found in gc.get_objects())
