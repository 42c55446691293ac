"""A server whose embedding waits for a file, for the tests that stop it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chiasm.server import run
from tests.server.conftest import ColourEmbedder, make_settings

FOLDER = Path(sys.argv[1])
LONGEST_WAIT_SECONDS = 60


class WaitingEmbedder(ColourEmbedder):
    """Says when it begins with texts, and ends when there is a file `go`."""

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [n, 64]."""
        say("embedding")
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        while not (FOLDER / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return super().embed_texts(texts)


def say(line: str) -> None:
    """A line for whoever started us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(make_settings(FOLDER, port=0), embedder=WaitingEmbedder(), announce=say)
