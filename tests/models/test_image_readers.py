"""Pictures and their placeholders against transformers' processors, on Pillow.

LLaVA-1.5, LLaVA-NeXT, Idefics3, SmolVLM. The processors of the first three are transformers' own;
SmolVLM's wants packages for video, so its image processor and its prompt function are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
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

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.image import Image
from chiasm.models.checkpoint import load_image_reader, save_checkpoint
from chiasm.models.clip import CLIPVisionConfig
from chiasm.models.decoder import DecoderConfig
from chiasm.models.idefics3 import (
    Idefics3,
    Idefics3Config,
    Idefics3VisionConfig,
    SmolVLMConfig,
    SmolVLMVisionConfig,
)
from chiasm.models.idefics3_reader import Idefics3Reader
from chiasm.models.llava import LLaVA, LLaVAConfig
from chiasm.models.llava_next import LLaVANeXT, LLaVANeXTConfig
from chiasm.models.llava_reader import LLaVANeXTReader, LLaVAReader
from chiasm.models.processor_files import ProcessorFiles, named_tokens
from chiasm.models.siglip import SigLIPVisionConfig

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
    "LLaVA-NeXT": (LLaVANeXTReader, lambda: llava_next(336, 14)),
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


def allowed(theirs: Theirs, size: tuple[int, int], tile: torch.Tensor) -> float:
    """1e-5; two grey levels where only the kept part of a very thin picture is scaled."""
    image_processor = theirs.processor.image_processor
    cropped = isinstance(image_processor, CLIPImageProcessorPil)
    thin = max(size) > 32 * min(size)
    return 2.01 / 255 / min(image_processor.image_std) if cropped and thin else 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_ids_and_pixels_equal_those_of_transformers(name: str) -> None:
    kind, make = SMALL[name]
    theirs = make()
    reader = kind.from_files(files(theirs))
    image_token = tokenizer().convert_tokens_to_ids("<image>")
    for size in SIZES:
        image = picture(size)
        expected = theirs.read("a <image>\nwhat?", [image])
        found = read(reader, "a <image>\nwhat?", [image])
        assert found.ids == expected.ids, size
        assert reader.count(*size) == found.ids.count(image_token), size
        (here,), (there,) = found.tiles, expected.tiles
        assert here.shape == there.shape, size
        assert here.dtype == torch.float32
        assert float((here - there).abs().max()) <= allowed(theirs, size, here), size


@pytest.mark.parametrize("name", SMALL)
def test_three_pictures_in_a_prompt(name: str) -> None:
    kind, make = SMALL[name]
    theirs = make()
    reader = kind.from_files(files(theirs))
    text = "first <image>, second <image><image>\nwhich?"
    pictures = [picture(size) for size in ((64, 48), (28, 28), (30, 90))]
    expected, found = theirs.read(text, pictures), read(reader, text, pictures)
    assert found.ids == expected.ids
    for here, there in zip(found.tiles, expected.tiles, strict=True):
        assert torch.allclose(here, there, atol=1e-5, rtol=0)


LARGE = [(width * 12 + 1, height * 12) for width, height in SIZES] + SIZES + [
    (1024, 1024), (336, 336), (672, 672), (1456, 364), (1457, 364), (364, 1456), (2048, 512),
    (2048, 513), (4096, 4096), (10000, 1), (1, 10000), (8000, 6000), (1920, 1080),
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_published_processors(name: str) -> None:
    kind, make = PUBLISHED[name]
    theirs = make()
    reader = kind.from_files(files(theirs))
    sizes = [(height, width) for width, height in LARGE]
    expected = theirs.processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    encode = tokenizer()
    for size, count in zip(LARGE, expected, strict=True):
        placeholder = reader.placeholder(*size)
        assert len(encode(placeholder)["input_ids"]) == count, size
        assert placeholder.count("<image>") == reader.count(*size), size


GOLDENS = {
    ("LLaVA-1.5", (1, 1)): 576,
    ("LLaVA-1.5", (1920, 1080)): 576,
    ("LLaVA-NeXT", (336, 336)): 1176,
    ("LLaVA-NeXT", (672, 672)): 2928,
    ("LLaVA-NeXT", (640, 480)): 2340,
    ("Idefics3-8B", (1024, 1024)): 2873,
    ("SmolVLM-256M", (1024, 1024)): 1088,
    ("SmolVLM-256M", (384, 384)): 1088,
}


@pytest.mark.parametrize(("name", "size"), GOLDENS)
def test_image_tokens_as_documented(name: str, size: tuple[int, int]) -> None:
    kind, make = PUBLISHED[name]
    assert kind.from_files(files(make())).count(*size) == GOLDENS[name, size]


def test_smolvlm_with_its_markers_as_documented() -> None:
    kind, make = PUBLISHED["SmolVLM-256M"]
    placeholder = kind.from_files(files(make())).placeholder(1024, 1024)
    assert len(tokenizer()(placeholder)["input_ids"]) == 1127


# Files ------------------------------------------------------------------------------------------

SAVED = [
    "LLaVA", "LLaVA, SigLIP", "LLaVA, padded to squares", "LLaVA-NeXT", "Idefics3",
    "Idefics3, not scaled", "SmolVLM",
]  # fmt: skip
MODEL_TYPES = {LLaVAReader: "llava", LLaVANeXTReader: "llava_next", Idefics3Reader: "idefics3"}


def network(name: str) -> Any:
    """The smallest network whose folder such a processor can stand in."""
    text = DecoderConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 1, "image_size": 28, "patch_size": 7}
    if name.startswith("Idefics3"):
        vision = Idefics3VisionConfig(**tower)
        return Idefics3(Idefics3Config(text_config=text, vision_config=vision))
    if name == "SmolVLM":
        vision = SmolVLMVisionConfig(**tower)
        return Idefics3(SmolVLMConfig(text_config=text, vision_config=vision))
    kind = SigLIPVisionConfig if "SigLIP" in name else CLIPVisionConfig
    entries = {"text_config": text, "vision_config": kind(**tower), "vision_feature_layer": -1}
    if name == "LLaVA-NeXT":
        grid = tuple(map(tuple, pinpoints(28)))
        return LLaVANeXT(LLaVANeXTConfig(**entries, image_grid_pinpoints=grid))
    return LLaVA(LLaVAConfig(**entries))


@pytest.mark.parametrize("name", SAVED)
def test_what_is_written_reads_alike_here_and_in_transformers(name: str, tmp_path: Path) -> None:
    kind, make = SMALL[name]
    theirs = make()
    reader = kind.from_files(files(theirs))
    save_checkpoint(tmp_path, network(name), reader)
    assert load_image_reader(tmp_path) == reader
    if isinstance(theirs, SmolVLM):
        reopened = SmolVLMImageProcessorPil.from_pretrained(tmp_path)
        stated = json.loads((tmp_path / "processor_config.json").read_text())
        again: Theirs = SmolVLM(reopened, stated["image_seq_len"])
    else:
        tokenizer().save_pretrained(tmp_path)
        again = type(theirs)(transformers.AutoProcessor.from_pretrained(tmp_path))
        assert type(again.processor) is type(theirs.processor)
    for size in ((64, 48), (30, 90)):
        expected = theirs.read("a <image>", [picture(size)])
        found = again.read("a <image>", [picture(size)])
        assert found.ids == expected.ids
        assert torch.equal(found.tiles[0], expected.tiles[0])


@pytest.mark.parametrize("name", [name for name in SAVED if name != "SmolVLM"])
def test_what_transformers_writes_is_read(name: str, tmp_path: Path) -> None:
    kind, make = SMALL[name]
    theirs = make()
    theirs.processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert load_image_reader(tmp_path) == kind.from_files(files(theirs))


def test_older_files_leave_it_to_the_network_how_many_tokens_a_tile_has(tmp_path: Path) -> None:
    clip_entries = CLIPImageProcessorPil(**clip(336)).to_dict()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(clip_entries))
    config = {"model_type": "llava", "vision_config": {"patch_size": 14}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_image_reader(tmp_path).count(640, 480) == 576

    siglip = {"patch_size": 14, "model_type": "siglip_vision_model"}
    config |= {"vision_config": siglip, "vision_feature_select_strategy": "full"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_image_reader(tmp_path).count(640, 480) == 576

    idefics3_entries = Idefics3ImageProcessorPil().to_dict()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(idefics3_entries))
    config = {"model_type": "idefics3", "scale_factor": 2}
    config["vision_config"] = {"image_size": 364, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_image_reader(tmp_path).count(1024, 1024) == 2873


def test_a_tokenizer_that_names_its_own_image_token_is_obeyed() -> None:
    entries = CLIPImageProcessorPil(**clip(28)).to_dict()
    stated = {"image_token": {"content": "<picture>"}, "extra_special_tokens": {"x_token": "<x>"}}
    reader = LLaVAReader.from_files(
        ProcessorFiles(entries, processor={"patch_size": 14}, tokens=named_tokens(stated))
    )
    assert reader.mark == "<picture>"
    assert reader.placeholder(5, 5) == "<picture>" * 4
    assert named_tokens(stated)["x_token"] == "<x>"


# Files that cannot be read ----------------------------------------------------------------------


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, network("LLaVA"))
    with pytest.raises(UnsupportedCheckpoint, match=r"holds no preprocessor_config\.json"):
        load_image_reader(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"patch_size": 14}')
    with pytest.raises(UnsupportedCheckpoint, match="no entry image_processor"):
        load_image_reader(tmp_path)


def test_a_network_that_reads_no_pictures_in_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UnsupportedCheckpoint, match="reads no pictures"):
        load_image_reader(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("idefics3", {"image_processor_type": "CLIPImageProcessor"}, "does not cut pictures"),
        ("idefics3", {"size": {"height": 9, "width": 9}}, "size must give a longest_edge"),
        ("idefics3", {"max_image_size": {"longest_edge": 0}}, "must be a positive number"),
        ("llava_next", {"image_grid_pinpoints": [[28, 50]]}, "must be multiples"),
        ("llava_next", {"image_grid_pinpoints": [28]}, "must be pairs"),
        ("llava", {"image_processor_type": "PixtralImageProcessor"}, "not known here"),
        ("llava", {"resample": 17}, "no filter"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(
    kind: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    entries = {
        "idefics3": {"image_processor_type": "Idefics3ImageProcessor"},
        "llava": clip(28, image_processor_type="CLIPImageProcessor"),
        "llava_next": clip(28, image_processor_type="LlavaNextImageProcessor"),
    }[kind]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "processor_config.json").write_text('{"patch_size": 14}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**entries, **change}))
    with pytest.raises(UnsupportedCheckpoint, match=said) as caught:
        load_image_reader(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({}, "patch_size must be a positive number"),
        ({"patch_size": 14, "vision_feature_select_strategy": "mean"}, "select_strategy is 'mean'"),
    ],
)
def test_a_processor_that_leaves_the_count_open_is_refused(
    stated: dict[str, Any], said: str
) -> None:
    entries = CLIPImageProcessorPil(**clip(28)).to_dict()
    with pytest.raises(UnsupportedCheckpoint, match=said):
        LLaVAReader.from_files(ProcessorFiles(entries, processor=stated))
