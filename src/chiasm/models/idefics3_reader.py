"""Pictures as Idefics3 and SmolVLM read them, and the text that stands for them.

A picture is scaled to a long side, stretched to whole tiles and cut; the whole of it follows as a
last tile. In the prompt each tile has a marker that says its row and column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.image import Image, Pixels
from chiasm.media.transform import resize
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.processor_files import ProcessorFiles, positive
from chiasm.models.tiling import longest_edge, whole_tiles
from chiasm.models.vision_language import ImageInputs


@dataclass(frozen=True)
class Idefics3Reader:
    """Tiles of one size, each as many tokens.

    preprocessor: what makes values of a tile's pixels; its size is a tile's.
    longest: pixels of the longer side that a picture is scaled to, up or down; None leaves it.
    split: whether there are tiles beside the whole.
    tile_tokens: image tokens of a tile.
    kind: the class that the files name, without `ImageProcessor`.
    """

    preprocessor: ImagePreprocessor
    longest: int | None
    split: bool
    tile_tokens: int
    kind: str = "Idefics3"
    image_token: str = "<image>"
    around_token: str = "<fake_token_around_image>"
    whole_token: str = "<global-img>"

    @property
    def mark(self) -> str:
        """What the chat template writes for a picture."""
        return self.image_token

    def prepare(self, image: Image) -> ImageInputs:
        """The tiles, row by row, and the whole."""
        side, size = self.preprocessor.size[0], image.size
        if self.longest is not None:
            image = self._resized(image, longest_edge(image.size, self.longest))
        tiles: list[Pixels] = []
        if self.split:
            image = self._resized(image, whole_tiles(image.size, side))
            rows, columns = image.height // side, image.width // side
            if rows * columns > 1:
                grid = image.pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
                tiles = list(grid.reshape(-1, side, side, 3))
        whole = self._resized(image, (side, side)).pixels
        return ImageInputs(self.preprocessor.batch([*tiles, whole]), size)

    def placeholder(self, width: int, height: int) -> str:
        """Each tile's marker and image tokens, a line a row of tiles, and the whole last."""
        rows, columns = self.grid(width, height)
        tokens = self.image_token * self.tile_tokens
        lines = [
            "".join(
                f"{self.around_token}<row_{row}_col_{column}>{tokens}"
                for column in range(1, columns + 1)
            )
            for row in range(1, rows + 1)
        ]
        whole = f"{self.around_token}{self.whole_token}{tokens}{self.around_token}"
        return "\n".join([*lines, "", whole]) if lines else whole

    def count(self, width: int, height: int) -> int:
        """Image tokens of all tiles, markers not counted."""
        rows, columns = self.grid(width, height)
        return (rows * columns + 1) * self.tile_tokens

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles beside the whole; (0, 0) where the whole is the only one."""
        if not self.split:
            return 0, 0
        side, size = self.preprocessor.size[0], (width, height)
        if self.longest is not None:
            size = longest_edge(size, self.longest)
        width, height = whole_tiles(size, side)
        rows, columns = height // side, width // side
        return (rows, columns) if rows * columns > 1 else (0, 0)

    @classmethod
    def from_files(cls, files: ProcessorFiles) -> Idefics3Reader:
        """From a checkpoint's files. Raises UnsupportedCheckpoint."""
        entries = {key: each for key, each in files.image_processor.items() if each is not None}
        longest = _edge(entries.get("size", {"longest_edge": 4 * 364}), "size")
        tile = _edge(entries.get("max_image_size", {"longest_edge": 364}), "max_image_size")
        kind = _kind(entries)
        square = {"size": {"height": tile, "width": tile}}
        preprocessor = ImagePreprocessor.from_config({"resample": 1, **entries, **square, **_PLAIN})
        return cls(
            preprocessor,
            longest if entries.get("do_resize", True) else None,
            bool(entries.get("do_image_splitting", True)),
            _tile_tokens(files),
            kind,
            files.token("image_token", cls.image_token),
            files.token("fake_image_token", cls.around_token),
            files.token("global_image_token", cls.whole_token),
        )

    def to_config(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that means the same."""
        config = self.preprocessor.to_config()
        del config["do_center_crop"]
        return {
            **config,
            "image_processor_type": f"{self.kind}ImageProcessor",
            "do_resize": self.longest is not None,
            "size": {"longest_edge": self.longest or 4 * self.preprocessor.size[0]},
            "max_image_size": {"longest_edge": self.preprocessor.size[0]},
            "do_image_splitting": self.split,
            "do_pad": True,
            "processor_class": f"{self.kind}Processor",
        }

    def processor_config(self) -> dict[str, Any]:
        """The entries of a `processor_config.json` that means the same."""
        return {"image_seq_len": self.tile_tokens, "processor_class": f"{self.kind}Processor"}

    def _resized(self, image: Image, size: tuple[int, int]) -> Image:
        pixels = resize(image, size, resample=self.preprocessor.resample)
        return Image(pixels, original_size=image.original_size, name=image.name)


# Said to `ImagePreprocessor` in place of what the file says: a tile is only given its values.
_PLAIN = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "do_center_crop": False,
    "crop_size": None,
}
_KINDS = ("Idefics3", "SmolVLM")


def _kind(entries: Mapping[str, Any]) -> str:
    named = str(entries.get("image_processor_type") or "")
    kind = named.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")
    if kind not in _KINDS:
        raise UnsupportedCheckpoint(
            f"The image processor is {named!r}, which does not cut pictures as Idefics3 does.",
            hint=f"Known are {', '.join(f'{each}ImageProcessor' for each in _KINDS)}.",
        )
    return kind


def _edge(size: Any, name: str) -> int:
    if not isinstance(size, Mapping) or "longest_edge" not in size:
        raise UnsupportedCheckpoint(f"{name} must give a longest_edge, not {size!r}.")
    return positive(size["longest_edge"], f"{name}.longest_edge")


def _tile_tokens(files: ProcessorFiles) -> int:
    """As the processor's file says, or as the network's sizes give it."""
    stated = files.processor.get("image_seq_len")
    side, patch = files.tower.get("image_size"), files.tower.get("patch_size")
    if stated is None and isinstance(side, int) and isinstance(patch, int) and patch:
        stated = (side // patch // int(files.network.get("scale_factor") or 2)) ** 2
    return positive(169 if stated is None else stated, "image_seq_len")
