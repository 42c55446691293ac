"""An answer's text while its tokens arrive: whole characters, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from chiasm.models.chat import ChatTokenizer

_HALF = "\ufffd"
_WINDOW = 6  # tokens before the new ones that are decoded again, for the spaces between words


class AnswerText:
    """Takes tokens, gives text. stop: the stop text, once one has appeared.

    A character may be spelt by several tokens, and a tokenizer may write a word differently when
    it stands first; so new tokens are decoded with a few before them, and an unfinished character
    waits. What could be the beginning of a stop text waits as well.
    """

    def __init__(self, tokenizer: ChatTokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._done = 0  # tokens whose text is out or held
        self._held = ""
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether one has."""
        return self.stop is not None

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        start = max(0, self._done - _WINDOW)
        before = self._tokenizer.decode(self._ids[start : self._done])
        now = self._tokenizer.decode(self._ids[start:])
        if now.endswith(_HALF) and len(self._ids) - self._done < _WINDOW:
            return ""
        self._done = len(self._ids)
        return self._release(now[len(before) :], last=False)

    def finish(self) -> str:
        """The rest: there are no more tokens."""
        start = max(0, self._done - _WINDOW)
        before = self._tokenizer.decode(self._ids[start : self._done])
        rest = self._tokenizer.decode(self._ids[start:])[len(before) :]
        self._done = len(self._ids)
        return self._release(rest, last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        # The first to be complete counts, however the text is cut into tokens.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            _, start, self.stop = min(found)
            self._held = ""
            return held[:start]
        keep = 0 if last else max((_overlap(held, stop) for stop in self._stops), default=0)
        cut = len(held) - keep
        self._held = held[cut:]
        return held[:cut]


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
