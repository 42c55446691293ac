"""A language model's tokenizer and its chat template, as the checkpoint's own files say.

The template is Jinja, written by whoever published the checkpoint, so it runs in a sandbox that
can neither reach Python's insides nor change what it is given. Its conventions (the names that it
may use, the whitespace rules) are those of Hugging Face's chat templates.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Backend

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.json_files import read_json_if_there

CHAT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "image_token")
_LONGEST_PROMPT = 4_000_000  # characters: a template that loops would fill the memory
_BREAK = "\u200b"  # a space of no width


class ChatTokenizer:
    """Conversations to token ids and back. Safe to use from several threads.

    eos_ids: tokens that end an answer. bos_id: the token that begins every text, if there is one.
    template: the Jinja source; None where the checkpoint has none (a base model).
    """

    def __init__(
        self,
        backend: Backend,
        *,
        template: str | None = None,
        eos_ids: frozenset[int] = frozenset(),
        tokens: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Wrap a backend.

        tokens: `bos_token` and its like, for the template. folder: where the files lie, for `save`.
        """
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.template = template
        self.eos_ids = eos_ids
        self.tokens = dict(tokens or {})
        self._folder = folder

    @classmethod
    def from_folder(cls, folder: Path | str) -> ChatTokenizer:
        """Read `tokenizer.json` and what lies beside it. Raises UnsupportedCheckpoint."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedCheckpoint(
                f"{folder} holds no tokenizer.json.",
                hint="Open the checkpoint with transformers once and save its tokenizer there.",
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception:  # the binding raises bare Exception
            raise UnsupportedCheckpoint(f"{path} could not be read as a tokenizer.") from None
        entries = {
            **read_json_if_there(folder / "special_tokens_map.json"),
            **read_json_if_there(folder / _CONFIG),
        }
        tokens = {name: text for name in _NAMED_TOKENS if (text := _token_text(entries.get(name)))}
        return cls(
            backend,
            template=_template(folder, entries),
            eos_ids=frozenset(_eos_ids(folder, backend, tokens)),
            tokens=tokens,
            folder=folder,
        )

    # Text and ids ----------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Nothing is added; special tokens that stand in it are recognised."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; half a character at an end comes out as U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    def bytes_of(self, token: int) -> bytes:
        """What one token spells, which may be a part of a character."""
        spelling = self.backend.id_to_token(token)
        if spelling is None:
            return b""
        if spelling in self._added:
            return spelling.encode()
        if self._byte_level:
            return bytes(_BYTES.get(letter, ord("?")) for letter in spelling)
        if len(spelling) == 6 and spelling.startswith("<0x"):
            return bytes([int(spelling[3:5], 16)])
        return spelling.replace("\u2581", " ").encode()

    @cached_property
    def _added(self) -> frozenset[str]:
        return frozenset(t.content for t in self.backend.get_added_tokens_decoder().values())

    @cached_property
    def _byte_level(self) -> bool:
        decoder = json.loads(self.backend.to_str()).get("decoder") or {}
        kinds = [decoder, *decoder.get("decoders", ())]
        return any(each.get("type") == "ByteLevel" for each in kinds)

    def token_id(self, token: str) -> int:
        """A token's number. Raises UnsupportedCheckpoint if there is none."""
        number: int | None = self.backend.token_to_id(token)
        if number is None:
            raise UnsupportedCheckpoint(f"The tokenizer has no token {token!r}.")
        return number

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, special ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int | None:
        """The token that begins every text, if the files name one."""
        token = self.tokens.get("bos_token")
        number: int | None = self.backend.token_to_id(token) if token else None
        return number

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own rules put `bos_token` before every text."""
        return self.bos_id is not None and self.backend.encode("a").ids[:1] == [self.bos_id]

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template takes lists of parts; older ones take texts alone."""
        probe = "chiasm\u00b7probe"
        try:
            parts = [{"type": "text", "text": probe}]
            rendered = self.render([{"role": "user", "content": parts}])
        except (InvalidRequest, UnsupportedCheckpoint):
            return False
        return probe in rendered and "'type'" not in rendered and '"type"' not in rendered

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Tokens that steer the model, the longest first."""
        added = self.backend.get_added_tokens_decoder().values()
        return tuple(sorted((t.content for t in added if t.special), key=len, reverse=True))

    def harmless(self, text: str, mark: str | None = None) -> str:
        """`text` with a space of no width inside whatever imitates a special token or a `mark`.

        So that a user's words are read as words: nobody closes a turn by typing its end.
        """
        for token in (*self.special_tokens, *filter(None, [mark])):
            if token in text:
                text = text.replace(token, token[0] + _BREAK + token[1:])
        return text

    # Conversations ---------------------------------------------------------------------------

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        **more: Any,
    ) -> str:
        """The conversation as the text that the model was trained to read.

        messages: dictionaries with `role` and `content`, the content a text or a list of
            `{"type": "text", "text": …}` and `{"type": "image"}`.
        generation_prompt: end with the beginning of the assistant's answer.
        more: other names that the template asks for.

        Raises InvalidRequest with the template's own words if it refuses the conversation, such as
        roles out of order; UnsupportedCheckpoint if there is no template or it is broken.
        """
        written: list[str] = []
        length = 0
        for part in self._rendered(messages, generation_prompt, more):
            length += len(part)
            if length > _LONGEST_PROMPT:
                raise InvalidRequest(
                    f"The conversation is longer than {_LONGEST_PROMPT:,} characters.",
                    param="messages",
                )
            written.append(part)
        return "".join(written)

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, more: dict[str, Any]
    ) -> Iterator[str]:
        names = {"tools": None, "documents": None, **self.tokens, **more}
        try:
            yield from self._compiled.generate(
                messages=list(messages), add_generation_prompt=generation_prompt, **names
            )
        except _Refused as refusal:
            raise InvalidRequest(
                f"The model's chat template refuses the conversation: {refusal}", param="messages"
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, ArithmeticError):
            raise UnsupportedCheckpoint(
                "The model's chat template cannot render this conversation.",
                hint="Some templates take texts alone, or no system message.",
                param="messages",
            ) from None

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if self.template is None:
            raise UnsupportedCheckpoint(
                "The checkpoint has no chat template, so it is no model to talk with.",
                hint="Use an instruction-tuned checkpoint, or put a chat_template.jinja beside it.",
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            return environment.from_string(self.template)
        except jinja2.TemplateError as error:
            raise UnsupportedCheckpoint(
                f"The checkpoint's chat template is no valid Jinja: {error}."
            ) from None

    def save(self, folder: Path | str) -> None:
        """Write the files that `from_folder` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in CHAT_FILES:
            source = self._folder / name if self._folder else None
            if source and source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)
        if not (folder / "tokenizer.json").is_file():
            self.backend.save(str(folder / "tokenizer.json"))
        if not (folder / _CONFIG).is_file():
            entries = {"tokenizer_class": "PreTrainedTokenizerFast", **self.tokens}
            (folder / _CONFIG).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
        if self.template is not None and not (folder / "chat_template.jinja").is_file():
            (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")


_CONFIG = "tokenizer_config.json"


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte.

    Printable Latin-1 stands for itself; the others, in order, for the letters from U+0100 on
    (GPT-2's table).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()


# What a template may call -----------------------------------------------------------------------


class _Refused(Exception):
    """The template called `raise_exception`."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(str(message)[:300])


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)  # the user's own day


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """As JSON, without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the answers: rendered as they are."""

    tags = {"generation"}  # noqa: RUF012 -- as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# Reading the files ------------------------------------------------------------------------------


def _template(folder: Path, entries: Mapping[str, Any]) -> str | None:
    """The template, wherever it is kept: a file of its own, the processor's, the tokenizer's."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for stated in (
        read_json_if_there(folder / "chat_template.json").get("chat_template"),
        read_json_if_there(folder / "processor_config.json").get("chat_template"),
        entries.get("chat_template"),
    ):
        if isinstance(stated, str):
            return stated
        if isinstance(stated, list):  # several, by name
            named = {each.get("name"): each.get("template") for each in stated}
            if isinstance(named.get("default"), str):
                return str(named["default"])
    return None


def _eos_ids(folder: Path, backend: Backend, tokens: Mapping[str, str]) -> Iterator[int]:
    config = read_json_if_there(folder / "config.json")
    for stated in (
        read_json_if_there(folder / "generation_config.json").get("eos_token_id"),
        config.get("eos_token_id"),
        (config.get("text_config") or {}).get("eos_token_id"),
    ):
        ids = stated if isinstance(stated, list) else [stated]
        yield from (number for number in ids if type(number) is int)
    token = tokens.get("eos_token")
    number = backend.token_to_id(token) if token else None
    if number is not None:
        yield number


def _token_text(stated: object) -> str | None:
    text = stated.get("content") if isinstance(stated, dict) else stated
    return text if isinstance(text, str) else None
