"""Which tokens of a conversation are learned: the answers and their ends, and nothing else.

The checkpoint's own chat template writes the text. Where an answer stands in it follows from
rendering the conversation up to before it, with the answer's beginning asked for, and up to after
it: what the second has more than the first is what the model itself would have to write. So no
template needs marks, and what is learned is what is asked for when the model is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.media import read_header
from chiasm.media.limits import Limits
from chiasm.models.chat import ChatTokenizer
from chiasm.models.vision_language import ImageReader, joined
from chiasm.training.conversations import Conversation, Message, Picture

_LIMITS = Limits()
Span = tuple[int, int]


class TooLong(InvalidRequest):
    """Not even the first answer of a conversation fits."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens.

    ids: int64 [tokens], with every picture's image tokens. learned: bool [tokens]; the first token
    never is, since nothing comes before it.
    pictures: those whose image tokens are there. shortened: whether turns were left out.
    """

    key: str
    ids: npt.NDArray[np.int64]
    learned: npt.NDArray[np.bool_]
    pictures: tuple[Picture, ...]
    shortened: bool = False

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)


class ConversationEncoder:
    """Conversations to tokens. images: None for a language model without pictures."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        images: ImageReader | None,
        *,
        max_tokens: int,
        limits: Limits = _LIMITS,
    ) -> None:
        self._tokenizer = tokenizer
        self._images = images
        self._max_tokens = max_tokens
        self._limits = limits
        self._image_id = None if images is None else tokenizer.token_id(images.image_token)

    def __call__(self, conversation: Conversation) -> Encoded:
        """Raises ImageError for a picture's header, InvalidRequest if the template refuses the
        conversation, TooLong, and UnsupportedCheckpoint for a template that cannot be used.
        """
        sizes = [
            read_header(picture, limits=self._limits).size for picture in conversation.pictures
        ]
        text, spans = answer_spans(self._tokenizer, self._messages(conversation))
        learned = [message.learned for message in conversation.messages if _answers(message)]
        text, spans = ended(self._tokenizer, text, spans)
        text, spans = self._with_placeholders(text, spans, sizes)
        found = self._tokenizer.backend.encode(text, add_special_tokens=False)
        ids = np.array(found.ids, dtype=np.int64)
        bounds = _token_bounds(np.array(found.offsets, dtype=np.int64).reshape(-1, 2), spans)
        begin = self._tokenizer.bos_id if self._tokenizer.adds_bos else None
        if begin is not None and ids[:1] != begin:
            ids = np.concatenate([[begin], ids])
            bounds = [(start + 1, end + 1) for start, end in bounds]
        return self._cut(conversation, ids, bounds, learned, sizes)

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        mark = self._images.mark if self._images else ""
        return [
            message_dict(message, self._tokenizer, mark=mark) for message in conversation.messages
        ]

    def _with_placeholders(
        self, text: str, spans: Sequence[Span], sizes: Sequence[tuple[int, int]]
    ) -> tuple[str, list[Span]]:
        """Every mark replaced by its picture's image tokens."""
        if self._images is None:
            if sizes:
                raise InvalidRequest("A language model alone reads no pictures.")
            return text, list(spans)
        pieces = text.split(self._images.mark)
        if len(pieces) - 1 != len(sizes):
            raise UnsupportedCheckpoint(
                f"The chat template writes {len(pieces) - 1} places for {len(sizes)} pictures.",
                hint=f"It must write {self._images.mark} once for each picture.",
            )
        written = [pieces[0]]
        place, shift = len(pieces[0]), 0
        moved: list[tuple[int, int]] = []  # (place in the old text, what lies behind moves so far)
        for piece, size in zip(pieces[1:], sizes, strict=True):
            placeholder = self._images.placeholder(*size)
            written += [placeholder, piece]
            shift += len(placeholder) - len(self._images.mark)
            moved.append((place, shift))
            place += len(self._images.mark) + len(piece)
        filled = "".join(written)
        spans = [(_moved(a, moved), _moved(b, moved)) for a, b in spans]
        # Some families write neighbouring pictures otherwise, which moves what stands behind.
        return joined(self._images, filled), [
            (len(joined(self._images, filled[:a])), len(joined(self._images, filled[:b])))
            for a, b in spans
        ]

    def _cut(
        self,
        conversation: Conversation,
        ids: npt.NDArray[np.int64],
        bounds: Sequence[Span],
        learned: Sequence[bool],
        sizes: Sequence[tuple[int, int]],
    ) -> Encoded:
        """The tokens up to the last answer that fits; nothing behind it can be learned."""
        fitting = [n for n, (_, end) in enumerate(bounds) if end <= self._max_tokens and learned[n]]
        if not fitting:
            raise TooLong(f"{conversation.key} has no answer within {self._max_tokens} tokens.")
        end = bounds[fitting[-1]][1]
        mask = np.zeros(end, dtype=np.bool_)
        for number in range(fitting[-1] + 1):
            if learned[number]:
                mask[slice(*bounds[number])] = True
        mask[:1] = False
        kept = ids[:end]
        pictures = self._pictures_in(conversation, kept, mask, sizes)
        return Encoded(conversation.key, kept, mask, pictures, fitting[-1] + 1 < len(bounds))

    def _pictures_in(
        self,
        conversation: Conversation,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        sizes: Sequence[tuple[int, int]],
    ) -> tuple[Picture, ...]:
        if self._images is None:
            return ()
        places = ids == self._image_id
        if (places & mask).any():
            raise UnsupportedCheckpoint("An answer holds image tokens.")
        # Counted in the placeholder: some families' features do not stand in the sequence.
        token = self._images.image_token
        counts = np.cumsum([self._images.placeholder(*size).count(token) for size in sizes])
        total = int(places.sum())
        if not total:
            return ()
        number = int(np.searchsorted(counts, total))
        if number == len(counts) or counts[number] != total:
            raise UnsupportedCheckpoint(
                f"{conversation.key} has {total} image tokens, which is no whole number of its "
                "pictures.",
                hint="The tokenizer must know the image token as one special token.",
            )
        return conversation.pictures[: number + 1]


# The template -----------------------------------------------------------------------------------


def message_dict(message: Message, tokenizer: ChatTokenizer, *, mark: str) -> dict[str, Any]:
    """A message as chat templates take it, in the same way as for a question that is asked.

    mark: stands in texts for a picture where the template does not take parts. What imitates a
    special token or a mark is made harmless.
    """
    texts = [None if part is None else _harmless(part, tokenizer, mark) for part in message.parts]
    if tokenizer.takes_parts:
        content: Any = [
            {"type": "image"} if text is None else {"type": "text", "text": text} for text in texts
        ]
    else:
        # A picture stands on a line of its own.
        content = "".join(f"{mark}\n" if text is None else text for text in texts)
    return {"role": message.role, "content": content}


def answer_spans(
    tokenizer: ChatTokenizer, messages: Sequence[dict[str, Any]]
) -> tuple[str, list[Span]]:
    """The conversation's text, and where in it the model would write: one span an answer.

    Raises UnsupportedCheckpoint for a template that writes the beginning of a conversation in
    another way when it goes on, and InvalidRequest where it refuses the conversation.
    """
    whole = tokenizer.render(messages, generation_prompt=False)
    spans: list[Span] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = tokenizer.render(messages[:number], generation_prompt=True)
        last = number == len(messages) - 1
        answered = (
            whole if last else tokenizer.render(messages[: number + 1], generation_prompt=False)
        )
        if not (answered.startswith(asked) and whole.startswith(answered)):
            raise UnsupportedCheckpoint(
                "The chat template writes a conversation in another way once it goes on, so where "
                f"answer {len(spans) + 1} stands cannot be told.",
                hint="Train on conversations of one answer, or use a template without that.",
                param="data.source",
            )
        start = len(asked)
        if asked == tokenizer.render(messages[:number], generation_prompt=False):
            start += _header(answered[start:], message)
        spans.append((start, len(answered)))
    return whole, spans


def ended(tokenizer: ChatTokenizer, text: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """Each span with the token that ends an answer as its last, put there where none is.

    What a template writes behind that token is not the model's to write. Where a template writes
    none, the token takes the place of the space behind the answer, as in LLaVA-1.5's training.
    """
    ends = [
        token for number in tokenizer.eos_ids if (token := tokenizer.backend.id_to_token(number))
    ]
    if not ends:
        return text, list(spans)
    usual = tokenizer.tokens.get("eos_token") or ends[0]
    written: list[str] = []
    moved: list[Span] = []
    place, length = 0, 0
    for start, end in spans:
        answer = text[start:end]
        cut = max(
            (answer.rfind(token) + len(token) for token in ends if token in answer), default=0
        )
        rest = answer[cut:] if cut else ""
        answer = answer[:cut] if cut else answer.rstrip() + usual
        written += [text[place:start], answer, rest]
        length += start - place
        moved.append((length, length + len(answer)))
        length += len(answer) + len(rest)
        place = end
    written.append(text[place:])
    return "".join(written), moved


def _header(answer: str, message: dict[str, Any]) -> int:
    """Letters before the answer's own words, where a template cannot begin an answer by itself."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    first = next((text.strip() for text in texts if text.strip()), "")
    place = answer.find(first)
    return place if place > 0 and answer[:place].strip() else 0


def _harmless(text: str, tokenizer: ChatTokenizer, mark: str) -> str:
    text = tokenizer.harmless(text)
    return text.replace(mark, f"{mark[0]}\u200b{mark[1:]}") if mark and mark in text else text


def _answers(message: Message) -> bool:
    return message.role == "assistant"


def _moved(place: int, moved: Sequence[tuple[int, int]]) -> int:
    shift = 0
    for first, behind in moved:
        if first >= place:
            break
        shift = behind
    return place + shift


def _token_bounds(offsets: npt.NDArray[np.int64], spans: Sequence[Span]) -> list[Span]:
    """Of each span the tokens that lie wholly within. offsets: [tokens, 2], in letters."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    return [
        (
            int(np.searchsorted(starts, start, side="left")),
            int(np.searchsorted(ends, end, side="right")),
        )
        for start, end in spans
    ]
