"""Many callers, one embedder."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from chiasm.errors import NotReady
from chiasm.server.batching import BatchingEmbedder
from tests.server.conftest import ColourEmbedder


class Gate(ColourEmbedder):
    """Waits at every batch until it is let through, and writes down what was in it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = threading.Event()

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.batches.append(list(texts))
        self.open.wait(20)
        if "bad" in texts:
            raise ValueError("a text that cannot be embedded")
        return super().embed_texts(texts)


def test_what_waits_together_is_embedded_together_and_each_gets_its_own() -> None:
    gate = Gate()
    batching = BatchingEmbedder(gate, batch_size=4)  # 16 texts
    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(batching.embed_texts, ["first"])
        time.sleep(0.1)
        others = [threads.submit(batching.embed_texts, [f"{n} a", f"{n} b"]) for n in range(8)]
        time.sleep(0.2)
        gate.open.set()
        np.testing.assert_array_equal(first.result(), ColourEmbedder().embed_texts(["first"]))
        for n, other in enumerate(others):
            expected = ColourEmbedder().embed_texts([f"{n} a", f"{n} b"])
            np.testing.assert_array_equal(other.result(), expected)
    assert [len(batch) for batch in gate.batches] == [1, 16]
    batching.close()


def test_a_long_call_does_not_hold_back_a_short_one() -> None:
    gate = Gate()
    gate.open.set()
    batching = BatchingEmbedder(gate, batch_size=1)  # 4 texts
    gate.open.clear()
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(batching.embed_texts, [f"long {n}" for n in range(40)])
        time.sleep(0.1)
        short = threads.submit(batching.embed_texts, ["short"])
        time.sleep(0.1)
        gate.open.set()
        assert short.result().shape == (1, 64)
        assert long.result().shape == (40, 64)
    place = next(n for n, batch in enumerate(gate.batches) if "short" in batch)
    assert place == 1  # the very next batch, of eleven
    np.testing.assert_array_equal(
        long.result(), ColourEmbedder().embed_texts([f"long {n}" for n in range(40)])
    )
    batching.close()


def test_a_bad_input_harms_its_own_caller_alone() -> None:
    gate = Gate()
    batching = BatchingEmbedder(gate, batch_size=4)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(batching.embed_texts, ["first"])
        time.sleep(0.1)
        good = [threads.submit(batching.embed_texts, [f"good {n}"]) for n in range(3)]
        bad = threads.submit(batching.embed_texts, ["x", "bad", *["y"] * 30])
        time.sleep(0.2)
        gate.open.set()
        with pytest.raises(ValueError, match="cannot be embedded"):
            bad.result()
        assert first.result().shape == (1, 64)
        for n, one in enumerate(good):
            np.testing.assert_array_equal(one.result(), ColourEmbedder().embed_texts([f"good {n}"]))
        # And the thread is still there for the next one.
        assert batching.embed_texts(["after"]).shape == (1, 64)
    batching.close()


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    gate = Gate()
    batching = BatchingEmbedder(gate)
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(batching.embed_texts, [f"{n}"]) for n in range(3)]
        time.sleep(0.1)
        closing = threads.submit(batching.close)
        time.sleep(0.1)
        with pytest.raises(NotReady):
            batching.embed_texts(["late"])
        gate.open.set()
        closing.result(10)
        assert [one.result().shape for one in waiting] == [(1, 64)] * 3


def test_nothing_gives_nothing() -> None:
    batching = BatchingEmbedder(ColourEmbedder())
    assert batching.embed_texts([]).shape == (0, 64)
    assert batching.embed_images([]).shape == (0, 64)
    batching.close()
