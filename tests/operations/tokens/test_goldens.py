"""What documents state and what was billed, each by its source."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

import pytest

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens import ImageRule, limits_for, rule_for, rules_for

Size = tuple[int, int]


class Golden(NamedTuple):
    """size: what the picture is resized to, where the source says it."""

    source: str
    model: str
    picture: Size
    tokens: int
    size: Size | None = None
    detail: str = "auto"


GUIDE = "OpenAI guide"
BILL = "OpenAI bill"
CLAUDE = "Claude document"
GEMINI = "Gemini document"
COUNTED = "Gemini countTokens"
CONFIG = "published processor"

GOLDENS = [
    # Tiles: the guide of every age.
    Golden(GUIDE, "gpt-4o", (1024, 1024), 765, (768, 768)),
    Golden(GUIDE, "gpt-4o", (2048, 4096), 1105, (768, 1536)),
    Golden(GUIDE, "gpt-4o", (4096, 8192), 85, detail="low"),
    Golden(GUIDE, "gpt-4o", (600, 1000), 765, (600, 1000)),  # "Smaller images are not enlarged"
    Golden(GUIDE, "gpt-4.1", (1024, 1024), 765),
    Golden(GUIDE, "gpt-4.5-preview", (1024, 1024), 765),
    Golden(GUIDE, "gpt-5", (1024, 1024), 70 + 4 * 140),
    Golden(GUIDE, "gpt-5-chat-latest", (1024, 1024), 70, detail="low"),
    Golden(GUIDE, "gpt-5.1", (2048, 4096), 70 + 6 * 140),
    Golden(GUIDE, "gpt-4o-mini", (1024, 1024), 2833 + 4 * 5667),
    Golden(GUIDE, "gpt-4o-mini", (1024, 1024), 2833, detail="low"),
    Golden(GUIDE, "o1", (1024, 1024), 75 + 4 * 150),
    Golden(GUIDE, "o1-pro", (1024, 1024), 75, detail="low"),
    Golden(GUIDE, "o3", (2048, 4096), 75 + 6 * 150),
    Golden(GUIDE, "computer-use-preview", (1024, 1024), 65 + 4 * 129),
    # Bills, less the text's tokens: 128×64 with five words, May 2025; 2049×513 and 2050×513 in an
    # edge case of rounding, community.openai.com 1281361.
    Golden(BILL, "gpt-4o-2024-11-20", (128, 64), 267 - 12),
    Golden(BILL, "gpt-4o-2024-11-20", (128, 64), 97 - 12, detail="low"),
    Golden(BILL, "gpt-4o-mini-2024-07-18", (128, 64), 8512 - 12),
    Golden(BILL, "o3-2025-04-16", (128, 64), 236 - 11),
    Golden(BILL, "gpt-4.1", (2049, 513), 1453 - 8),
    Golden(BILL, "gpt-4.1", (2050, 513), 773 - 8),
    # Patches.
    Golden(GUIDE, "gpt-5.4", (1024, 1024), 1229, (1024, 1024)),
    Golden(GUIDE, "gpt-5.4", (2048, 2048), 3000, (1600, 1600)),
    Golden(GUIDE, "gpt-5.4", (2048, 2048), 4916, (2048, 2048), detail="low"),  # 4,096 patches
    Golden(GUIDE, "gpt-5.4", (6000, 1000), 7220, (6000, 1000), detail="original"),  # 188·32
    Golden(GUIDE, "gpt-5.2", (2048, 2048), 4916),
    Golden(GUIDE, "gpt-4.1-mini", (1024, 1024), 1659),
    Golden(GUIDE, "gpt-4.1-nano", (1024, 1024), 2520),
    Golden(GUIDE, "o4-mini", (1024, 1024), 1762),
    Golden(GUIDE, "gpt-5.5", (5000, 5000), 12_000, (3200, 3200)),  # `auto` is `original`
    Golden(GUIDE, "gpt-5.6-sol", (4800, 6400), 36_000, (4800, 6400)),  # 30,000 patches
    Golden(GUIDE, "gpt-5.6-sol", (4800, 6400), 231, (384, 512), detail="low"),  # 12·16
    Golden(BILL, "gpt-5-mini", (256, 256), 77),
    Golden(BILL, "gpt-5-mini", (512, 512), 308),
    Golden(BILL, "gpt-5-mini", (768, 1024), 922),
    Golden(BILL, "gpt-5-mini", (1280, 720), 1104),
    Golden(BILL, "gpt-5-mini", (1024, 1024), 1229),
    Golden(BILL, "gpt-5-mini", (2048, 768), 1844),
    Golden(BILL, "gpt-5-mini", (1600, 1600), 1826, (1248, 1248)),  # 1,521 patches
    Golden(BILL, "gpt-5-nano", (1800, 1200), 2304),
    Golden(BILL, "gpt-5.4-mini", (1600, 1600), 3000),
    Golden(BILL, "o4-mini-2025-04-16", (128, 64), 26 - 12),
    Golden(BILL, "gpt-4.1-mini-2025-04-14", (128, 64), 26 - 13),
    Golden(BILL, "gpt-4.1-nano-2025-04-14", (128, 64), 33 - 13),
    # Claude: "Resolution and token cost", and the example of the resize.
    *(
        Golden(CLAUDE, "claude-sonnet-4-5", picture, tokens, size)
        for picture, tokens, size in (
            ((200, 200), 64, (200, 200)),
            ((1000, 1000), 1296, (1000, 1000)),
            ((1092, 1092), 1521, (1092, 1092)),
            ((1920, 1080), 1560, (1456, 819)),
            ((2000, 1500), 1564, None),  # the table's size is not its own implementation's
            ((3840, 2160), 1560, (1456, 819)),
            ((1075, 1520), 33 * 47, (924, 1307)),
        )
    ),
    *(
        Golden(CLAUDE, "claude-opus-4-7", picture, tokens, size)
        for picture, tokens, size in (
            ((200, 200), 64, (200, 200)),
            ((1000, 1000), 1296, (1000, 1000)),
            ((1092, 1092), 1521, (1092, 1092)),
            ((1920, 1080), 2691, (1920, 1080)),
            ((2000, 1500), 3888, (2000, 1500)),
            ((3840, 2160), 4784, (2576, 1449)),
            ((1075, 1520), 2145, (1075, 1520)),
        )
    ),
    # Gemini.
    Golden(GEMINI, "gemini-2.0-flash", (384, 384), 258),
    Golden(GEMINI, "gemini-2.0-flash", (960, 540), 6 * 258),
    Golden(GEMINI, "gemini-2.5-flash", (300, 200), 258),
    Golden(GEMINI, "gemini-2.5-flash", (960, 540), 6 * 258),
    Golden(GEMINI, "gemini-2.5-flash", (960, 540), 64, detail="low"),
    *(Golden(COUNTED, "gemini-3.5-flash-lite", (side, side), 1089)
      for side in (64, 256, 384, 385, 512, 1024)),
    Golden(COUNTED, "gemini-3.5-flash-lite", (1024, 512), 1081),
    Golden(COUNTED, "gemini-3.5-flash-lite", (2048, 512), 1056),
    Golden("Gemini bill", "gemini-3-pro-preview", (800, 600), 266, detail="low"),
    Golden("Gemini bill", "gemini-3-pro-preview", (800, 600), 1064, detail="high"),
    Golden("Gemini bill", "gemini-3-pro-preview", (800, 600), 2160, detail="original"),
    # Open models.
    Golden(CONFIG, "llava-hf/llava-1.5-7b-hf", (1, 1), 576),
    Golden(CONFIG, "llava-hf/llava-1.5-7b-hf", (1920, 1080), 576),
    Golden(CONFIG, "llava-hf/llava-v1.6-mistral-7b-hf", (336, 336), 1176),
    Golden(CONFIG, "llava-hf/llava-v1.6-mistral-7b-hf", (672, 672), 2928),
    Golden(CONFIG, "llava-hf/llava-v1.6-mistral-7b-hf", (640, 480), 2340),
    Golden(CONFIG, "Qwen/Qwen2-VL-7B-Instruct", (224, 224), 64),
    Golden(CONFIG, "Qwen/Qwen2.5-VL-7B-Instruct", (1920, 1080), 2691, (1932, 1092)),
    Golden(CONFIG, "Qwen/Qwen3-VL-8B-Instruct", (1024, 1024), 1024),
    Golden(CONFIG, "Qwen/Qwen3-VL-8B-Instruct", (1920, 1080), 2040, (1920, 1088)),
    Golden(CONFIG, "HuggingFaceM4/Idefics3-8B-Llama3", (1024, 1024), 2873, (1456, 1456)),
    Golden(CONFIG, "HuggingFaceTB/SmolVLM-256M-Instruct", (1024, 1024), 1088, (2048, 2048)),
    Golden(CONFIG, "HuggingFaceTB/SmolVLM-500M-Instruct", (384, 384), 1088, (2048, 2048)),
    Golden(CONFIG, "OpenGVLab/InternVL3-8B", (448, 448), 256),
    Golden(CONFIG, "OpenGVLab/InternVL3-8B", (896, 448), 768),
    Golden(CONFIG, "OpenGVLab/InternVL3-8B", (1920, 1080), 2304),
    Golden(CONFIG, "OpenGVLab/InternVL3-8B", (800, 600), 3328),
    Golden(CONFIG, "google/paligemma2-3b-mix-224", (640, 480), 256, (224, 224)),
    Golden(CONFIG, "google/paligemma2-3b-mix-448", (640, 480), 1024, (448, 448)),
    Golden(CONFIG, "google/paligemma-3b-pt-896", (640, 480), 4096, (896, 896)),
    Golden(CONFIG, "mistralai/Pixtral-12B-2409", (1024, 1024), 4160),
    Golden(CONFIG, "mistralai/Pixtral-12B-2409", (512, 512), 1056),
    Golden(CONFIG, "meta-llama/Llama-4-Scout-17B-16E-Instruct", (336, 336), 144),
    Golden(CONFIG, "meta-llama/Llama-4-Scout-17B-16E-Instruct", (1344, 1344), 17 * 144),
    Golden(CONFIG, "default-vlm", (640, 480), 35, (224, 224)),
]  # fmt: skip


def _id(golden: Golden) -> str:
    detail = "" if golden.detail == "auto" else f" {golden.detail}"
    width, height = golden.picture
    return f"{golden.source}: {golden.model} {width}x{height}{detail}"


def known(model: str) -> ImageRule:
    rule = rule_for(model)
    assert rule is not None, model
    return rule


@pytest.mark.parametrize("golden", GOLDENS, ids=_id)
def test_as_its_source_says(golden: Golden) -> None:
    cost = known(golden.model).cost(*golden.picture, golden.detail)
    assert cost.tokens == golden.tokens
    if golden.size is not None:
        assert cost.size == golden.size


# With a budget of 1,536 patches, before the multiplier: the guide's worked examples.
@pytest.mark.parametrize(
    ("picture", "patches", "size"),
    [
        pytest.param((1024, 1024), 1024, (1024, 1024), id="OpenAI guide: 1024x1024"),
        pytest.param((1800, 2400), 1452, (1056, 1408), id="OpenAI guide: 1800x2400"),
        # 2,498 tokens were billed at 1.62: 64·24 patches and the text. A budget alone, without the
        # resize to 2,048 first, gives 1,449 (community.openai.com 1281361).
        pytest.param((4000, 1474), 1536, (2048, 755), id="OpenAI bill: 4000x1474"),
    ],
)
def test_patches_before_the_multiplier(picture: Size, patches: int, size: Size) -> None:
    for model in ("gpt-5-mini", "gpt-5-nano", "o4-mini", "gpt-4.1-nano"):
        cost = known(model).cost(*picture)
        assert cost.grid is not None
        assert cost.grid[0] * cost.grid[1] == patches
        assert cost.size == size


def test_multipliers_round_up_exactly() -> None:
    """1.2 × 5 is 6, though it is a little more in binary; 1.2 × 64 is 77."""
    rule = known("gpt-5-mini")
    assert [rule.cost(32 * n, 32).tokens for n in (1, 2, 3, 4, 5, 10)] == [2, 3, 4, 5, 6, 12]
    assert rule.cost(32 * 25, 32 * 4).tokens == 120


def test_gemini_3s_document_states_the_most() -> None:
    grid, document = rules_for("gemini-3-pro-preview")
    assert (grid.evidence, document.evidence) == ("bill", "document")
    for detail, most in (("low", 280), ("high", 1120), ("original", 2240)):
        assert document.cost(4000, 3000, detail).tokens == most
        assert all(
            0.85 * most < grid.cost(*size, detail).tokens <= most
            for size in ((64, 64), (4000, 3000), (1920, 1080), (1000, 3000))
        )


def test_smolvlm_with_its_markers() -> None:
    cost = known("SmolVLM-256M-Instruct").cost(1024, 1024)
    assert (cost.tokens, cost.tokens + cost.markers, cost.tiles) == (1088, 1127, 17)


def test_qwens_class_and_published_file_differ() -> None:
    published, default = rules_for("Qwen/Qwen2-VL-7B-Instruct")
    assert (published.cost(1920, 1080).tokens, default.cost(1920, 1080).tokens) == (2691, 1222)
    assert published.cost(224, 224).tokens == default.cost(224, 224).tokens == 64


def test_openais_spring() -> None:
    then = rule_for("gpt-5-mini", as_of=date(2026, 5, 1))
    assert then is not None
    assert then.cost(1024, 1024).tokens == 1659  # 1.62
    mini = rule_for("gpt-4.1-mini", as_of=date(2026, 5, 1))
    assert mini is not None
    assert mini.cost(1800, 2400).tokens == 2353  # 1,452 × 1.62
    assert known("gpt-4.1-mini").cost(1800, 2400).tokens == 4977  # 48·64 × 1.62


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "picture", "why"),
    [
        ("claude-opus-4-7", (8001, 10), "8,000"),
        ("gpt-5.6-sol", (4801, 6400), "30,000 patches"),
        ("gpt-6-astra", (6048, 6048), "30,000 patches"),  # 35,721, reported
        ("Qwen3-VL-8B-Instruct", (2010, 10), "200 times"),
        ("pixtral-12b", (3000, 1), "too thin"),
        ("gpt-4o", (0, 10), "is none"),
    ],
)
def test_what_a_vendor_refuses_is_refused(model: str, picture: Size, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        known(model).cost(*picture)
    assert caught.value.http_status == 400


def test_one_size_less_is_taken() -> None:
    assert known("claude-opus-4-7").cost(8000, 10).tokens == 92
    assert known("gpt-5.6-sol").cost(4800, 6400).grid == (150, 200)
    assert known("Qwen3-VL-8B-Instruct").cost(2000, 10).tokens > 0
    assert known("gpt-5.6-sol").cost(6048, 6048, "high").size == (1600, 1600)


def test_a_detail_that_a_model_has_not_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="high, low") as caught:
        known("gpt-4o").cost(10, 10, "original")
    assert caught.value.param == "detail"
    with pytest.raises(InvalidRequest):
        known("claude-opus-4-7").cost(10, 10, "high")


# Limits of a request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "images"),
    [("claude-haiku-4-5", 100), ("claude-opus-4-7", 600), ("anthropic/claude-sonnet-4-6", 600),
     ("gpt-5-mini", 1500), ("gemini-2.5-flash", 3600)],
)  # fmt: skip
def test_pictures_a_request(model: str, images: int) -> None:
    limits = limits_for(model)
    assert limits is not None
    assert limits.images == images
    assert limits.refusal([(8, 8)] * images) is None
    assert f"{images:,}" in (limits.refusal([(8, 8)] * (images + 1)) or "")


def test_claudes_limits() -> None:
    limits = limits_for("claude-opus-4-7")
    assert limits is not None
    assert limits.refusal([(8000, 10)] * 20) is None
    assert "8,001" in (limits.refusal([(10, 10), (8001, 10)]) or "")
    assert "2,000" in (limits.refusal([(10, 10)] * 20 + [(2001, 10)]) or "")
    assert limits.refusal([(2000, 2000)] * 21) is None
    assert (limits.image_bytes, limits.in_base64) == (10 * 2**20, True)
    assert limits.request_bytes == 32 * 2**20


def test_nobodys_limits_are_not_known() -> None:
    assert limits_for("Qwen/Qwen3-VL-8B-Instruct") is None
