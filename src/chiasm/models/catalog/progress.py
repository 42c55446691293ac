"""How the catalogue says how far a download is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One file at a time: `start`, any number of `advance`, and `finish` when it is whole.

    A download that fails is not finished; the next `start` begins another file.
    """

    def start(self, label: str, total: int | None) -> None:
        """A file of `total` bytes (None: not known) begins."""
        ...

    def advance(self, n: int) -> None:
        """`n` more bytes are there; negative when a download has to begin again."""
        ...

    def finish(self) -> None:
        """The file is whole."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, label: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, n: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
