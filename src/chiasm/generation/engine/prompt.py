"""A conversation as the ids that a model reads, with its pictures in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chiasm.errors import ContextExceeded, InvalidRequest, UnsupportedCheckpoint
from chiasm.generation.messages import ImagePart, Message, TextPart, check_conversation, pixels_of
from chiasm.generation.request import Ability, check_abilities
from chiasm.models.vision_language import joined

if TYPE_CHECKING:
    from chiasm.generation.request import Request
    from chiasm.media import Image
    from chiasm.models.chat import ChatTokenizer
    from chiasm.models.generator import GeneratorCheckpoint
    from chiasm.models.vision_language import ImageReader

ABILITIES: frozenset[Ability] = frozenset(
    ("choices", "logprobs", "schema", "seed", "stop", "temperature", "top_k", "top_p")
)
"""What the models that run here can be asked for."""

Unit = int | tuple[str, int]
"""What two prompts must share to share their cache: a token, or the nth token of a picture."""


@dataclass(frozen=True)
class Picture:
    """A picture of the prompt. at: positions of its image tokens, `range`-like and in order."""

    image: Image
    at: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """ids: everything that the model reads. pictures: in their order."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Positions that pictures take."""
        return sum(len(picture.at) for picture in self.pictures)

    @property
    def text_tokens(self) -> int:
        """All others, markers around pictures included."""
        return len(self.ids) - self.image_tokens

    def units(self) -> list[Unit]:
        """The ids, with each image token replaced by the picture's digest and its place there."""
        units: list[Unit] = list(self.ids)
        for picture in self.pictures:
            for place, position in enumerate(picture.at):
                units[position] = (picture.image.digest, place)
        return units


DEFAULT_MAX_TOKENS = 1024


def prompt_of(
    request: Request, checkpoint: GeneratorCheckpoint, *, context: int | None = None
) -> tuple[Prompt, int]:
    """A request's prompt, and how many tokens each of its answers may have.

    context: tokens that both may have together, the checkpoint's own if None.
    Raises what `build_prompt` raises, and ContextExceeded when it is too long.
    """
    check_abilities(request, ABILITIES, checkpoint.name)
    prompt = build_prompt(request.messages, checkpoint)
    context = checkpoint.context if context is None else min(context, checkpoint.context)
    room = context - len(prompt.ids)
    if room < 1:
        pictures = f", {prompt.image_tokens:,} of them for {len(prompt.pictures)} pictures"
        raise ContextExceeded(
            f"The prompt has {len(prompt.ids):,} tokens{pictures if prompt.pictures else ''}; "
            f"{checkpoint.name} reads {context:,} with its answer.",
            hint="Send fewer or smaller pictures, or a shorter text.",
            param="messages",
        )
    return prompt, min(request.max_tokens or DEFAULT_MAX_TOKENS, room)


def build_prompt(messages: Sequence[Message], checkpoint: GeneratorCheckpoint) -> Prompt:
    """Apply the chat template and put each picture's placeholder in its mark's place.

    Raises InvalidRequest for a conversation that is out of order, one with pictures for a model
    that reads none, or one that the template refuses.
    """
    images = pixels_of(messages)
    ids = _ids(messages, [image.size for image in images], checkpoint)
    if checkpoint.images is None or not images:
        return Prompt(tuple(ids))
    return Prompt(
        tuple(ids), tuple(_pictures(ids, images, checkpoint.images, checkpoint.tokenizer))
    )


def count_prompt(request: Request, checkpoint: GeneratorCheckpoint) -> int:
    """How many ids a request's prompt has, without its pictures' pixels.

    Raises what `prompt_of` raises, but for a prompt that is too long.
    """
    check_abilities(request, ABILITIES, checkpoint.name)
    parts = [part for message in request.messages for part in message.image_parts]
    sizes = [part.size or part.image.size for part in parts]
    return len(_ids(request.messages, sizes, checkpoint))


def _ids(
    messages: Sequence[Message], sizes: Sequence[tuple[int, int]], checkpoint: GeneratorCheckpoint
) -> list[int]:
    check_conversation(messages)
    reader, tokenizer = checkpoint.images, checkpoint.tokenizer
    if sizes and reader is None:
        raise InvalidRequest(
            f"{checkpoint.name} reads text alone, and there is a picture in the conversation.",
            hint="Ask a vision-language model.",
            param="messages",
        )
    mark = None if reader is None else reader.mark
    text = tokenizer.render([_plain(message, tokenizer, mark) for message in messages])
    if reader is not None and sizes:
        text = _filled(text, sizes, reader)
    return _begun(tokenizer, tokenizer.encode(text))


def _plain(message: Message, tokenizer: ChatTokenizer, mark: str | None) -> dict[str, Any]:
    """A message as templates take it."""
    parts = [part for part in message.parts if isinstance(part, TextPart | ImagePart)]
    if tokenizer.takes_parts:
        content: Any = [
            {"type": "image"}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": tokenizer.harmless(part.text, mark)}
            for part in parts
        ]
    else:
        content = "".join(
            f"{mark}\n" if isinstance(part, ImagePart) else tokenizer.harmless(part.text, mark)
            for part in parts
        )
    return {"role": message.role, "content": content}


def _filled(text: str, sizes: Sequence[tuple[int, int]], reader: ImageReader) -> str:
    """The rendered text with a placeholder in place of each mark."""
    pieces = text.split(reader.mark)
    if len(pieces) != len(sizes) + 1:
        raise UnsupportedCheckpoint(
            f"The model's chat template wrote {len(pieces) - 1} marks for {len(sizes)} pictures.",
            hint="It may take one picture a message, or none.",
            param="messages",
        )
    filled = [pieces[0]]
    for size, piece in zip(sizes, pieces[1:], strict=True):
        filled += (reader.placeholder(*size), piece)
    return joined(reader, "".join(filled))


def _begun(tokenizer: ChatTokenizer, ids: list[int]) -> list[int]:
    """The ids with the begin-of-text token that the tokenizer puts first, unless they have it."""
    if not tokenizer.adds_bos or tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]:
        return ids
    return [tokenizer.bos_id, *ids]


def _pictures(
    ids: Sequence[int], images: Sequence[Image], reader: ImageReader, tokenizer: ChatTokenizer
) -> list[Picture]:
    """Which image tokens belong to which picture."""
    image_token = tokenizer.token_id(reader.image_token)
    positions = [at for at, number in enumerate(ids) if number == image_token]
    pictures, start = [], 0
    for image in images:
        # Counted in the placeholder: some families' features do not stand in the sequence.
        count = reader.placeholder(*image.size).count(reader.image_token)
        pictures.append(Picture(image, tuple(positions[start : start + count])))
        start += count
    if start != len(positions):
        raise UnsupportedCheckpoint(
            f"The prompt has {len(positions)} image tokens, and its pictures should have {start}."
        )
    return pictures
