"""Where pictures meet a language model: what every network that reads both has in common.

A picture stands in a prompt as a run of image tokens. `ImageReader` knows which text that is and
makes the pixels; `VisionLanguageModel` turns the pixels into one feature an image token. What
generates or trains works with these two and never asks which family a checkpoint is of.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.media.image import Image
from chiasm.models.cache import KeyValueCache

if TYPE_CHECKING:
    from chiasm.models.decoder import Decoder, DecoderConfig


@dataclass(frozen=True)
class ImageInputs:
    """One picture, ready for the network.

    pixels: float32 [tiles, 3, height, width].
    size: (width, height) of the pixels it came from; `placeholder` and `count` are asked with it.
    mask: bool [tiles, height, width], where a tile has pixels and not padding; None: everywhere.
    """

    pixels: Tensor
    size: tuple[int, int]
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> ImageInputs:
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return ImageInputs(self.pixels.to(device), self.size, mask)


class ImageReader(Protocol):
    """The picture half of a checkpoint's processor.

    mark: what the chat template writes for a picture, such as `<image>`.
    image_token: the token that a placeholder repeats, once a feature.
    """

    @property
    def mark(self) -> str: ...

    @property
    def image_token(self) -> str: ...

    def prepare(self, image: Image) -> ImageInputs:
        """The picture as its network reads it."""
        ...

    def placeholder(self, width: int, height: int) -> str:
        """The text that stands for one picture of this size in a prompt, in place of its mark.

        Image tokens with every marker around and between them.
        """
        ...

    def count(self, width: int, height: int) -> int:
        """Image tokens of a picture of this size: the positions that features fill."""
        ...


class VisionLanguageModel(Protocol):
    """A network that reads pictures and text and continues the text. An `nn.Module`."""

    decoder: Decoder
    image_token_id: int

    def encode_image(self, inputs: ImageInputs) -> Tensor:
        """Features of one picture, [image tokens, decoder width], in its placeholder's order."""
        ...

    def __call__(
        self,
        ids: Tensor,
        features: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """int64 [batch, tokens] → hidden [batch, tokens, decoder width].

        features: [n, decoder width], for all the image tokens among `ids`, row by row.
        positions, mask, cache: as in `Decoder`.
        Raises InvalidRequest when features and image tokens differ in number.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., decoder width] → [..., vocabulary]."""
        ...

    def new_cache(self, *, batch: int = 1, capacity: int = 256) -> KeyValueCache:
        """An empty cache on the network's device."""
        ...

    def vision_flops(self, inputs: ImageInputs) -> int:
        """Floating-point operations that `encode_image` spends in matrix products.

        A multiplication and an addition count as two; attention's two products are included,
        norms and activations are not.
        """
        ...


def joined(reader: ImageReader, text: str) -> str:
    """A prompt with its placeholders in, as the family writes pictures that follow each other."""
    written: str = getattr(reader, "joined", str)(text)  # a method that few readers have
    return written


def placed(embeddings: Tensor, ids: Tensor, image_token_id: int, features: Tensor | None) -> Tensor:
    """Token embeddings with pictures' features in the image tokens' places.

    embeddings: [batch, tokens, width]. ids: int64 [batch, tokens]. features: [n, width], row by
    row in the order of the image tokens; None where the prompt has no picture.
    Raises InvalidRequest when features and image tokens differ in number or width.
    """
    where = ids == image_token_id
    tokens = int(where.sum())
    count = 0 if features is None else len(features)
    if tokens != count:
        raise InvalidRequest(
            f"The prompt has {tokens} image tokens, and the pictures give {count} features.",
            hint="Give each picture its placeholder, and each placeholder its picture.",
        )
    if features is None or not count:
        return embeddings
    if features.shape[1:] != embeddings.shape[-1:]:
        raise InvalidRequest(
            f"Features of shape {list(features.shape)} do not fit token embeddings of width "
            f"{embeddings.shape[-1]}."
        )
    # Not written in place: the embeddings may need their gradient.
    return embeddings.masked_scatter(
        where[..., None], features.to(embeddings.device, embeddings.dtype)
    )


def in_vocabulary(name: str, token: int, text: DecoderConfig) -> None:
    """Raise UnsupportedCheckpoint unless a configuration's token has an embedding."""
    if not 0 <= token < text.vocab_size:
        raise UnsupportedCheckpoint(
            f"{name} is {token}, beyond the language model's {text.vocab_size} tokens."
        )


class PicturesInText(nn.Module):
    """The half of a `VisionLanguageModel` that all share which put features among the tokens.

    A subclass sets `decoder` and `image_token_id` and brings `encode_image` and `vision_flops`.
    sees_in_float32: whether what comes before the decoder needs that, whatever the decoder is in.
    """

    sees_in_float32: ClassVar[bool] = False
    decoder: Decoder
    image_token_id: int

    def encode_image(self, inputs: ImageInputs) -> Tensor:
        """Features of one picture, see `VisionLanguageModel`."""
        raise NotImplementedError

    def vision_flops(self, inputs: ImageInputs) -> int:
        """See `VisionLanguageModel`."""
        raise NotImplementedError

    def encode_slices(self, inputs: ImageInputs) -> Generator[None, None, Tensor]:
        """`encode_image` in short pieces: it yields between them, and returns the features.

        So that others need not wait for a whole picture. In one piece, where a network has no way
        to be interrupted.
        """
        yield from ()
        return self.encode_image(inputs)

    def forward(
        self,
        ids: Tensor,
        features: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, [batch, tokens, width]; see `VisionLanguageModel`."""
        embeddings = self.decoder.embed(ids)
        # A single token behind others may be one that was generated: then it is text, whatever
        # its id, as in transformers.
        generated = features is None and cache is not None and cache.length and ids.shape[1] == 1
        if not generated:
            embeddings = placed(embeddings, ids, self.image_token_id, features)
        return self.decoder(embeddings, positions=positions, mask=mask, cache=cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary]."""
        return self.decoder.logits(hidden)

    def new_cache(self, *, batch: int = 1, capacity: int = 256) -> KeyValueCache:
        """An empty cache of the network's type, on its device."""
        return self.decoder.new_cache(batch=batch, capacity=capacity)
