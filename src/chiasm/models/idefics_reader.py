"""Pictures and prompts as IDEFICS reads them.

A picture is squashed to one square and stands in the text as a single `<image>` token; around it
stand `<fake_token_around_image>` tokens, one of them between pictures that follow each other.
IDEFICS: Laurençon et al., arXiv 2306.16527, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chiasm.media.image import Image
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.vision_language import ImageInputs

IMAGE = "<image>"
AROUND = "<fake_token_around_image>"
END_OF_UTTERANCE = "<end_of_utterance>"


@dataclass(frozen=True)
class IdeficsReader:
    """The picture half of the IDEFICS processor."""

    preprocessor: ImagePreprocessor
    mark: str = IMAGE
    image_token: str = IMAGE

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> IdeficsReader:
        """From the entries of `preprocessor_config.json`. Raises UnsupportedCheckpoint."""
        entries = dict(config)
        side = entries.get("image_size")  # the older name for a square's side; it wins
        if isinstance(side, int):
            entries["size"] = {"height": side, "width": side}
        return cls(ImagePreprocessor.from_config(entries))

    def to_config(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that means the same."""
        return self.preprocessor.to_config()

    def prepare(self, image: Image) -> ImageInputs:
        """One square of the whole picture, whatever its aspect."""
        return ImageInputs(self.preprocessor([image]), image.size)

    def placeholder(self, width: int, height: int) -> str:
        """The same for every size. Where two come together, `joined` drops what is doubled."""
        return f"{AROUND}{IMAGE}{AROUND}"

    def count(self, width: int, height: int) -> int:
        """One: the latents are attended to from the text and take no places in it."""
        return 1

    def joined(self, text: str) -> str:
        """A prompt with its placeholders in, as the model was trained to see them."""
        return text.replace(AROUND * 2, AROUND)


def prompt(
    parts: Sequence[str | None], *, bos: str = "<s>", end_of_utterance: str | None = None
) -> str:
    """Texts and pictures in a row, as the text that the published processor makes of them.

    parts: None stands for a picture. bos: begins every text. end_of_utterance: put between texts
    that follow each other, for checkpoints trained so.
    """
    written = [bos]
    for number, part in enumerate(parts):
        after_text = number > 0 and parts[number - 1] is not None
        after_picture = number > 0 and not after_text
        if part is None:
            written.append(f"{IMAGE}{AROUND}" if after_picture else f"{AROUND}{IMAGE}{AROUND}")
        else:
            if end_of_utterance and after_text:
                written.append(end_of_utterance)
            written.append(part.strip(" "))
    return "".join(written)
