"""A checkpoint that answers: the network, its pictures' reader, its tokenizer and template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models import checkpoint
from chiasm.models.chat import ChatTokenizer
from chiasm.models.decoder import Decoder
from chiasm.models.json_files import read_json

if TYPE_CHECKING:
    from chiasm.models.catalog import Progress
    from chiasm.models.decoder import DecoderConfig
    from chiasm.models.vision_language import ImageReader, VisionLanguageModel


SMALL_VLM = "small-vlm"


@dataclass(frozen=True)
class GeneratorCheckpoint:
    """A language model, with or without eyes.

    model: in evaluation mode, float32, on the CPU. images: None for a model that reads text alone.
    digest: as of `DualEncoderCheckpoint`.
    """

    model: VisionLanguageModel | Decoder
    images: ImageReader | None
    tokenizer: ChatTokenizer
    name: str
    digest: str

    @property
    def decoder(self) -> Decoder:
        """The language model alone."""
        return self.model if isinstance(self.model, Decoder) else self.model.decoder

    @property
    def config(self) -> DecoderConfig:
        """Of the language model."""
        return self.decoder.config

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.config.max_position_embeddings


def load_generator(
    location: str | Path,
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
) -> GeneratorCheckpoint:
    """Load a model that answers, by catalogue name, `hf:owner/name`, or local folder.

    Raises UnknownModel if there is no such name or folder, UnsupportedCheckpoint if what was found
    does not answer, WeightsError if it could not be fetched.
    """
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "progress": progress,
        "catalogs": catalogs,
    }
    if checkpoint.is_built_in(location, catalogs):
        from chiasm.models import small_vlm

        return small_vlm.load(**options)
    folder = checkpoint.locate(location, **options)
    model_type = read_json(folder / checkpoint.CONFIG).get("model_type")
    if model_type == SMALL_VLM:
        from chiasm.models import small_vlm

        return small_vlm.load(**options, shipped=folder)
    model: Any = checkpoint.load_model(folder)
    images = None
    if not isinstance(model, Decoder):
        if not hasattr(model, "encode_image") or not hasattr(model, "decoder"):
            raise UnsupportedCheckpoint(
                f"{location} is a {model_type} checkpoint, which does not answer questions.",
                hint="Use a language model or a vision-language model.",
            )
        images = checkpoint.load_image_reader(folder)
    return GeneratorCheckpoint(
        model=model.requires_grad_(False),
        images=images,
        tokenizer=ChatTokenizer.from_folder(folder),
        name=str(location),
        digest=checkpoint.digest(folder),
    )
