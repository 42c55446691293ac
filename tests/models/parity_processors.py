"""Pictures and their placeholders as transformers' processors read them, on Pillow.

LLaVA-1.5, LLaVA-NeXT, Idefics3, SmolVLM. The processors of the first three are transformers' own;
SmolVLM's wants packages for video, so its image processor and its prompt function are used.
`test_image_readers.py` asserts on the comparison; `benchmarks/parity.py` prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from chiasm.media.image import Image
from chiasm.models.idefics3_reader import Idefics3Reader
from chiasm.models.llava_reader import LLaVANeXTReader, LLaVAReader
from chiasm.models.processor_files import ProcessorFiles

# (width, height): one pixel, one line, whole tiles and whole scales, off by one, long and thin.
SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 2), (1, 30), (30, 1), (1, 61), (61, 1), (5, 300), (300, 5),
    (28, 28), (27, 28), (28, 29), (29, 28), (56, 28), (28, 56), (57, 28), (55, 28), (28, 57),
    (56, 56), (55, 56), (57, 56), (84, 28), (28, 84), (85, 29), (112, 112), (111, 112), (112, 113),
    (112, 28), (28, 112), (112, 56), (112, 84), (113, 57), (64, 48), (48, 64), (160, 90), (90, 160),
    (640, 480), (333, 777), (500, 40), (40, 500), (1000, 17), (17, 1000), (224, 223), (37, 41),
]  # fmt: skip
SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
MARKERS = [f"<row_{row}_col_{column}>" for row in range(1, 8) for column in range(1, 8)]


def picture(size: tuple[int, int]) -> Image:
    """Noise over a gradient: sharp enough that a filter or a shift of half a pixel shows."""
    width, height = size
    random = np.random.default_rng(width * 7919 + height)
    ramp = np.linspace(0, 180, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    noise = random.integers(0, 76, (height, width, 3))
    return Image(np.clip(ramp + noise, 0, 255).astype(np.uint8), original_size=size)


def pil(image: Image) -> PIL.Image.Image:
    """As transformers wants it: of an array one pixel wide it guesses wrong what is a channel."""
    return PIL.Image.fromarray(image.pixels)


def tokenizer() -> Any:
    """Bytes, two newlines as one token, and the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIAL, *MARKERS])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<image>")


IMAGE = tokenizer().convert_tokens_to_ids("<image>")


@dataclass(frozen=True)
class Reading:
    """What a processor makes of a prompt with pictures."""

    ids: list[int]
    tiles: list[torch.Tensor]  # [tiles, 3, height, width] of each picture


class Theirs:
    """A processor of transformers'."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def read(self, text: str, pictures: list[Image]) -> Reading:
        made = self.processor(
            images=[pil(each) for each in pictures], text=text, return_tensors="pt"
        )
        values = made["pixel_values"]
        return Reading(made["input_ids"][0].tolist(), self.split(values, pictures))

    def split(self, values: torch.Tensor, pictures: list[Image]) -> list[torch.Tensor]:
        if values.ndim == 4:  # one tile a picture
            return [each[None] for each in values]
        if values.shape[0] == len(pictures):  # padded with tiles of zeros behind
            return [each[[bool(tile.any()) for tile in each]] for each in values]
        raise AssertionError(values.shape)


class TheirsInARow(Theirs):
    """Idefics3's processor puts the tiles of all pictures in one row."""

    def split(self, values: torch.Tensor, pictures: list[Image]) -> list[torch.Tensor]:
        image_processor = self.processor.image_processor
        counts = []
        for each in pictures:
            alone = image_processor([[pil(each)]], return_tensors="pt")
            counts.append(alone["pixel_values"].shape[1])
        return list(values[0].split(counts))


class SmolVLM(TheirsInARow):
    """SmolVLM's image processor and its prompt function."""

    def __init__(self, image_processor: Any, seq_len: int) -> None:
        self.processor = self
        self.image_processor, self.seq_len = image_processor, seq_len
        self.tokenizer = tokenizer()

    def __call__(self, images: Any, text: str, return_tensors: str) -> Any:
        made = self.image_processor([images], return_tensors="pt", return_row_col_info=True)
        first, *rest = text.split("<image>")
        for row, column, part in zip(made["rows"][0], made["cols"][0], rest, strict=True):
            first += get_image_prompt_string(
                row,
                column,
                self.seq_len,
                image_token="<image>",
                fake_token_around_image="<fake_token_around_image>",
                global_image_token="<global-img>",
            )
            first += part
        ids = self.tokenizer(first, return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "pixel_values": made["pixel_values"]}

    def _get_num_multimodal_tokens(self, image_sizes: Any) -> Any:
        processor = Idefics3Processor(self.image_processor, tokenizer(), image_seq_len=self.seq_len)
        return processor._get_num_multimodal_tokens(image_sizes=image_sizes)


def clip(side: int, **entries: Any) -> dict[str, Any]:
    square = {"height": side, "width": side}
    return {"size": {"shortest_edge": side}, "crop_size": square, **entries}


def pinpoints(side: int) -> list[list[int]]:
    shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    return [[rows * side, columns * side] for rows, columns in shapes]


def llava(image_processor: Any, **entries: Any) -> Theirs:
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Theirs(LlavaProcessor(image_processor, tokenizer(), **{**options, **entries}))


def llava_next(side: int, patch: int, **entries: Any) -> Theirs:
    image_processor = LlavaNextImageProcessorPil(
        **{**clip(side, image_grid_pinpoints=pinpoints(side)), **entries}
    )
    return Theirs(
        LlavaNextProcessor(
            image_processor,
            tokenizer(),
            patch_size=patch,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    )


def idefics3(longest: int, tile: int, seq_len: int, **entries: Any) -> Theirs:
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": tile}, **entries
    )
    return TheirsInARow(Idefics3Processor(image_processor, tokenizer(), image_seq_len=seq_len))


def smolvlm(longest: int, tile: int, seq_len: int, **entries: Any) -> Theirs:
    image_processor = SmolVLMImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": tile}, **entries
    )
    return SmolVLM(image_processor, seq_len)


# Small towers, so that every size can be read whole.
SMALL: dict[str, tuple[Any, Callable[[], Theirs]]] = {
    "LLaVA": (LLaVAReader, lambda: llava(CLIPImageProcessorPil(**clip(28)), patch_size=7)),
    "LLaVA, crop smaller than resize": (
        LLaVAReader,
        lambda: llava(
            CLIPImageProcessorPil(
                size={"shortest_edge": 30}, crop_size={"height": 28, "width": 21}
            ),
            patch_size=7,
            vision_feature_select_strategy="full",
        ),
    ),
    "LLaVA, SigLIP": (
        LLaVAReader,
        lambda: llava(
            SiglipImageProcessorPil(size={"height": 28, "width": 28}),
            patch_size=7,
            vision_feature_select_strategy="full",
            num_additional_image_tokens=0,
        ),
    ),
    "LLaVA, padded to squares": (
        LLaVAReader,
        lambda: llava(LlavaImageProcessorPil(**clip(28), do_pad=True), patch_size=7),
    ),
    "LLaVA-NeXT": (LLaVANeXTReader, lambda: llava_next(28, 7)),
    "LLaVA-NeXT, odd grid": (LLaVANeXTReader, lambda: llava_next(35, 7)),
    "LLaVA-NeXT, tiles scaled again": (
        LLaVANeXTReader,
        lambda: llava_next(28, 7, size={"shortest_edge": 32}),
    ),
    "Idefics3": (Idefics3Reader, lambda: idefics3(112, 28, 9)),
    "Idefics3, long side no whole tiles": (Idefics3Reader, lambda: idefics3(100, 28, 9)),
    "Idefics3, not split": (
        Idefics3Reader,
        lambda: idefics3(112, 28, 9, do_image_splitting=False),
    ),
    "Idefics3, not scaled": (Idefics3Reader, lambda: idefics3(112, 160, 9, do_resize=False)),
    "SmolVLM": (Idefics3Reader, lambda: smolvlm(128, 32, 4)),
}

# As published, for what is counted from sizes alone.
PUBLISHED: dict[str, tuple[Any, Callable[[], Theirs]]] = {
    "LLaVA-1.5": (LLaVAReader, lambda: llava(CLIPImageProcessorPil(**clip(336)), patch_size=14)),
    "LLaVA-NeXT-7B": (LLaVANeXTReader, lambda: llava_next(336, 14)),
    "Idefics3-8B": (Idefics3Reader, lambda: idefics3(1456, 364, 169)),
    "SmolVLM-256M": (Idefics3Reader, lambda: smolvlm(2048, 512, 64)),
    "SmolVLM-2.2B": (Idefics3Reader, lambda: smolvlm(1536, 384, 81)),
}


def files(theirs: Theirs) -> ProcessorFiles:
    """What transformers would write of the processor."""
    processor = theirs.processor
    entries = processor.image_processor.to_dict()
    if isinstance(theirs, SmolVLM):
        return ProcessorFiles(entries, processor={"image_seq_len": theirs.seq_len})
    stated = {key: value for key, value in processor.to_dict().items() if key != "image_processor"}
    return ProcessorFiles(entries, processor=stated)


def read(reader: Any, text: str, pictures: list[Image]) -> Reading:
    """The same through the product's reader."""
    first, *rest = text.split(reader.mark)
    for each, part in zip(pictures, rest, strict=True):
        first += reader.placeholder(*each.size) + part
    tiles = []
    for each in pictures:
        inputs = reader.prepare(each)
        assert inputs.size == each.size
        assert inputs.mask is None
        tiles.append(inputs.pixels)
    return Reading(tokenizer()(first)["input_ids"], tiles)


@dataclass(frozen=True)
class Comparison:
    """One picture read here and by transformers. difference: max |Δ| over the values."""

    same_ids: bool
    same_count: bool
    same_tiles: bool
    difference: float


def compare(reader: Any, theirs: Theirs, size: tuple[int, int]) -> Comparison:
    """A prompt with one picture of this size."""
    image = picture(size)
    expected = theirs.read("a <image>\nwhat?", [image])
    found = read(reader, "a <image>\nwhat?", [image])
    (here,), (there,) = found.tiles, expected.tiles
    same_tiles = here.shape == there.shape and here.dtype == there.dtype == torch.float32
    return Comparison(
        same_ids=found.ids == expected.ids,
        same_count=reader.count(*size) == expected.ids.count(IMAGE),
        same_tiles=same_tiles,
        difference=float((here - there).abs().max()) if same_tiles else float("inf"),
    )


def allowed(theirs: Theirs, size: tuple[int, int]) -> float:
    """1e-5; two grey levels where only the kept part of a very thin picture is scaled."""
    image_processor = theirs.processor.image_processor
    cropped = isinstance(image_processor, CLIPImageProcessorPil)
    thin = max(size) > 32 * min(size)
    return 2.01 / 255 / min(image_processor.image_std) if cropped and thin else 1e-5
