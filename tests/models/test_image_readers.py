"""Readers of pictures: against transformers' processors, their files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parity_processors
import pytest
import torch
import transformers
from parity_processors import (
    PUBLISHED,
    SIZES,
    SMALL,
    SmolVLM,
    Theirs,
    clip,
    files,
    picture,
    pinpoints,
    read,
    tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from chiasm.errors import UnsupportedCheckpoint
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


@pytest.mark.parametrize("name", SMALL)
def test_ids_and_pixels_equal_those_of_transformers(name: str) -> None:
    kind, make = SMALL[name]
    theirs = make()
    reader = kind.from_files(files(theirs))
    for size in SIZES:
        found = parity_processors.compare(reader, theirs, size)
        assert found.same_ids, size
        assert found.same_count, size
        assert found.same_tiles, size
        assert found.difference <= parity_processors.allowed(theirs, size), size


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
    ("LLaVA-NeXT-7B", (336, 336)): 1176,
    ("LLaVA-NeXT-7B", (672, 672)): 2928,
    ("LLaVA-NeXT-7B", (640, 480)): 2340,
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
        return Idefics3(Idefics3Config(text_config=text, vision_config=vision, image_token_id=7))
    if name == "SmolVLM":
        vision = SmolVLMVisionConfig(**tower)
        return Idefics3(SmolVLMConfig(text_config=text, vision_config=vision, image_token_id=7))
    kind = SigLIPVisionConfig if "SigLIP" in name else CLIPVisionConfig
    entries = {"text_config": text, "vision_config": kind(**tower), "vision_feature_layer": -1}
    entries["image_token_index"] = 7
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
