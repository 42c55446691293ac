"""Conversations about pictures, as they lie in files.

Two shapes are read, in a JSON array or in JSON Lines, and told apart record by record: LLaVA's
(`conversations` of `from` and `value`, with `<image>` where a picture stands; Liu et al. 2023,
arXiv 2304.08485) and OpenAI's (`messages` of `role` and `content`, with `image_url` parts). A
table of captions is read too: each caption becomes the answer to a request for one.

A file is indexed once and read record by record, so that it may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from chiasm.errors import ConfigurationError, ImageError, UnusableData
from chiasm.media.limits import Limits
from chiasm.media.source import decode_data_url, is_data_url
from chiasm.training import storage, tables
from chiasm.training.conversations_recipe import ConversationsRecipe
from chiasm.training.samples import Damage, Sample

Role = Literal["system", "user", "assistant"]
Picture = bytes | Path

MARK = "<image>"  # in LLaVA's files, whatever the checkpoint's own mark is
_LINES = (".jsonl", ".ndjson")
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. parts: texts, and None where the conversation's next picture stands.

    learned: whether an answer is to be learned from; others are context.
    """

    role: Role
    parts: tuple[str | None, ...]
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, the last of which is an answer, and the pictures in the order of their places.

    key: its name: the file and the record's number in it, from 1.
    """

    key: str
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]


class ConversationSource(Protocol):
    """Conversations by number."""

    @property
    def units(self) -> int: ...
    @property
    def identity(self) -> str:
        """What must be equal for a number to mean the same."""
        ...

    def read(self, unit: int, chance: np.random.Generator) -> Conversation | Damage:
        """The conversation, or why there is none. chance: for what differs between epochs."""
        ...


def open_conversations(recipe: ConversationsRecipe) -> ConversationSource:
    """Look at what `recipe.source` names. Raises UnusableData, ConfigurationError."""
    named = (recipe.source,) if isinstance(recipe.source, str) else recipe.source
    if not named or not all(named):
        raise ConfigurationError("No data is named.", hint="Set data.source.", param="data.source")
    sources = [_open(name, recipe) for name in named]
    return sources[0] if len(sources) == 1 else _Several(sources)


def _open(name: str, recipe: ConversationsRecipe) -> ConversationSource:
    if not storage.is_address(name) and Path(name).is_dir():
        inside = tables.table_in(Path(name))
        if inside is None:
            return _Captions(tables.read_pairs(Path(name), recipe.columns), name, recipe)
        name = str(inside)
    if name.endswith((*_LINES, ".json")):
        file = ConversationFile(name, recipe.root, recipe.limits, recipe.storage_options)
        if file.holds_conversations:
            return file
    if not name.endswith(tables.SUFFIXES):
        raise UnusableData(
            f"{name} holds no conversations.",
            hint="Known are .json and .jsonl files of conversations or messages, and tables of "
            f"captions ({', '.join(tables.SUFFIXES)}).",
            param="data.source",
        )
    table = tables.read_table(name, recipe.root, recipe.columns, recipe.storage_options)
    return _Captions(table, name, recipe)


# Files of conversations -------------------------------------------------------------------------


class ConversationFile:
    """A `.json` file with an array of records, or a file of JSON Lines.

    root: the folder or address that pictures' names are relative to; the file's own if empty.
    """

    def __init__(
        self, name: str, root: str, limits: Limits, options: Mapping[str, Any] | None = None
    ) -> None:
        """Index the file. Raises UnusableData if it is missing or no such file."""
        self.name = name
        self._options = options or {}
        self._limits = limits
        parent = name.rpartition("/")[0] if storage.is_address(name) else str(Path(name).parent)
        self._root = root or parent
        self._data = _mapped(name, self._options)
        lines = name.endswith(_LINES)
        # [records, 2]: where each begins and ends, in bytes
        self._spans = np.array(
            list(_lines(self._data) if lines else _elements(self._data, name)), dtype=np.int64
        ).reshape(-1, 2)
        if not len(self._spans):
            raise UnusableData(f"{name} holds no records.", param="data.source")

    @property
    def holds_conversations(self) -> bool:
        """Whether the first record that can be read is a conversation."""
        for number in range(len(self._spans)):
            record = self._record(number)
            if isinstance(record, dict):
                return "conversations" in record or "messages" in record
        return False

    @property
    def units(self) -> int:
        return len(self._spans)

    @property
    def identity(self) -> str:
        hasher = hashlib.sha256(self._spans.tobytes())
        hasher.update(self._data[: 1 << 20])
        return hasher.hexdigest()

    def read(self, unit: int, chance: np.random.Generator) -> Conversation | Damage:
        """Record number `unit` + 1."""
        key = f"{Path(self.name).name} record {unit + 1}"
        record = self._record(unit)
        try:
            if not isinstance(record, dict):
                raise _Unfit("unreadable JSON", "")
            if "conversations" in record:
                messages, names = _from_llava(record)
            else:
                messages, names = _from_openai(record)
            _check(messages, len(names))
            pictures = tuple(
                self._picture(picture, field) for field, picture in _numbered(names, record)
            )
        except _Unfit as unfit:
            field = f", {unfit.field}" if unfit.field else ""
            return Damage(0, unfit.reason, f"{key}{field}")
        return Conversation(key, _until_last_answer(messages), pictures)

    def _record(self, unit: int) -> Any:
        first, end = self._spans[unit].tolist()
        try:
            return json.loads(self._data[first:end])
        except (ValueError, RecursionError):
            return None

    def _picture(self, picture: str, field: str) -> Picture:
        try:
            if is_data_url(picture):
                return decode_data_url(picture, self._limits, field)
            place = tables.located(self._root, picture.removeprefix("file://"))
            if storage.is_address(place):
                return storage.read_bytes(place, self._limits.max_bytes, self._options)
        except (ImageError, OSError):
            raise _Unfit("picture cannot be opened", field) from None
        return Path(place)


def _mapped(name: str, options: Mapping[str, Any]) -> Any:
    """The file's bytes: of a local one, without reading them."""
    try:
        if storage.is_address(name):
            return storage.read_bytes(name, 1 << 40, options)
        with Path(name).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        return b""
    except (FileNotFoundError, IsADirectoryError):
        raise UnusableData(f"There is no file {name}.", param="data.source") from None
    except OSError:
        raise UnusableData(f"{name} could not be read.", param="data.source") from None


def _lines(data: Any) -> Iterator[tuple[int, int]]:
    """Where lines that are not blank begin and end."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if data[start:end].strip():
            yield start, end
        start = end + 1


def _elements(data: Any, name: str) -> Iterator[tuple[int, int]]:
    """Where the elements of a JSON array begin and end."""
    # A letter a byte, so that places in the text are places in the file. JSON's own signs are
    # ASCII, and UTF-8 uses no ASCII byte for anything else.
    text = data[:].decode("latin-1")
    decoder = json.JSONDecoder()
    place = _past_space(text, 3 if text.startswith("ï»¿") else 0)
    if text[place : place + 1] != "[":
        raise UnusableData(
            f"{name} is not a JSON array of records.",
            hint="Write [ … ] around the records, or name it .jsonl if each line is one.",
            param="data.source",
        )
    place, number = _past_space(text, place + 1), 0
    while text[place : place + 1] != "]":
        number += 1
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            raise _broken(name, number) from None
        yield place, end
        place = _past_space(text, end)
        if text[place : place + 1] == ",":
            place = _past_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise _broken(name, number + 1)


def _past_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place


def _broken(name: str, number: int) -> UnusableData:
    return UnusableData(
        f"{name}: record {number} is not valid JSON, and what follows cannot be found.",
        hint="Mend the file, or write JSON Lines, where a bad line is passed over.",
        param="data.source",
    )


# Records ----------------------------------------------------------------------------------------


class _Unfit(Exception):
    """A record cannot be used. reason: a few words, to be counted. field: where in the record."""

    def __init__(self, reason: str, field: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field


def _from_llava(record: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    """Messages, and the names of their pictures in order."""
    stated = record.get("image") if record.get("image") is not None else record.get("images")
    names = [] if stated is None else [stated] if isinstance(stated, str) else stated
    if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
        raise _Unfit("no picture named", "image" if "image" in record else "images")
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        raise _Unfit("no turns", "conversations")
    messages = []
    for number, turn in enumerate(turns):
        field = f"conversations[{number}]"
        if not isinstance(turn, dict):
            raise _Unfit("turn is no object", field)
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise _Unfit("unknown role", f"{field}.from")
        value = turn.get("value")
        if not isinstance(value, str):
            raise _Unfit("turn without text", f"{field}.value")
        pieces: list[str | None] = []
        for place, text in enumerate(value.split(MARK)):
            pieces += ([None] if place else []) + ([text.strip()] if text.strip() else [])
        messages.append(Message(role, tuple(pieces)))
    if names and not any(None in message.parts for message in messages):
        # A file whose pictures have no place means them before the first question.
        for number, message in enumerate(messages):
            if message.role == "user":
                first = Message("user", (*[None] * len(names), *message.parts))
                messages[number] = first
                break
    return messages, names


def _from_openai(record: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    turns = record.get("messages")
    if not isinstance(turns, list) or not turns:
        raise _Unfit("no turns", "messages")
    messages: list[Message] = []
    names: list[str] = []
    for number, turn in enumerate(turns):
        field = f"messages[{number}]"
        if not isinstance(turn, dict):
            raise _Unfit("turn is no object", field)
        role = _ROLES.get(str(turn.get("role")))
        if role is None:
            raise _Unfit("unknown role", f"{field}.role")
        content = turn.get("content")
        pieces: list[str | None] = []
        if isinstance(content, str):
            pieces = [content] if content else []
        elif isinstance(content, list):
            for place, part in enumerate(content):
                pieces.append(_part(part, f"{field}.content[{place}]", names))
        else:
            raise _Unfit("turn without text", f"{field}.content")
        # OpenAI's way to keep an answer as context (fine-tuning guide).
        messages.append(Message(role, tuple(pieces), learned=turn.get("weight", 1) != 0))
    return messages, names


def _part(part: Any, field: str, names: list[str]) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image_url", "image"):
        address = part.get(kind, part.get("url"))
        if isinstance(address, dict):
            address = address.get("url")
        if not isinstance(address, str) or not address:
            raise _Unfit("no picture named", f"{field}.{kind}")
        names.append(address)
        return None
    raise _Unfit("unknown kind of part", f"{field}.type")


def _check(messages: Sequence[Message], pictures: int) -> None:
    """What any model needs; whether roles are in order is for its template to say."""
    places = 0
    for number, message in enumerate(messages):
        here = message.parts.count(None)
        places += here
        if here and message.role != "user":
            raise _Unfit("picture outside a question", f"turn {number + 1}")
        if message.role == "assistant" and not any(part and part.strip() for part in message.parts):
            raise _Unfit("empty answer", f"turn {number + 1}")
    if places != pictures:
        raise _Unfit("pictures and their places differ in number", f"{places} of {pictures}")
    if not any(message.role == "assistant" and message.learned for message in messages):
        raise _Unfit("no answer", "")


def _until_last_answer(messages: list[Message]) -> tuple[Message, ...]:
    last = max(n for n, each in enumerate(messages) if each.role == "assistant" and each.learned)
    return tuple(messages[: last + 1])


def _numbered(names: list[str], record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for number, name in enumerate(names):
        yield f"picture {number + 1}" + ("" if is_data_url(name) else f" ({name})"), name


# Captions ---------------------------------------------------------------------------------------


class _Captions:
    """A table of captions as conversations of one question, drawn from `recipe.prompts`."""

    def __init__(self, table: tables.Table, name: str, recipe: ConversationsRecipe) -> None:
        if not table.units:
            raise UnusableData(f"There are no samples in {name}.", param="data.source")
        if not recipe.prompts:
            raise ConfigurationError(
                f"{name} is a table of captions, and data.prompts asks no question.",
                hint='Set data.prompts = [ "Describe the picture." ].',
                param="data.prompts",
            )
        self._table = table
        self._name = Path(name).name
        self._prompts = recipe.prompts

    @property
    def units(self) -> int:
        return self._table.units

    @property
    def identity(self) -> str:
        return self._table.identity

    def read(self, unit: int, chance: np.random.Generator) -> Conversation | Damage:
        """Row number `unit` + 1."""
        found = next(iter(self._table.read(unit)))
        if not isinstance(found, Sample):
            return found
        prompt = self._prompts[int(chance.integers(len(self._prompts)))]
        caption = found.captions[int(chance.integers(len(found.captions)))]
        question = Message("user", (None, prompt) if prompt else (None,))
        turns = (question, Message("assistant", (caption,)))
        return Conversation(f"{self._name} {found.key}", turns, (found.picture,))


class _Several:
    """Sources one after another; shuffling mixes them."""

    def __init__(self, sources: Sequence[ConversationSource]) -> None:
        self._sources = sources
        self._ends = np.cumsum([source.units for source in sources])

    @property
    def units(self) -> int:
        return int(self._ends[-1])

    @property
    def identity(self) -> str:
        return "\n".join(source.identity for source in self._sources)

    def read(self, unit: int, chance: np.random.Generator) -> Conversation | Damage:
        """Of the source whose numbers hold `unit`."""
        number = int(np.searchsorted(self._ends, unit, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._sources[number].read(unit - before, chance)
