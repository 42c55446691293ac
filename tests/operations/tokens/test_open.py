"""Open models against the published processors, on hundreds of sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from chiasm.errors import InvalidRequest
from chiasm.models.idefics3_reader import Idefics3Reader
from chiasm.models.small_vlm import SHIPPED, SmallVLMConfig
from chiasm.operations.tokens import ImageRule, rule_for, rule_from_config, rules_for
from tests.models.parity_processors import PUBLISHED, files
from tests.operations.tokens import oracles
from tests.operations.tokens.sizes import sizes

Size = tuple[int, int]
SIZES = sizes()
NOT_TOO_THIN = [size for size in SIZES if max(size) <= 200 * min(size)]


def known(model: str) -> ImageRule:
    rule = rule_for(model)
    assert rule is not None
    return rule


def test_there_are_sizes_enough() -> None:
    assert len(NOT_TOO_THIN) >= 200
    assert (1, 1) in SIZES
    assert max(max(size) / min(size) for size in NOT_TOO_THIN) == 200


# LLaVA, Idefics3, SmolVLM: also against the readers of this package -------------------------------

READERS = {
    "LLaVA-1.5": "llava-1.5-7b-hf",
    "LLaVA-NeXT-7B": "llava-v1.6-mistral-7b-hf",
    "Idefics3-8B": "Idefics3-8B-Llama3",
    "SmolVLM-256M": "SmolVLM-256M-Instruct",
    "SmolVLM-2.2B": "SmolVLM-Instruct",
}


@pytest.mark.parametrize("name", READERS)
def test_counts_are_the_processors_and_our_own_readers(name: str) -> None:
    kind, make = PUBLISHED[name]
    theirs = make()
    reader, rule = kind.from_files(files(theirs)), known(READERS[name])
    asked = [(height, width) for width, height in SIZES]
    expected = theirs.processor._get_num_multimodal_tokens(image_sizes=asked).num_image_tokens
    for size, tokens in zip(SIZES, expected, strict=True):
        cost = rule.cost(*size)
        assert cost.tokens + cost.markers == tokens, size
        assert cost.tokens == reader.count(*size), size
        if isinstance(reader, Idefics3Reader):
            rows, columns = reader.grid(*size)
            assert cost.grid == ((columns, rows) if rows else (1, 1)), size
            assert cost.tiles == rows * columns + 1, size


def test_sizes_of_llava_next() -> None:
    rule = known("llava-v1.6-mistral-7b-hf")
    for size in SIZES:
        expected = oracles.next_size(size, rule.constants["resolutions"])
        assert rule.cost(*size).size == expected, size


def test_the_shipped_model() -> None:
    config = SmallVLMConfig.read(json.loads((SHIPPED / "config.json").read_text()))
    for size in ((1, 1), (640, 480), (4000, 30)):
        cost = known("default-vlm").cost(*size)
        assert cost.tokens == config.projector.tokens
        assert cost.size == (config.side, config.side)
        assert cost.tiles == 5


# Qwen -------------------------------------------------------------------------------------------

QWEN = {
    "published": (lambda: rules_for("Qwen2.5-VL-7B-Instruct")[0], 28, 3136, 12845056,
                  lambda: oracles.qwen2(3136, 12845056)),
    "defaults": (lambda: rules_for("Qwen2.5-VL-7B-Instruct")[1], 28, 56 * 56, 28 * 28 * 1280,
                 oracles.qwen2_default),
    "third": (lambda: known("Qwen3-VL-8B-Instruct"), 32, 65536, 16777216,
              lambda: oracles.qwen3(65536, 16777216)),
}  # fmt: skip


@pytest.mark.parametrize("name", QWEN)
def test_qwen(name: str) -> None:
    make_rule, step, least, most, make_processor = QWEN[name]
    rule, processor = make_rule(), make_processor()
    for size in NOT_TOO_THIN:
        cost = rule.cost(*size)
        assert cost.tokens == oracles.count(processor, size), size
        assert cost.size == oracles.qwen_size(size, step, least, most), size
        assert cost.markers == 2  # the template's
    for size in set(SIZES) - set(NOT_TOO_THIN):
        with pytest.raises(InvalidRequest, match="200 times"):
            rule.cost(*size)
        with pytest.raises(ValueError, match="200"):
            oracles.count(processor, size)


# InternVL, PaliGemma, Pixtral, Llama 4, Gemma 4 --------------------------------------------------


def test_internvl() -> None:
    rule, processor = known("InternVL3-8B"), oracles.internvl()
    for size in SIZES:
        cost = rule.cost(*size)
        assert cost.tokens + cost.markers == oracles.count(processor, size), size
        columns, rows = oracles.internvl_grid(size)
        assert (cost.grid, cost.size) == ((columns, rows), (columns * 448, rows * 448)), size


@pytest.mark.parametrize("side", [224, 448, 896])
def test_paligemma(side: int) -> None:
    rule = known(f"google/paligemma2-3b-pt-{side}")
    for size in SIZES[:20]:
        cost = rule.cost(*size)
        assert cost.tokens == oracles.count(oracles.paligemma(side), size)
        assert cost.size == (side, side)


@pytest.mark.parametrize(
    ("model", "longest", "patch"),
    [("pixtral-12b", 1024, 16), ("Mistral-Small-3.1-24B-Instruct-2503", 1540, 28)],
)
def test_pixtral(model: str, longest: int, patch: int) -> None:
    rule, refused = known(model), 0
    for size in SIZES:
        width, height = oracles.pixtral_size(size, longest, patch)
        if not width or not height:
            refused += 1
            with pytest.raises(InvalidRequest, match="too thin"):
                rule.cost(*size)
            continue
        cost = rule.cost(*size)
        assert cost.size == (width, height), size
        # A token for each patch and one at the end of each row, as the processor writes them.
        rows = [["[IMG]"] * (width // patch) + ["[IMG_BREAK]"]] * (height // patch)
        assert cost.tokens == sum(map(len, rows)), size
    assert refused


def test_llama4() -> None:
    rule = known("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    for size in SIZES:
        columns, rows = oracles.llama4_canvas(size)
        cost = rule.cost(*size)
        assert cost.grid == (columns, rows), size
        written = oracles.llama4_prompt(columns, rows)
        assert cost.tokens == written.count("<|patch|>"), size
        assert cost.tokens + cost.markers == written.count("<|"), size
        assert cost.size == oracles.llama4_size(size, columns, rows), size


@pytest.mark.parametrize("most", [1, 5, 12])
def test_llama4_with_fewer_tiles(most: int) -> None:
    rule = rule_from_config({"model_type": "llama4"}, {"max_patches": most})
    assert rule is not None
    for size in SIZES:
        assert rule.cost(*size).grid == oracles.llama4_canvas(size, most), size


@pytest.mark.parametrize(("detail", "tokens"), [("low", 280), ("high", 1120)])
def test_the_grid_of_gemini_3_is_computed_as_gemma_4s(detail: str, tokens: int) -> None:
    rule = known("gemini-3-pro-preview")
    for size in SIZES:
        cost = rule.cost(*size, detail)
        assert cost.size == oracles.grid_size(size, tokens), size
        assert cost.tokens == cost.size[0] // 48 * (cost.size[1] // 48) <= tokens, size


def test_gemma_4_by_its_own_files() -> None:
    processor = oracles.gemma4()
    rule = rule_from_config({"model_type": "gemma4"}, processor.image_processor.to_dict())
    assert rule is not None
    for size in SIZES:
        assert rule.cost(*size).tokens == oracles.count(processor, size), size
        assert rule.cost(*size).markers == 2


# Rules from configurations ------------------------------------------------------------------------


def _clip(side: int) -> dict[str, Any]:
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square).to_dict()


def _edges(longest: int, tile: int) -> dict[str, Any]:
    sizes_ = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}}
    return Idefics3ImageProcessorPil(**sizes_).to_dict()


def _squares(side: int) -> dict[str, Any]:
    entries: dict[str, Any] = SiglipImageProcessorPil(
        size={"height": side, "width": side}
    ).to_dict()
    return entries


def _pixels(least: int, most: int, **entries: int) -> dict[str, Any]:
    bounds = {"shortest_edge": least, "longest_edge": most}
    return Qwen2VLImageProcessorPil(size=bounds, **entries).to_dict()


CONFIGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "llava": (lambda: transformers.LlavaConfig(), _clip(336), "llava-1.5-7b-hf"),
    "llava next": (
        lambda: transformers.LlavaNextConfig(),
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ).to_dict(),
        "llava-v1.6-mistral-7b-hf",
    ),
    "qwen 2.5": (
        lambda: transformers.Qwen2_5_VLConfig(),
        _pixels(3136, 12845056),
        "Qwen2.5-VL-7B-Instruct",
    ),
    "qwen 2, older file": (
        lambda: transformers.Qwen2VLConfig(),
        {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
        "Qwen2-VL-7B-Instruct",
    ),
    "qwen 3": (
        lambda: transformers.Qwen3VLConfig(),
        _pixels(65536, 16777216, patch_size=16),
        "Qwen3-VL-8B-Instruct",
    ),
    "idefics3": (
        lambda: transformers.Idefics3Config(
            vision_config={"image_size": 364, "patch_size": 14, "model_type": "idefics3_vision"}
        ),
        _edges(1456, 364),
        "Idefics3-8B-Llama3",
    ),
    "smolvlm": (
        lambda: transformers.SmolVLMConfig(
            vision_config={"image_size": 512, "patch_size": 16, "model_type": "smolvlm_vision"},
            scale_factor=4,
        ),
        _edges(2048, 512),
        "SmolVLM-256M-Instruct",
    ),
    "internvl": (
        lambda: transformers.InternVLConfig(),
        GotOcr2ImageProcessorPil(
            size={"height": 448, "width": 448}, crop_to_patches=True
        ).to_dict(),
        "InternVL3-8B-hf",
    ),
    "paligemma": (
        lambda: transformers.PaliGemmaConfig(vision_config={"image_size": 448, "patch_size": 14}),
        {**_squares(448), "image_seq_length": 1024},
        "paligemma2-3b-mix-448",
    ),
    "pixtral": (
        lambda: transformers.LlavaConfig(vision_config=transformers.PixtralVisionConfig()),
        PixtralImageProcessorPil().to_dict(),
        "pixtral-12b",
    ),
    "mistral 3": (
        lambda: transformers.Mistral3Config(),
        PixtralImageProcessorPil(
            size={"longest_edge": 1540}, patch_size={"height": 14, "width": 14}
        ).to_dict(),
        "mistral-small-3.1-24b-instruct",
    ),
    "llama 4": (
        lambda: transformers.Llama4Config(vision_config={"image_size": 336, "patch_size": 14}),
        {"size": {"height": 336, "width": 336}, "max_patches": 16},
        "llama-4-scout-17b-16e-instruct",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoints_own_files_give_the_published_rule(name: str) -> None:
    make, preprocessor, model = CONFIGS[name]
    config = json.loads(json.dumps(make().to_dict(), default=str))
    rule = rule_from_config(config, preprocessor)
    assert rule is not None
    assert rule.evidence == "code"
    for size in NOT_TOO_THIN[::3]:
        try:
            expected = known(model).cost(*size)
        except InvalidRequest:
            continue
        assert rule.cost(*size) == expected, size


def test_the_shipped_models_own_file() -> None:
    config = json.loads((SHIPPED / "config.json").read_text())
    rule = rule_from_config(config, {})
    assert rule is not None
    assert rule.cost(640, 480) == known("default-vlm").cost(640, 480)


def test_files_since_transformers_5() -> None:
    """One processor_config.json, with the image processor's entries in it."""
    config, entries, _ = CONFIGS["smolvlm"]
    nested = {"image_seq_len": 81, "image_processor": entries}
    rule = rule_from_config(config().to_dict(), nested)
    assert rule is not None
    assert rule.cost(1024, 1024).tokens == 17 * 81


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "bert"},
        {"model_type": "llava_next", "image_grid_pinpoints": "many"},
        {"model_type": "qwen2_vl", "vision_config": {"patch_size": "wide"}},
        {"model_type": "internvl", "vision_config": {"patch_size": 0}},
        {"model_type": ["llava"]},
    ],
)
def test_what_is_not_understood_has_no_rule(config: dict[str, Any]) -> None:
    assert rule_from_config(config, {}) is None


def test_two_checkpoints_of_a_kind_have_rules_of_two_names() -> None:
    """Whoever remembers costs by a rule's name must not mix them."""
    first = rule_from_config({"model_type": "qwen2_vl"}, {"max_pixels": 1_000_000})
    second = rule_from_config({"model_type": "qwen2_vl"}, {"max_pixels": 2_000_000})
    assert first is not None
    assert second is not None
    assert first.name != second.name
