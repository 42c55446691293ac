"""What a plan says, against rules, prices and arithmetic by hand."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from chiasm.errors import InvalidRequest, UnknownModel
from chiasm.generation import ImagePart, Message, Request, TextPart, Tool, ToolCall
from chiasm.media.encoded import EncodedImage
from chiasm.operations import measured
from chiasm.operations.database import open_database
from chiasm.operations.ledger import Ledger
from chiasm.operations.plan import Picture, Planner
from chiasm.operations.tokens import rule_for
from chiasm.settings import ModelSettings, ProviderSettings, Settings
from tests.operations.entries import entry

FULL_HD = Picture(1920, 1080)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    folder = tmp_path_factory.mktemp("planner")
    settings = Settings(
        cache_dir=folder,
        data_dir=folder,
        providers={
            "work": ProviderSettings(kind="openai", models=("gpt-5-mini", "gpt-4*")),
            "cluster": ProviderSettings(kind="vllm", base_url="http://10.0.0.1"),
        },
        models={
            "eyes": ModelSettings(targets=("work/gpt-4o", "cluster/Qwen/Qwen2.5-VL-7B-Instruct"))
        },
    )
    return Planner(settings, seconds={"work/gpt-4o": 0.7}.get)


def request(*parts: TextPart | ImagePart, **more: object) -> Request:
    return Request((Message("user", parts),), **more)  # type: ignore[arg-type]


def photo(width: int, height: int, detail: str = "auto") -> ImagePart:
    encoded = EncodedImage(f"{width}x{height}".encode(), "a", "JPEG", (width, height))
    return ImagePart(encoded, detail)  # type: ignore[arg-type]


# Rows -------------------------------------------------------------------------------------------


def test_thirty_models_and_more_the_cheapest_first(planner: Planner) -> None:
    rows = planner.plan([FULL_HD], "What is in this picture?")
    assert len({row.target for row in rows}) >= 30
    priced = [row.cost for row in rows if row.cost is not None]
    assert priced == sorted(priced)
    assert [row.cost is None for row in rows] == sorted(row.cost is None for row in rows)
    for row in rows:
        assert row.read is not None, row.target
        assert row.source, row.target
        assert row.evidence in ("document", "bill", "code"), row.target


def test_a_row_says_what_rule_and_price_say(planner: Planner) -> None:
    row = planner.plan([FULL_HD, FULL_HD], models=["anthropic/claude-opus-4-7"], answer_tokens=200)[
        0
    ]
    assert [each.tokens for each in row.images] == [2691, 2691]  # Anthropic's own example
    assert row.image_tokens == 5382
    tokens = row.image_tokens + row.text_tokens
    assert row.cost == (Decimal(5) * tokens + Decimal(25) * 200) / 1_000_000
    assert row.context == 1_000_000
    assert row.fits_context
    assert row.vision_flops is None


def test_levels_of_detail(planner: Planner) -> None:
    def levels(*details: str) -> list[str]:
        found = planner.plan([FULL_HD], models=["openai/gpt-4o"], details=details or None)
        return sorted(row.detail for row in found)

    assert levels() == ["high", "low"]
    assert levels("low") == ["low"]
    assert levels("original") == ["auto"]  # a level that it does not have


def test_routes_mean_their_targets(planner: Planner) -> None:
    rows = planner.plan([FULL_HD], models=["eyes"], details=["high"])
    assert [row.target for row in rows] == ["work/gpt-4o", "cluster/Qwen/Qwen2.5-VL-7B-Instruct"]
    mine, cluster = rows
    assert (mine.seconds_to_first_token, mine.seconds_known) == (0.7, "measured")
    assert (cluster.seconds_to_first_token, cluster.seconds_known) == (None, None)
    assert cluster.cost is None  # nobody but its owner knows it
    assert cluster.vision_flops is not None
    assert cluster.vision_flops > 1e12
    assert "work/gpt-4*" not in {row.target for row in planner.plan([FULL_HD])}


def test_unknown_models_and_the_nearest(planner: Planner) -> None:
    with pytest.raises(UnknownModel, match=r"claude-opus-4-7"):
        planner.plan([FULL_HD], models=["anthropic/claude-opus-47"])


def test_what_a_vendor_refuses_is_in_the_row(planner: Planner) -> None:
    row = planner.plan([Picture(9000, 100)], models=["anthropic/claude-haiku-4-5"])[0]
    assert row.refusal is not None
    assert "8,000" in row.refusal
    assert row.cost is None
    assert row.images == ()
    many = planner.plan([Picture(10, 10)] * 700, models=["anthropic/claude-haiku-4-5"])[0]
    assert many.refusal is not None


def test_more_than_the_context(planner: Planner) -> None:
    row = planner.plan([Picture(1200, 1200)] * 90, models=["SmolVLM-256M-Instruct"])[0]
    assert row.fits_context is False


def test_pictures_that_come_again(planner: Planner) -> None:
    same, other = Picture(800, 600, digest="a"), Picture(400, 300, digest="b")
    pictures = [same, other, Picture(800, 600), same, same]
    assert [(each.picture, each.first) for each in planner.repeats(pictures)] == [(3, 0), (4, 0)]
    row = planner.plan(pictures, models=["anthropic/claude-haiku-4-5"])[0]
    assert len(row.images) == 5  # each is billed
    assert row.repeated == Decimal(2 * row.images[0].tokens) / 1_000_000


def test_a_budget_makes_the_pictures_smaller(planner: Planner) -> None:
    rows = planner.plan([Picture(4000, 3000)], fit_tokens=500)
    taken = [row for row in rows if row.refusal is None]
    assert len(taken) > 20
    for row in taken:
        assert row.image_tokens <= 500, row.target
        assert max(row.sent[0]) <= 4000
    for row in rows:
        if row.refusal is not None:
            assert "at least" in row.refusal, row.target


def test_text_alone(planner: Planner) -> None:
    for row in planner.plan([], "What is a chiasm?", models=["openai/gpt-4o", "work/own"]):
        assert row.image_tokens == 0
        assert row.text_tokens > 4
        assert row.refusal is None


# Estimates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["openai/gpt-4o", "work/gpt-5-mini", "gemini/gemini-2.5-flash", "default-vlm"]
)
def test_an_estimate_is_what_the_plan_says(planner: Planner, target: str) -> None:
    asked = request(TextPart("What is this?"), photo(1920, 1080), max_tokens=77)
    row = planner.plan(
        [FULL_HD], "What is this?", models=[target], details=["auto"], answer_tokens=77
    )[0]
    estimate = planner.estimate(target, asked)
    assert estimate.text_tokens == row.text_tokens
    assert estimate.image_tokens == row.image_tokens
    assert estimate.cost == row.cost
    assert estimate.known
    assert planner.count(target, asked) == row.text_tokens + row.image_tokens


def test_every_answer_counts_and_so_do_tools(planner: Planner) -> None:
    plain = planner.estimate("openai/gpt-4o", request(TextPart("x"), max_tokens=50))
    assert (
        planner.estimate(
            "openai/gpt-4o", request(TextPart("x"), max_tokens=50, choices=3)
        ).answer_tokens
        == 3 * plain.answer_tokens
    )
    tool = Tool("look", "Look closely at a part of the picture.", {"type": "object"})
    with_tool = planner.estimate("openai/gpt-4o", request(TextPart("x"), tools=(tool,)))
    assert with_tool.text_tokens > plain.text_tokens + 10
    call = Message("assistant", (ToolCall("1", "look", '{"left": 10, "top": 20}'),))
    talk = Request((Message("user", (TextPart("x"),)), call))
    assert planner.estimate("openai/gpt-4o", talk).text_tokens > plain.text_tokens + 5


def test_a_picture_at_another_size_and_level(planner: Planner) -> None:
    rule = rule_for("gpt-4o")
    assert rule is not None
    low = planner.estimate("openai/gpt-4o", request(photo(4000, 3000, "low")))
    assert low.image_tokens == rule.cost(4000, 3000, "low").tokens
    part = ImagePart(photo(4000, 3000).image, "high", (400, 300))
    assert planner.estimate("openai/gpt-4o", request(part)).image_tokens == 85 + 170


def test_without_a_rule_pictures_are_counted_high(planner: Planner) -> None:
    estimate = planner.estimate("work/own-model", request(photo(100, 100)))
    assert not estimate.known
    assert estimate.image_tokens > 1000
    assert estimate.cost is None


def test_a_refused_picture_is_an_error_of_counting_alone(planner: Planner) -> None:
    asked = request(photo(9000, 9))
    assert not planner.estimate("Qwen2.5-VL-7B-Instruct", asked).known
    with pytest.raises(InvalidRequest):
        planner.count("Qwen2.5-VL-7B-Instruct", asked)


# The ledger -------------------------------------------------------------------------------------


def test_seconds_by_the_ledger(url: str, tmp_path: Path) -> None:
    database = open_database(url, tmp_path)
    ledger = Ledger(database)
    for provider, model, times in (
        ("openai", "gpt-5-mini", (0.5, 0.6, 0.9)),
        ("", "default-vlm", (2.0, 3.0, 4.0, 90.0)),
        ("openai", "gpt-4o", (1.0, 1.0)),  # too few
    ):
        for seconds in times:
            ledger.put(
                entry(
                    provider=provider,
                    model=model,
                    status=200,
                    images=1,
                    seconds_to_first_token=seconds,
                )
            )
    ledger.put(entry(status=503, images=1, seconds_to_first_token=9.0))
    ledger.put(entry(status=200, images=0, seconds_to_first_token=0.1))
    assert ledger.flush()
    ledger.close()
    database.close()
    found = measured.first_token_seconds(url, tmp_path)
    assert found == {"openai/gpt-5-mini": 0.6, "default-vlm": 3.5}


def test_no_ledger_is_made_for_a_plan(tmp_path: Path) -> None:
    assert measured.first_token_seconds("", tmp_path / "none") == {}
    assert list(tmp_path.iterdir()) == []
