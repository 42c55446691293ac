"""What a request will take of each model before it is sent: size, tokens, cost, time, compute.

Pictures are counted by the rules of `operations.tokens`, text by `text_tokens`, money by `prices`.
Nothing is sent, and of a picture nothing but its size is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, cast

from chiasm.errors import InvalidRequest, Unaffordable, Unsupported
from chiasm.generation.messages import ImagePart, TextPart, ToolCall, ToolResult
from chiasm.operations import fitting, limits
from chiasm.operations.money import shown
from chiasm.operations.planned_models import Model, Models
from chiasm.operations.prices import Tokens
from chiasm.operations.tokens import ImageCost, ImageRule

if TYPE_CHECKING:
    from chiasm.generation.messages import Part
    from chiasm.generation.request import Request
    from chiasm.operations.prices import Spent
    from chiasm.operations.text_tokens import TextCount
    from chiasm.settings import Settings

DEFAULT_ANSWER = 300
"""Tokens of an answer that are assumed where nobody says."""

_LONGEST_ANSWER = 4_096  # of what is left of `max_cost`, where the request sets no bound
_UNKNOWN_PICTURE = 1_568  # tokens: as many as the dearest of the usual vendors' take
_REMEMBERED = 4_096  # sizes of pictures
_MOST_TOKENS = 100_000_000  # no context is that long

Seconds = Callable[[str], float | None]


@dataclass(frozen=True)
class Picture:
    """A picture as a plan needs it. digest: tells whether two are the same; empty: unknown."""

    width: int
    height: int
    name: str = ""
    digest: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


@dataclass(frozen=True)
class Repeat:
    """A picture of a conversation that is there already. Both count from 0."""

    picture: int
    first: int


@dataclass(frozen=True)
class PlanRow:
    """One model at one detail level.

    target: as callers ask for it. images: what each picture becomes, in order. text_error: nine of
    ten texts are within this share of text_tokens; 0 is exact. text_by: what has counted them.
    answer_tokens: assumed. cost: USD; None where no price is known. repeated: of the cost, for
    pictures that were there already. seconds_to_first_token, seconds_known: as measured of late,
    or estimated from what this machine does; None where nobody knows. vision_flops,
    language_flops: of the prompt, of open models whose sizes are known. fits_context: None where
    the context's size is not known. source, read, evidence: of the rule for pictures. price: where
    the prices are from. refusal: why the vendor would not take this; all numbers are 0 then.
    """

    target: str
    model: str
    provider: str
    detail: str
    images: tuple[ImageCost, ...]
    image_tokens: int
    text_tokens: int
    text_error: float
    text_by: str
    answer_tokens: int
    cost: Decimal | None
    repeated: Decimal | None
    seconds_to_first_token: float | None
    seconds_known: Literal["measured", "estimated"] | None
    vision_flops: int | None
    language_flops: int | None
    context: int | None
    fits_context: bool | None
    source: str
    read: date | None
    evidence: str
    price: str
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request is expected to take of one model.

    known: whether there is a rule for its pictures; without one they are counted high.
    """

    text_tokens: int
    image_tokens: int
    answer_tokens: int
    cost: Decimal | None
    known: bool

    @property
    def prompt_tokens(self) -> int:
        """Text and pictures together."""
        return self.text_tokens + self.image_tokens


class Planner:
    """Plans for the models that settings and rules know. Safe in several threads.

    Long-lived: what a request needs is loaded when it is made, and sizes that were seen are
    remembered.
    """

    def __init__(
        self, settings: Settings, *, seconds: Seconds = lambda target: None, warm: bool = True
    ) -> None:
        """seconds: to a target's first token, as measured of late; None if it never was.

        warm: load now what the first request would wait for: prices, tokenizers, rules.
        """
        self._seconds = seconds
        self.models = Models(settings)
        self._costs: dict[tuple[str, tuple[int, int], str], ImageCost | InvalidRequest] = {}
        if warm:
            self._warm()

    def _warm(self) -> None:
        for target in self.models.configured:
            model = self.models.find(target)
            self.models.prices.rates(target)
            model.text.count("What is in this picture?", quick=True)

    # On the way of a request -----------------------------------------------------------------

    def estimate(self, target: str, request: Request) -> Estimate:
        """What it will take, the answer as long as it may get. Raises nothing.

        Pictures that are the same are counted as often as they are there: vendors bill each.
        """
        model = self.models.find(target)
        text = self._text(model, request).tokens
        images, known = 0, True
        for part in _pictures(request):
            cost = self._cost(model, part.size or part.image.size, part.detail)
            if isinstance(cost, ImageCost):
                images += cost.tokens
            else:
                images, known = images + _UNKNOWN_PICTURE * (cost is None), False
        answer = (request.max_tokens or DEFAULT_ANSWER) * request.choices
        rates = self.models.prices.rates(target)
        cost = None if rates is None else rates.cost(Tokens(text + images, answer, images))
        return Estimate(text, images, answer, cost, known)

    def count(self, target: str, request: Request) -> int:
        """Tokens of a request's prompt. Raises InvalidRequest for pictures that are refused."""
        model = self.models.find(target)
        for part in _pictures(request):
            cost = self._cost(model, part.size or part.image.size, part.detail)
            if isinstance(cost, InvalidRequest):
                raise cost
        return self.estimate(target, request).prompt_tokens

    def price(self, target: str, spent: Spent) -> Decimal | None:
        """What was spent, in USD by list prices; None where nobody knows them."""
        return self.models.prices.price_of(target, spent)

    def fit(self, target: str, request: Request) -> Request:
        """The request with its pictures scaled to `max_image_tokens` and `max_cost`.

        All by the same factor, the largest with which they fit; never enlarged. Where the answer
        has no bound, `max_cost` bounds it as well, by what is left.

        Raises Unaffordable, which says what it would take at least, and Unsupported where nobody
        knows how the model counts pictures, or what it costs.
        """
        if request.max_image_tokens is None and request.max_cost is None:
            return request
        model = self.models.find(target)
        room = request.max_image_tokens
        param = "max_image_tokens"
        if request.max_cost is not None:
            paid = self._image_tokens_for(model, request, Decimal(str(request.max_cost)))
            if paid is not None and (room is None or paid < room):
                room, param = paid, "max_cost"
        if room is not None:
            request = self._within(model, request, room, param)
        if request.max_cost is not None and request.max_tokens is None:
            request = replace(request, max_tokens=self._answer_for(model, request))
        return request

    def _within(self, model: Model, request: Request, room: int, param: str) -> Request:
        """The request with pictures of no more than so many tokens. room: below 0 for no text."""
        parts = _pictures(request)
        if not parts and room >= 0:
            return request
        if parts and model.rule is None:
            raise Unsupported(
                f"Nobody knows how {model.target} counts pictures, so `{param}` cannot be kept.",
                hint="Ask a model with a known rule, or leave it out.",
                param=param,
            )
        sizes = [part.size or part.image.size for part in parts]
        try:
            if room < 0:
                raise fitting.TooMuch(fitting.least(model.rule, sizes, _details(parts)))
            fitted = fitting.fit_all(model.rule, sizes, _details(parts), room)
        except fitting.TooMuch as least:
            raise self._unaffordable(model, request, param, least.tokens) from None
        return request if fitted == sizes else _resized(request, iter(fitted))

    def _image_tokens_for(self, model: Model, request: Request, most: Decimal) -> int | None:
        """Tokens of pictures that so much money is enough for; None for any number, -1 for none."""
        rates = self.models.prices.rates(model.target)
        if rates is None:
            raise Unsupported(
                f"Nobody knows what {model.target} costs, so `max_cost` cannot be kept.",
                hint='State its price in chiasm.toml: [prices."provider/model"].',
                param="max_cost",
            )
        text, answer = self._text(model, request).tokens, _answer(request)

        def affordable(images: int) -> bool:
            return rates.cost(Tokens(text + images, answer, images)) <= most

        return _largest(affordable, _MOST_TOKENS)

    def _answer_for(self, model: Model, request: Request) -> int | None:
        """Tokens of each answer that what is left of `max_cost` is enough for."""
        rates, most = self.models.prices.rates(model.target), Decimal(str(request.max_cost))
        if rates is None or rates.free:
            return None
        expected = self.estimate(model.target, request)
        prompt, images = expected.prompt_tokens, expected.image_tokens

        def affordable(answer: int) -> bool:
            return rates.cost(Tokens(prompt, answer * request.choices, images)) <= most

        found = _largest(affordable, _LONGEST_ANSWER)
        return _LONGEST_ANSWER if found is None else max(1, found)

    def _unaffordable(
        self, model: Model, request: Request, param: str, images: int
    ) -> Unaffordable:
        """The error that names the least. images: tokens of the pictures, as small as they get."""
        if param == "max_image_tokens":
            return Unaffordable(
                f"The pictures take {images:,} tokens of {model.target} at least; "
                f"`max_image_tokens` is {request.max_image_tokens:,}.",
                hint="Send fewer, or raise it.",
                param=param,
            )
        text, answer = self._text(model, request).tokens, _answer(request)
        cost = self.models.prices.price_of(model.target, Tokens(text + images, answer, images))
        return Unaffordable(
            f"{model.target} costs {shown(cost or Decimal(0))} at least, with an answer of "
            f"{answer:,} tokens; `max_cost` is {shown(Decimal(str(request.max_cost)))}.",
            hint="Raise it, set `max_tokens` lower, or send fewer pictures.",
            param=param,
        )

    # Plans -------------------------------------------------------------------------------------

    def plan(
        self,
        pictures: Sequence[Picture] = (),
        prompt: str | Sequence[tuple[str, str]] = "",
        *,
        models: Sequence[str] | None = None,
        details: Sequence[str] | None = None,
        answer_tokens: int = DEFAULT_ANSWER,
        fit_tokens: int | None = None,
        fit_cost: Decimal | None = None,
    ) -> list[PlanRow]:
        """A row a model and detail level, the cheapest first; those of no known price come last.

        prompt: a question, or (role, text) of each message. models: names as callers use them;
        None is all that the settings name, and those that are known. details: of models that have
        them; None is every one. fit_tokens, fit_cost: scale the pictures to so many tokens, or to
        what a request may cost.

        Raises UnknownModel with the nearest names.
        """
        if models is None:
            found = [self.models.find(target) for target in self.models.default]
        else:
            found = [each for name in dict.fromkeys(models) for each in self.models.named(name)]
        said = [("user", prompt)] if isinstance(prompt, str) else list(prompt)
        asked = _Asked(tuple(pictures), tuple(said), answer_tokens, fit_tokens, fit_cost)
        rows = [
            self._row(model, detail, asked)
            for model in dict.fromkeys(found)
            for detail in _levels(model, details)
        ]
        return sorted(rows, key=_order)

    def repeats(self, pictures: Sequence[Picture]) -> list[Repeat]:
        """Pictures that stand in a conversation more than once, by their digests."""
        first: dict[str, int] = {}
        found = []
        for at, picture in enumerate(pictures):
            if picture.digest and first.setdefault(picture.digest, at) != at:
                found.append(Repeat(at, first[picture.digest]))
        return found

    def _row(self, model: Model, detail: str, asked: _Asked) -> PlanRow:
        text = model.text.conversation(asked.messages)
        refusal, costs = self._planned(model, detail, asked, text.tokens)
        images = sum(cost.tokens for cost in costs)
        rates = self.models.prices.rates(model.target)
        cost = repeated = None
        if rates is not None and refusal is None:
            cost = rates.cost(Tokens(text.tokens + images, asked.answer_tokens, images))
            again = sum(costs[each.picture].tokens for each in self.repeats(asked.pictures))
            repeated = rates.cost(Tokens(again, 0, again))
        seconds = self._seconds(model.target)
        tokens, rule, known = text.tokens + images, model.rule, model.open
        whole = tokens + asked.answer_tokens
        return PlanRow(
            target=model.target,
            model=model.name,
            provider=model.provider,
            detail=detail,
            images=costs,
            image_tokens=images,
            text_tokens=text.tokens,
            text_error=text.error,
            text_by=model.text.name,
            answer_tokens=asked.answer_tokens,
            cost=cost,
            repeated=repeated,
            seconds_to_first_token=seconds,
            seconds_known=None if seconds is None else "measured",
            vision_flops=None if known is None or refusal else known.vision_flops(costs),
            language_flops=None if known is None or refusal else known.language_flops(tokens),
            context=model.context,
            fits_context=None if model.context is None else whole <= model.context,
            source=rule.source if rule is not None else "",
            read=rule.read if rule is not None else None,
            evidence=rule.evidence if rule is not None else "",
            price=rates.source if rates is not None else "",
            refusal=refusal,
        )

    def _planned(
        self, model: Model, detail: str, asked: _Asked, text: int
    ) -> tuple[str | None, tuple[ImageCost, ...]]:
        """Why a vendor refuses the pictures, if it does; and what each becomes."""
        if model.rule is None:
            return ("Nobody knows how it counts pictures." if asked.pictures else None), ()
        if refusal := limits.refusal(model.name, asked.pictures):
            return refusal, ()
        sizes = [picture.size for picture in asked.pictures]
        try:
            room = self._room(model, asked, text)
            if room is not None and sizes:
                sizes = fitting.fit_all(model.rule, sizes, [detail] * len(sizes), room)
        except fitting.TooMuch as least:
            return f"It takes {least.tokens:,} image tokens at least.", ()
        costs = []
        for size in sizes:
            cost = self._cost(model, size, detail)
            if isinstance(cost, InvalidRequest):
                return cost.message, ()
            assert cost is not None
            costs.append(cost)
        return None, tuple(costs)

    def _room(self, model: Model, asked: _Asked, text: int) -> int | None:
        """Tokens that the pictures may take together; None for any number."""
        rates = self.models.prices.rates(model.target)
        if asked.fit_cost is None or rates is None:
            return asked.fit_tokens
        most, answer = asked.fit_cost, asked.answer_tokens
        paid = _largest(lambda n: rates.cost(Tokens(text + n, answer, n)) <= most, _MOST_TOKENS)
        return min((n for n in (paid, asked.fit_tokens) if n is not None), default=None)

    # What both need ----------------------------------------------------------------------------

    def _text(self, model: Model, request: Request) -> TextCount:
        """Text of messages, tools and schema; long ones by a sample."""
        return model.text.conversation(_texts(request), quick=True)

    def _cost(
        self, model: Model, size: tuple[int, int], detail: str
    ) -> ImageCost | InvalidRequest | None:
        """What a picture takes, or why it is refused; None where no rule is known."""
        if model.rule is None:
            return None
        key = (model.rule.name, size, detail)
        found = self._costs.get(key)
        if found is None:
            try:
                found = model.rule.cost(*size, _level(model.rule, detail))
            except InvalidRequest as error:
                found = error
            if len(self._costs) >= _REMEMBERED:
                self._costs.clear()
            self._costs[key] = found
        return found


@dataclass(frozen=True)
class _Asked:
    pictures: tuple[Picture, ...]
    messages: tuple[tuple[str, str], ...]
    answer_tokens: int
    fit_tokens: int | None
    fit_cost: Decimal | None


def _order(row: PlanRow) -> tuple[bool, bool, Decimal, int, str, str]:
    cost = row.cost if row.cost is not None else Decimal(0)
    tokens = row.image_tokens + row.text_tokens
    return row.refusal is not None, row.cost is None, cost, tokens, row.target, row.detail


def _levels(model: Model, wanted: Sequence[str] | None) -> list[str]:
    """Detail levels of a model's rows; `auto` for one that has none, or none of those wanted."""
    offered = model.rule.details if model.rule is not None else ()
    if wanted is None:
        return list(offered) or ["auto"]
    return [each for each in dict.fromkeys(wanted) if each in offered] or ["auto"]


def _level(rule: ImageRule, detail: str) -> str:
    """The detail as the rule has it; a level that it does not have is its default."""
    return detail if detail in rule.details else "auto"


def _pictures(request: Request) -> list[ImagePart]:
    return [part for message in request.messages for part in message.image_parts]


def _details(parts: Sequence[ImagePart]) -> list[str]:
    return [part.detail for part in parts]


def _answer(request: Request) -> int:
    return (request.max_tokens or DEFAULT_ANSWER) * request.choices


def _texts(request: Request) -> Iterator[tuple[str, str]]:
    """(role, text) of everything that is read as text."""
    for message in request.messages:
        yield message.role, "".join(map(_text_of, message.parts))
    if request.tools or request.schema is not None:
        tools = [(each.name, each.description, dict(each.parameters)) for each in request.tools]
        yield "system", json.dumps([tools, request.schema], default=dict, ensure_ascii=False)


def _text_of(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, ToolCall):
        return f"{part.name} {part.arguments}"
    if isinstance(part, ToolResult):
        return "".join(map(_text_of, part.parts))
    return ""


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


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
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
