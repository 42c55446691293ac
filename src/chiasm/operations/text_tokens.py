"""How many tokens a text has: by the model's own tokenizer where it is at hand, else estimated.

At hand are the tokenizers of checkpoints that run here, and OpenAI's where `tiktoken` is installed
and has its vocabulary in its cache: nothing is ever fetched to count. For all others the kinds of
characters and of their runs in a text are counted and weighed, with weights that were fitted to
each family's published tokenizer (`text_rates.toml`; how, and how far off they are, is told in
docs/explanation/plan.md).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chiasm.errors import ChiasmError

if TYPE_CHECKING:
    from chiasm.models.chat import ChatTokenizer

_QUICK = 4_000  # characters that are counted whole on the way of a request
_WHOLE = 200_000  # and anywhere else
_SLICES = 20
_SAMPLE = 2_000  # characters of them together, on the way of a request
_REMEMBERED = 2_048  # texts
_LONGEST_REMEMBERED = 65_536  # characters
_SAMPLED_ERROR = 0.07
_OPENAI_VOCABULARY = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
_OPENAI_DIGEST = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


@dataclass(frozen=True, slots=True)
class TextCount:
    """error: nine of ten texts are within this share of the truth; 0 is exact."""

    tokens: int
    error: float = 0.0

    def __add__(self, other: TextCount) -> TextCount:
        tokens = self.tokens + other.tokens
        if not tokens:
            return self
        off = self.tokens * self.error + other.tokens * other.error
        return TextCount(tokens, off / tokens)


@dataclass(frozen=True, slots=True)
class Frame:
    """Tokens that a chat format puts around texts.

    message: around each. system, assistant: around one of theirs, None for as many. start: once,
    with the beginning of the answer. unprompted: where there is no system message, of one that the
    format brings itself.
    """

    message: float = 4
    start: float = 3
    unprompted: float = 0
    system: float | None = None
    assistant: float | None = None

    def tokens(self, roles: Sequence[str]) -> int:
        """Around messages of these roles."""
        total = self.start
        for role in roles:
            own = {"system": self.system, "assistant": self.assistant}.get(role)
            total += self.message if own is None else own
        return round(total if "system" in roles else total + self.unprompted)


class TextCounter:
    """Counts for one model. Safe in several threads.

    name: what counts, for a person. exact: whether it is the model's own tokenizer.
    """

    def __init__(
        self,
        name: str,
        count: Callable[[str], float],
        frame: Frame,
        *,
        error: Callable[[str], float] | None = None,
    ) -> None:
        """error: of a text, as `TextCount` has it; None where the tokenizer is the model's own."""
        self.name = name
        self.exact = error is None
        self._count = count
        self._error = error
        self._frame = frame
        self._known: dict[tuple[str, bool], TextCount] = {}

    def count(self, text: str, *, quick: bool = False) -> TextCount:
        """quick: of a long text only slices are looked at; for the way of a request."""
        if not text:
            return TextCount(0)
        key = (text, quick)
        known = self._known.get(key)
        if known is None:
            known = self._counted(text, quick)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            if len(text) <= _LONGEST_REMEMBERED:
                self._known[key] = known
        return known

    def _counted(self, text: str, quick: bool) -> TextCount:
        if len(text) <= (_QUICK if quick else _WHOLE):
            error = self._error(text) if self._error is not None else 0.0
            return TextCount(max(1, round(self._count(text))), error)
        length = (_SAMPLE if quick else _WHOLE) // _SLICES
        places = [at * (len(text) - length) // (_SLICES - 1) for at in range(_SLICES)]
        sample = "".join(text[at : at + length] for at in places)
        tokens = self._count(sample) * len(text) / len(sample)
        error = self._error(sample) if self._error is not None else 0.0
        return TextCount(max(1, round(tokens)), error + _SAMPLED_ERROR)

    def conversation(
        self, messages: Iterable[tuple[str, str]], *, quick: bool = False
    ) -> TextCount:
        """messages: (role, text). With what the chat format puts around them."""
        roles, total = [], TextCount(0)
        for role, text in messages:
            roles.append(role)
            total = total + self.count(text, quick=quick)
        framed = total.tokens + self._frame.tokens(roles)
        off = total.tokens * total.error
        return TextCount(framed, off / framed if framed else 0.0)


# Which counter ----------------------------------------------------------------------------------


def counter_for(model: str) -> TextCounter:
    """For a model by its name, with or without its provider's or its author's."""
    name = model.lower().replace(".", "-")
    names = (name, name.rpartition("/")[2])
    for key, entry in _rates().items():
        if any(fnmatchcase(name, pattern) for name in names for pattern in entry["models"]):
            return _family_counter(key)
    raise AssertionError("the last entry of text_rates.toml takes every name")


@cache
def _family_counter(key: str) -> TextCounter:
    entry = _rates()[key]
    frame = Frame(entry["message"], entry["start"], entry.get("unprompted", 0), entry.get("system"))
    if key == "openai" and (encode := _openai()) is not None:
        return TextCounter("tiktoken o200k_base", lambda text: len(encode(text)), frame)
    like = _rates()[entry.get("like", key)]
    scale = entry.get("scale", 1.0)
    weights = tuple(scale * like["weights"][name] for name in FEATURES)
    familiar, foreign = entry["error"], entry["error_elsewhere"]

    def error(text: str) -> float:
        start = text[:400]
        plain = start.isascii() or sum(map(str.isascii, start)) > 0.97 * len(start)
        return float(familiar if plain else foreign)

    return TextCounter(
        f"estimate, by {entry['fitted']}",
        lambda text: sum(map(mul, features(text), weights)),
        frame,
        error=error,
    )


@cache
def _rates() -> dict[str, Any]:
    path = files("chiasm.operations") / "text_rates.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _openai() -> Callable[[str], list[int]] | None:
    """OpenAI's tokenizer, if it can be had without a network."""
    folder = os.environ.get(
        "TIKTOKEN_CACHE_DIR",
        os.environ.get("DATA_GYM_CACHE_DIR", str(Path(tempfile.gettempdir()) / "data-gym-cache")),
    )
    name = hashlib.sha1(_OPENAI_VOCABULARY.encode()).hexdigest()  # as tiktoken names it
    try:
        kept = (Path(folder) / name).read_bytes()
        # What is damaged tiktoken would fetch anew, and whoever counts would wait for it.
        if not folder or hashlib.sha256(kept).hexdigest() != _OPENAI_DIGEST:
            return None
        import tiktoken
    except (OSError, ImportError):
        return None
    encoding = tiktoken.get_encoding("o200k_base")
    return encoding.encode_ordinary


def own_counter(tokenizer: ChatTokenizer, name: str) -> TextCounter:
    """By the tokenizer and the chat template of a checkpoint that is here."""
    word = len(tokenizer.encode("a"))

    def framed(*roles: str) -> int:
        """Tokens around messages of these roles, and of the answer's beginning."""
        plain = [{"role": role, "content": "a"} for role in roles]
        return len(tokenizer.encode(tokenizer.render(plain))) - word * len(roles)

    one = framed("user")
    turns = framed("user", "assistant", "user") - one
    # Templates may refuse two messages in a row, or a system's: then they have no other way.
    user = _if_allowed(lambda: framed("user", "user") - one, turns / 2)
    # What a system message adds; a format that brings one of its own leaves that away then.
    system = _if_allowed(lambda: framed("system", "user") - one, user)
    frame = Frame(user, one - user, system=system, assistant=turns - user)
    return TextCounter(name, lambda text: len(tokenizer.encode(text)), frame)


def _if_allowed(count: Callable[[], float], otherwise: float) -> float:
    try:
        return count()
    except ChiasmError:
        return otherwise


# The estimate -----------------------------------------------------------------------------------

_KINDS: dict[str, tuple[tuple[int, int], ...]] = {
    "space": ((32, 32),),
    "newline": ((10, 10), (13, 13)),
    "control": ((0, 9), (11, 12), (14, 31), (127, 127)),
    "digit": ((48, 57),),
    "lower": ((97, 122),),
    "upper": ((65, 90),),
    "mark": (
        (33, 47), (58, 64), (91, 96), (123, 126), (0xA0, 0xBF), (0x2000, 0x206F),
        (0x3000, 0x303F), (0xFF00, 0xFFEF),
    ),
    "accented": ((0xC0, 0x24F), (0x1E00, 0x1EFF)),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F),),
    "arabic_hebrew": ((0x590, 0x8FF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFF)),
    "indic": ((0x900, 0xDFF),),
    "south_east_asian": ((0xE00, 0x109F), (0x1780, 0x17FF)),
    "kana": ((0x3040, 0x30FF),),
    "hangul": ((0xAC00, 0xD7AF), (0x1100, 0x11FF)),
    "han": ((0x3400, 0x9FFF), (0xF900, 0xFAFF)),
    "other": (),
}  # fmt: skip
_NAMES = tuple(_KINDS)
FEATURES = (
    *_NAMES, "words", "mark_runs", "digit_runs", "space_runs", "newline_runs", "cyrillic_words",
    "english",
)  # fmt: skip
"""What is counted in a text: characters by kind, runs of some kinds, and words of English."""

_WORDS = ("lower", "upper", "accented", "greek", "cyrillic", "arabic_hebrew", "indic",
          "south_east_asian", "hangul")  # fmt: skip
_LATIN = tuple(map(_NAMES.index, ("lower", "upper", "accented")))
_LETTERS = tuple(map(_NAMES.index, (*_WORDS, "kana", "han")))
_ENGLISH = (" the ", " of ", " and ", " to ", " is ", " a ", " in ")
_ENGLISH_SHARE = 0.12  # of the words of English prose


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    kinds = np.full(0x110000, _NAMES.index("other"), dtype=np.uint8)
    for number, ranges in enumerate(_KINDS.values()):
        for first, last in ranges:
            kinds[first : last + 1] = number
    in_words = np.zeros(len(_NAMES), dtype=np.bool_)
    in_words[[_NAMES.index(name) for name in _WORDS]] = True
    return kinds, in_words


def features(text: str) -> list[float]:
    """[FEATURES] of a text."""
    return _features_of_ascii(text) if text.isascii() else _features(text)


def _features(text: str) -> list[float]:
    table, in_words = _tables()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = table[codes]
    counts = np.bincount(kinds, minlength=len(_NAMES)).tolist()
    words = _runs(in_words[kinds])
    runs = [_runs(kinds == _NAMES.index(name)) if counts[_NAMES.index(name)] else 0
            for name in ("mark", "digit", "space", "newline", "cyrillic")]  # fmt: skip
    latin, letters = (sum(counts[at] for at in some) for some in (_LATIN, _LETTERS))
    english = _english(text, words) if latin > letters / 2 else 0.0
    return [*counts, words, *runs, english]


def _runs(where: NDArray[np.bool_]) -> int:
    """How often something begins."""
    return int(np.count_nonzero(where[1:] & ~where[:-1])) + bool(where[0])


def _features_of_ascii(text: str) -> list[float]:
    """The same of a text that has nothing else: with texts' own methods, several times sooner."""
    kinds = text.translate(_ASCII)
    counts = [kinds.count(each) for each in _ASCII_KINDS]
    counts += [0] * (len(_NAMES) - len(counts))
    words = len(kinds.translate(_ONLY_WORDS).split())
    runs = [len(kinds.translate(only).split()) for only in _ONLY]
    return [*counts, words, *runs, 0, _english(text, words)]


def _english(text: str, words: int) -> float:
    """How many of the words are English, by how often its smallest ones stand among them."""
    common = sum(map(text.count, _ENGLISH))
    return min(1.0, common / max(words, 1) / _ENGLISH_SHARE) * words


# A letter for each kind that ASCII has, and tables that leave some and make spaces of the others.
_ASCII_KINDS = "sncdlum"  # as the first of _NAMES
_ASCII = {
    code: letter
    for letter, ranges in zip(_ASCII_KINDS, _KINDS.values(), strict=False)
    for first, last in ranges
    for code in range(first, min(last, 127) + 1)
}


def _leaving(kinds: str) -> dict[int, str]:
    return {ord(each): " " for each in _ASCII_KINDS if each not in kinds}


_ONLY_WORDS = _leaving("lu")
_ONLY = tuple(map(_leaving, "mdsn"))
