"""A server whose embedding takes a second, for the tests that stop it: `slow_server.py FOLDER`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chiasm.server import run
from tests.server.conftest import ColourEmbedder, make_settings


class SlowEmbedder(ColourEmbedder):
    """Takes its time over texts."""

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [n, 64], after a second."""
        time.sleep(1)
        return super().embed_texts(texts)


def announce(url: str) -> None:
    """One line for whoever started us."""
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(
        make_settings(Path(sys.argv[1]), port=0),
        embedder=SlowEmbedder(),
        announce=announce,
    )
