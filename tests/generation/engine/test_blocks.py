"""Blocks against a plain model of them: never given twice, never something else than was read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chiasm.generation.engine.blocks import Blocks, first_key, next_key
from chiasm.generation.engine.prompt import Unit
from chiasm.media import Image

UNITS: list[Unit] = [1, 2, ("a" * 64, 0), ("a" * 64, 1), ("b" * 64, 0)]


class BlocksMachine(RuleBasedStateMachine):
    """Users with lists of blocks, and what has been written into each block."""

    @initialize(count=st.integers(1, 6))
    def begin(self, count: int) -> None:
        self.blocks = Blocks(count)
        self.users: list[list[int]] = []
        # What was written behind what; a block that is not here holds nothing that counts.
        self.content: dict[int, tuple[bytes, tuple[Unit, ...]]] = {}
        self.learnt: list[tuple[bytes, tuple[Unit, ...]]] = []

    @property
    def used(self) -> set[int]:
        return {block for user in self.users for block in user}

    @precondition(lambda self: self.blocks.available)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        block = self.blocks.take()
        assert block in range(self.blocks.count)
        assert block not in self.used
        self.content.pop(block, None)
        if self.users and data.draw(st.booleans()):
            data.draw(st.sampled_from(self.users)).append(block)
        else:
            self.users.append([block])

    @precondition(lambda self: not self.blocks.available)
    @rule()
    def take_what_is_not_there(self) -> None:
        with pytest.raises(IndexError):
            self.blocks.take()

    @precondition(lambda self: self.users)
    @rule(data=st.data(), units=st.lists(st.sampled_from(UNITS), min_size=1, max_size=3))
    def learn(self, data: st.DataObject, units: list[Unit]) -> None:
        mine = [block for block in sorted(self.used) if block not in self.content]
        if not mine:
            return
        block = data.draw(st.sampled_from(mine))
        keys = [first_key("one"), first_key("two"), *(next_key(*each) for each in self.learnt)]
        before = data.draw(st.sampled_from(keys))
        self.content[block] = before, tuple(units)
        assert self.blocks.learn(block, before, units) == next_key(before, units)
        if (before, tuple(units)) not in self.learnt:
            self.learnt.append((before, tuple(units)))

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(self.users))
        self.users = [each for each in self.users if each is not user]
        self.blocks.release(user)

    @precondition(lambda self: self.learnt)
    @rule(data=st.data())
    def find_and_share(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from(self.learnt))
        block = self.blocks.find(next_key(*wanted))
        if block is not None:
            assert self.content[block] == wanted
            self.blocks.share(block)
            self.users.append([block])
        else:
            assert not any(self.content.get(block) == wanted for block in self.used)

    @precondition(lambda self: self.learnt)
    @rule(data=st.data(), units=st.lists(st.sampled_from(UNITS), max_size=3))
    def find_similar(self, data: st.DataObject, units: list[Unit]) -> None:
        before, _ = data.draw(st.sampled_from(self.learnt))
        found = self.blocks.find_similar(before, units)
        if found is None:
            return
        block, shared = found
        assert shared > 0
        assert self.content[block][0] == before
        assert list(self.content[block][1][:shared]) == units[:shared]

    @rule()
    def forget(self) -> None:
        self.blocks.forget()
        # Blocks in use stay as they are, but nobody finds them; they may be learnt anew.
        self.content.clear()
        self.learnt.clear()

    @invariant()
    def accounts(self) -> None:
        if hasattr(self, "blocks"):
            assert self.blocks.available == self.blocks.count - len(self.used)
            assert self.blocks.known <= self.blocks.count


BlocksMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBlocks = BlocksMachine.TestCase


def test_what_was_left_longest_ago_is_given_away_first() -> None:
    blocks = Blocks(3)
    taken = [blocks.take() for _ in range(3)]
    keys = [blocks.learn(block, first_key(""), [n]) for n, block in enumerate(taken)]
    for block in (taken[1], taken[0], taken[2]):
        blocks.release([block])
    found = blocks.find(keys[1])
    assert found == taken[1]
    blocks.share(found)  # used again, and left again: now it is the newest
    blocks.release([found])
    assert [blocks.take() for _ in range(3)] == [taken[0], taken[2], taken[1]]


def test_the_end_of_a_text_is_given_away_before_its_beginning() -> None:
    blocks = Blocks(2)
    text = [blocks.take(), blocks.take()]
    key = blocks.learn(text[0], first_key(""), [1])
    blocks.learn(text[1], key, [2])
    blocks.release(text)
    assert blocks.take() == text[1]
    assert blocks.find(key) == text[0]


def different() -> dict[str, Any]:
    """Beginnings that are not the same, pair by pair."""
    pixels = np.arange(48, dtype=np.uint8)
    wide, tall = (Image(pixels.reshape(shape), shape[:2]) for shape in ((2, 8, 3), (8, 2, 3)))
    brown = Image(np.full((4, 4, 3), 7, np.uint8), (4, 4))
    return {
        "tenants": [("one", [1, 2]), ("two", [1, 2]), ("", [1, 2])],
        "order": [("", [1, 2]), ("", [2, 1])],
        "digits": [("", [1, 23]), ("", [12, 3]), ("", [123])],
        "length": [("", [1]), ("", [1, 1])],
        "a picture's place": [("", [("d" * 64, 1)]), ("", [("d" * 64, 11)])],
        "a token and a picture": [("", [5]), ("", [("5", 0)])],
        "bytes of another shape": [("", [(i.digest, 0)]) for i in (wide, tall, brown)],
        "digest and place": [("", [("ab1", 1)]), ("", [("ab", 11)])],
    }


@pytest.mark.parametrize("beginnings", different().values(), ids=different())
def test_keys_tell_apart_what_is_different(beginnings: list[Any]) -> None:
    keys = {next_key(first_key(scope), units) for scope, units in beginnings}
    assert len(keys) == len(beginnings)
    assert {len(key) for key in keys} == {32}


def test_what_was_read_before_is_part_of_a_key() -> None:
    first, other = (next_key(first_key(""), [n]) for n in (1, 2))
    assert next_key(first, [3]) != next_key(other, [3])
    assert next_key(first, [3]) == next_key(next_key(first_key(""), [1]), [3])
