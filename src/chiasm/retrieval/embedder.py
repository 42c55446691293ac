"""Pictures and words to unit vectors in one space."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from chiasm.media import Image

if TYPE_CHECKING:
    import torch

    from chiasm.models.catalog import Progress
    from chiasm.models.checkpoint import DualEncoderCheckpoint
    from chiasm.settings import Settings

Vectors = npt.NDArray[np.float32]

_BATCH = 32


class Embedder(Protocol):
    """What a collection needs of a model. Safe to call from several threads.

    digest: changes whenever the vectors would. dimension: of a vector. decode_side: the shorter
    side, in pixels, that a picture must at least have been decoded at.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def decode_side(self) -> int: ...

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        """float32 [len(images), dimension], unit length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], unit length."""
        ...

    def count_tokens(self, text: str) -> int:
        """How many tokens the text tower reads for it."""
        ...


class DualEncoderEmbedder:
    """An `Embedder` over any dual encoder of `chiasm.models`."""

    def __init__(
        self, checkpoint: DualEncoderCheckpoint, *, device: str = "auto", batch_size: int = _BATCH
    ) -> None:
        from chiasm.models.device import choose_device

        self._device = choose_device(device)
        self._model = checkpoint.model.to(self._device).eval()
        self._preprocess = checkpoint.preprocessor
        self._tokenizer = checkpoint.tokenizer
        self._batch_size = batch_size
        # Two forward passes at once would share the same cores and take the memory of two.
        self._one_at_a_time = threading.Lock()
        self.name = checkpoint.name
        self.digest = checkpoint.digest
        self.dimension = checkpoint.model.dimension
        self.decode_side = checkpoint.preprocessor.decode_side

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self._device)

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        """float32 [len(images), dimension], unit length."""
        import torch

        vectors = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            pixels = self._preprocess(batch)  # [batch, 3, height, width]
            with self._one_at_a_time, torch.inference_mode():
                embedded = self._model.encode_image(pixels.to(self._device))
                vectors[start : start + len(batch)] = _unit(embedded)
        return vectors

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], unit length."""
        import torch

        vectors = np.empty((len(texts), self.dimension), np.float32)
        # Texts of like length share a batch, because a batch is padded to its longest.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), self._batch_size):
            chosen = order[start : start + self._batch_size]
            tokens = self._tokenizer([texts[index] for index in chosen])
            with self._one_at_a_time, torch.inference_mode():
                embedded = self._model.encode_text(
                    tokens.ids.to(self._device), tokens.mask.to(self._device)
                )
                vectors[chosen] = _unit(embedded)
        return vectors

    def count_tokens(self, text: str) -> int:
        """How many tokens the text tower reads for it."""
        return self._tokenizer.count(text)


def load_embedder(settings: Settings, *, progress: Progress | None = None) -> Embedder:
    """The embedder that the settings name, with its weights fetched if need be.

    Raises UnknownModel, WeightsError and its kin, UnsupportedCheckpoint, ConfigurationError.
    """
    from chiasm.models.checkpoint import load_dual_encoder

    checkpoint = load_dual_encoder(
        settings.embedder,
        cache_dir=settings.cache_dir,
        offline=settings.offline,
        progress=progress,
        catalogs=(settings.catalog,),
    )
    return DualEncoderEmbedder(checkpoint, device=settings.device)


def _unit(embedded: torch.Tensor) -> Vectors:
    from torch.nn.functional import normalize

    vectors: Vectors = normalize(embedded.float(), dim=-1).cpu().numpy()
    return vectors
