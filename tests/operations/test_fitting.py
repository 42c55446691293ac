"""Several pictures at one scale, against every scale there is; and budgets of requests."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import InvalidRequest, Unaffordable, Unsupported
from chiasm.generation import ImagePart, Message, Request, TextPart, ToolResult
from chiasm.media.encoded import EncodedImage
from chiasm.operations.fitting import Room, TooMuch, fit_all
from chiasm.operations.plan import DEFAULT_ANSWER, Planner
from chiasm.operations.prices import Tokens
from chiasm.operations.tokens import ImageRule, fit, rule_for
from chiasm.settings import ModelSettings, PriceSettings, Settings

MODELS = ["gpt-4o", "gpt-5-mini", "claude-haiku-4-5", "gemini-2.0-flash", "InternVL3-8B-hf",
          "SmolVLM-256M-Instruct", "Qwen2.5-VL-7B-Instruct", "pixtral-12b"]  # fmt: skip
Size = tuple[int, int]


def known(model: str) -> ImageRule:
    rule = rule_for(model)
    assert rule is not None
    return rule


def at_scale(sizes: list[Size], long: int) -> list[Size]:
    """The sizes when the longest of their sides is so long, as the docstring of `fit` says it."""
    longest = max(max(size) for size in sizes)
    scaled = []
    for width, height in sizes:
        side = max(1, round(max(width, height) * long / longest))
        other = max(1, round(side * min(width, height) / max(width, height)))
        scaled.append((side, other) if width >= height else (other, side))
    return scaled


def large_enough(scaled: list[Size], sizes: list[Size]) -> bool:
    """No shorter side is scaled below 16 pixels."""
    return all(min(now) >= min(16, *before) for now, before in zip(scaled, sizes, strict=True))


def total(rule: ImageRule, sizes: list[Size], *, markers: bool) -> int | None:
    try:
        costs = [rule.cost(*size) for size in sizes]
    except InvalidRequest:
        return None
    return sum(cost.tokens + (cost.markers if markers else 0) for cost in costs)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3),
    share=st.floats(0.01, 1.1),
    markers=st.booleans(),
)
def test_the_largest_common_scale(
    model: str, sizes: list[Size], share: float, markers: bool
) -> None:
    # Enlarged, so that the rules' tiles and limits matter.
    sizes = [(width * 24, height * 24) for width, height in sizes]
    rule, longest = known(model), max(max(size) for size in sizes)
    budget = int((total(rule, sizes, markers=markers) or 5000) * share)
    room = Room(whole=budget) if markers else Room(tokens=budget)
    every = [
        (long, total(rule, at_scale(sizes, long), markers=markers))
        for long in range(longest, 0, -1)
        if min(map(min, at_scale(sizes, long))) >= 16
    ]
    best = next((long for long, took in every if took is not None and took <= budget), None)
    if best is None:
        with pytest.raises(TooMuch) as caught:
            fit_all(rule, sizes, ["auto"] * len(sizes), room)
        if not markers:
            assert caught.value.tokens == min((t for _, t in every if t is not None), default=None)
    else:
        fitted = fit_all(rule, sizes, ["auto"] * len(sizes), room)
        assert fitted == (sizes if best == longest else at_scale(sizes, best))


def test_one_picture_as_the_rules_fit_it() -> None:
    for model in MODELS:
        rule = known(model)
        for size in ((3000, 2000), (640, 4096), (500, 20), (9, 900)):
            for share in (0.2, 0.5, 0.9):
                budget = int(rule.cost(*size).tokens * share)
                try:
                    expected: Size | None = fit(rule, *size, budget)
                except InvalidRequest:
                    expected = None
                try:
                    found: Size | None = fit_all(rule, [size], ["auto"], Room(tokens=budget))[0]
                except TooMuch:
                    found = None
                assert found == expected, (model, size, share)


# Requests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    folder = tmp_path_factory.mktemp("planner")
    return Planner(
        Settings(
            cache_dir=folder,
            data_dir=folder,
            models={"eyes": ModelSettings(targets=("openai/gpt-4o",))},
            prices={"own/free": PriceSettings()},
        )
    )


def picture(width: int, height: int) -> ImagePart:
    return ImagePart(EncodedImage(f"{width}x{height}".encode(), "a", "JPEG", (width, height)))


def request(*parts: ImagePart, **more: float) -> Request:
    return Request((Message("user", (TextPart("What is this?"), *parts)),), **more)


def test_without_a_budget_nothing_is_touched(planner: Planner) -> None:
    asked = request(picture(4000, 3000))
    assert planner.fit("openai/gpt-4o", asked) is asked


@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"])
def test_image_tokens_are_kept_to(planner: Planner, model: str) -> None:
    asked = request(picture(4000, 3000), picture(1000, 2000), max_image_tokens=700)
    fitted = planner.fit(model, asked)
    assert planner.estimate(model, fitted).image_tokens <= 700
    assert planner.estimate(model, asked).image_tokens > 700
    first, second = (part.size for part in fitted.messages[0].image_parts)
    assert first is not None
    assert second is not None
    assert first[0] / 4000 == pytest.approx(second[1] / 2000, abs=0.01)  # one scale for both
    assert planner.fit(model, fitted) == fitted


@pytest.mark.parametrize("most", [0.0012, 0.002, 0.003])
def test_cost_is_kept_to_answer_and_all(planner: Planner, most: float) -> None:
    asked = request(picture(4000, 3000), max_cost=most, max_tokens=100)
    fitted = planner.fit("anthropic/claude-haiku-4-5", asked)
    cost = planner.estimate("anthropic/claude-haiku-4-5", fitted).cost
    assert cost is not None
    assert cost <= Decimal(str(most))
    assert fitted.max_tokens == 100


def test_an_answer_without_a_bound_gets_what_is_left(planner: Planner) -> None:
    fitted = planner.fit("openai/gpt-4o", request(picture(512, 512), max_cost=0.01))
    assert fitted.max_tokens is not None
    assert fitted.max_tokens >= DEFAULT_ANSWER
    spent = planner.estimate("openai/gpt-4o", fitted)
    assert spent.cost is not None
    assert spent.cost <= Decimal("0.01")
    one_more = Tokens(spent.prompt_tokens, spent.answer_tokens + 1)
    assert planner.price("openai/gpt-4o", one_more) > Decimal("0.01")  # type: ignore[operator]


def test_what_cannot_be_afforded_says_the_least(planner: Planner) -> None:
    with pytest.raises(Unaffordable, match=r"take 85 tokens of openai/gpt-4o at least") as caught:
        planner.fit("openai/gpt-4o", _low(request(picture(800, 600), max_image_tokens=84)))
    assert (caught.value.code, caught.value.param) == ("unaffordable", "max_image_tokens")
    with pytest.raises(Unaffordable, match=r"costs \$0\.\d+ at least") as caught:
        planner.fit("openai/gpt-4o", request(picture(800, 600), max_cost=0.000001))
    assert caught.value.param == "max_cost"
    with pytest.raises(Unaffordable):
        planner.fit("openai/gpt-4o", request(max_cost=0.000001))


def _low(asked: Request) -> Request:
    message = asked.messages[0]
    parts = tuple(
        replace(part, detail="low") if isinstance(part, ImagePart) else part
        for part in message.parts
    )
    return replace(asked, messages=(replace(message, parts=parts),))


def test_what_nobody_knows_is_said(planner: Planner) -> None:
    with pytest.raises(Unsupported, match="counts pictures"):
        planner.fit("elsewhere/own-model", request(picture(8, 8), max_image_tokens=10))
    with pytest.raises(Unsupported, match="costs"):
        planner.fit("Qwen2.5-VL-7B-Instruct", request(picture(8, 8), max_cost=1.0))


def test_a_model_of_this_server_costs_nothing(planner: Planner) -> None:
    asked = request(picture(4000, 3000), max_cost=0.0001)
    fitted = planner.fit("default-vlm", asked)
    assert fitted.messages == asked.messages
    assert fitted.max_tokens is None


def test_pictures_in_results_of_tools_are_scaled_too(planner: Planner) -> None:
    result = ToolResult("call", (TextPart("seen"), picture(3000, 3000)))
    asked = Request(
        (Message("user", (picture(3000, 3000),)), Message("tool", (result,))),
        max_image_tokens=500,
    )
    fitted = planner.fit("anthropic/claude-haiku-4-5", asked)
    inside = fitted.messages[1].parts[0]
    assert isinstance(inside, ToolResult)
    part = inside.parts[1]
    assert isinstance(part, ImagePart)
    assert part.size == fitted.messages[0].image_parts[0].size != (3000, 3000)


def test_no_folder_is_needed(tmp_path: Path) -> None:
    Planner(Settings(cache_dir=tmp_path / "no", data_dir=tmp_path / "no", generator=""))
