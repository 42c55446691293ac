"""A request within what it may take and cost: its pictures scaled, its answer bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, cast

from chiasm.errors import InvalidRequest, Unaffordable, Unsupported
from chiasm.generation.messages import ImagePart, TextPart, ToolResult
from chiasm.operations import fitting
from chiasm.operations.money import shown
from chiasm.operations.prices import Tokens

if TYPE_CHECKING:
    from chiasm.generation.messages import Part
    from chiasm.generation.request import Request
    from chiasm.operations.plan import Planner
    from chiasm.operations.planned_models import Model

DEFAULT_ANSWER = 300
"""Tokens of an answer that are assumed where nobody says."""

MOST_TOKENS = 100_000_000
"""More than any context has."""

_LONGEST_ANSWER = 4_096  # of what is left of `max_cost`, where the request sets no bound


def fit_request(planner: Planner, target: str, request: Request) -> Request:
    """The request with its pictures scaled to `max_image_tokens` and `max_cost`.

    All by the same factor, the largest with which they fit; never enlarged. Where the answer
    has no bound, `max_cost` bounds it as well, by what is left.

    Raises Unaffordable, which says what it would take at least, and Unsupported where nobody
    knows how the model counts pictures, or what it costs.
    """
    if request.max_image_tokens is None and request.max_cost is None:
        return request
    model = planner.models.find(target)
    paid = None
    if request.max_cost is not None:
        paid = _paid(planner, model, request, Decimal(str(request.max_cost)))
        if paid is not None and paid < 0:
            raise _too_dear(planner, model, request)
    if pictures_of(request):
        request = _scaled(planner, model, request, fitting.Room(request.max_image_tokens, paid))
    if request.max_cost is not None and request.max_tokens is None:
        request = replace(request, max_tokens=_answer_for(planner, model, request))
    return request


def _scaled(planner: Planner, model: Model, request: Request, room: fitting.Room) -> Request:
    """The request with its pictures at the largest sizes for which there is room."""
    if room == fitting.Room():
        return request
    if model.rule is None:
        raise Unsupported(
            f"Nobody knows how {model.target} counts pictures, so that they could be scaled.",
            hint="Ask a model with a known rule, or set no bound.",
            param="max_cost" if room.tokens is None else "max_image_tokens",
        )
    parts = pictures_of(request)
    sizes = [part.size or part.image.size for part in parts]
    try:
        fitted = planner.fitted(model.rule, sizes, [part.detail for part in parts], room)
    except fitting.TooMuch as too:
        if too.tokens is None:
            raise InvalidRequest(
                f"{model.target} takes these pictures at no size.", param="messages"
            ) from None
        if room.tokens is not None and too.tokens > room.tokens:
            raise _too_many(model, request, too.tokens) from None
        raise _too_dear(planner, model, request) from None
    return request if fitted == sizes else _resized(request, iter(fitted))


def _paid(planner: Planner, model: Model, request: Request, most: Decimal) -> int | None:
    """Tokens of pictures that so much money is enough for; None for any number, -1 for none."""
    rates = planner.models.prices.rates(model.target)
    if rates is None:
        raise Unsupported(
            f"Nobody knows what {model.target} costs, so `max_cost` cannot be kept.",
            hint='State its price in chiasm.toml: [prices."provider/model"].',
            param="max_cost",
        )
    text, answer = planner.text(model, request).tokens, answer_of(request)
    return largest(lambda n: rates.cost(Tokens(text + n, answer, n)) <= most, MOST_TOKENS)


def _answer_for(planner: Planner, model: Model, request: Request) -> int | None:
    """Tokens of each answer that what is left of `max_cost` is enough for."""
    rates, most = planner.models.prices.rates(model.target), Decimal(str(request.max_cost))
    if rates is None or rates.free:
        return None
    expected = planner.estimate(model.target, request)
    prompt, images = expected.prompt_tokens, expected.image_tokens

    def affordable(answer: int) -> bool:
        return rates.cost(Tokens(prompt, answer * request.choices, images)) <= most

    found = largest(affordable, _LONGEST_ANSWER)
    return _LONGEST_ANSWER if found is None else max(1, found)


# Errors -----------------------------------------------------------------------------------------


def _too_many(model: Model, request: Request, least: int) -> Unaffordable:
    return Unaffordable(
        f"The pictures take {least:,} tokens of {model.target} at least; `max_image_tokens` is "
        f"{request.max_image_tokens:,}.",
        hint="Send fewer, or raise it.",
        param="max_image_tokens",
    )


def _too_dear(planner: Planner, model: Model, request: Request) -> Unaffordable:
    """Names the least that it would cost, with the pictures as small as makes a difference."""
    parts = pictures_of(request)
    sizes = [part.size or part.image.size for part in parts]
    details = [part.detail for part in parts]
    images = fitting.least(model.rule, sizes, details) if model.rule is not None else 0
    prompt = planner.text(model, request).tokens + (images or 0)
    answer = answer_of(request)
    cost = planner.price(model.target, Tokens(prompt, answer, images or 0))
    return Unaffordable(
        f"{model.target} costs {shown(cost or Decimal(0))} at least, with an answer of "
        f"{answer:,} tokens; `max_cost` is {shown(Decimal(str(request.max_cost)))}.",
        hint=f"Raise it, or set `max_tokens` lower{', or send fewer pictures' if parts else ''}.",
        param="max_cost",
    )


# What a request holds ---------------------------------------------------------------------------


def pictures_of(request: Request) -> list[ImagePart]:
    """Every picture of a request with its detail, in order."""
    return [part for message in request.messages for part in message.image_parts]


def answer_of(request: Request) -> int:
    """Tokens of all its answers, as long as they may get."""
    return (request.max_tokens or DEFAULT_ANSWER) * request.choices


def largest(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest number that fits; None if `most` does, -1 if 0 does not. By bisection."""
    if fits(most):
        return None
    if not fits(0):
        return -1
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _resized(request: Request, sizes: Iterator[tuple[int, int]]) -> Request:
    """The request with its pictures, in order, to be sent at these sizes."""

    def part_of(part: Part) -> Part:
        if isinstance(part, ImagePart):
            return replace(part, size=next(sizes))
        if isinstance(part, ToolResult):
            inner = tuple(cast("TextPart | ImagePart", part_of(each)) for each in part.parts)
            return replace(part, parts=inner)
        return part

    messages = tuple(
        replace(message, parts=tuple(map(part_of, message.parts))) for message in request.messages
    )
    return replace(request, messages=messages)
