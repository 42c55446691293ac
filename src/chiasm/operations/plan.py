"""What a request will take of each model before it is sent: size, tokens, cost, time, compute.

Pictures are counted by the rules of `operations.tokens`, text by `text_tokens`, money by `prices`.
Nothing is sent, and of a picture nothing but its size is looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from chiasm.errors import InvalidRequest
from chiasm.generation.messages import TextPart, ToolCall, ToolResult
from chiasm.operations import fitting
from chiasm.operations.fit_request import (
    DEFAULT_ANSWER,
    MOST_TOKENS,
    answer_of,
    fit_request,
    largest,
    pictures_of,
)
from chiasm.operations.plan_row import Estimate, Picture, PlanRow, Repeat
from chiasm.operations.planned_models import Model, Models
from chiasm.operations.prices import Tokens
from chiasm.operations.tokens import ImageCost, ImageRule, limits_for

if TYPE_CHECKING:
    from chiasm.generation.messages import Message, Part
    from chiasm.generation.request import Request
    from chiasm.generation.targets import May
    from chiasm.operations.price_list import PriceList
    from chiasm.operations.prices import Spent
    from chiasm.operations.text_tokens import TextCount
    from chiasm.settings import Settings

__all__ = ["DEFAULT_ANSWER", "Estimate", "Picture", "PlanRow", "Planner", "Repeat"]

_UNKNOWN_PICTURE = 1_568  # tokens: as many as the dearest of the usual vendors' take
_REMEMBERED = 4_096  # sizes of pictures
_FITTED = 256

Seconds = Callable[[str], float | None]
Size = tuple[int, int]


class Planner:
    """Plans for the models that settings and rules know. Safe in several threads.

    Long-lived: what a request needs is loaded when it is made, and sizes that were seen are
    remembered.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        seconds: Seconds = lambda target: None,
        warm: bool = True,
        listed: PriceList | None = None,
    ) -> None:
        """seconds: to a target's first token, as measured of late; None if it never was.

        warm: load now what the first request would wait for: prices, tokenizers, rules.
        listed: the published prices, where they are kept in a file.
        """
        self._seconds = seconds
        self.models = Models(settings, listed)
        self._costs: dict[tuple[str, Size, str], ImageCost | InvalidRequest] = {}
        self._fitted: dict[Any, list[Size]] = {}
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
        count = self.text(model, request)
        text, images, known = count.tokens, 0, True
        for part in pictures_of(request):
            one = self._cost(model, part.size or part.image.size, part.detail)
            if isinstance(one, ImageCost):
                images += one.tokens
                text += one.markers
            else:
                images, known = images + _UNKNOWN_PICTURE * (one is None), False
        answer = answer_of(request)
        rates = self.models.prices.rates(model.target)
        if rates is None:
            return Estimate(text, images, answer, None, known)
        cost = rates.cost(Tokens(text + images, answer, images))
        more = math.ceil(count.tokens * count.error)
        most = rates.cost(Tokens(text + more + images, answer, images)) if more else cost
        return Estimate(text, images, answer, cost, known, most)

    def count(self, target: str, request: Request) -> int:
        """Tokens of a request's prompt. Raises InvalidRequest for pictures that are refused."""
        model = self.models.find(target)
        for part in pictures_of(request):
            cost = self._cost(model, part.size or part.image.size, part.detail)
            if isinstance(cost, InvalidRequest):
                raise cost
        return self.estimate(target, request).prompt_tokens

    def price(self, target: str, spent: Spent) -> Decimal | None:
        """What was spent, in USD by list prices; None where nobody knows them."""
        return self.models.prices.price_of(target, spent)

    def fit(self, target: str, request: Request) -> Request:
        """The request within its `max_image_tokens` and `max_cost`: see `fit_request`."""
        return fit_request(self, target, request)

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
        may: May = lambda name: True,
    ) -> list[PlanRow]:
        """A row a model and detail level, the cheapest first; those of no known price come last.

        prompt: a question, or (role, text) of each message. models: names as callers use them;
        None is all that the settings name, and those that are known. details: of models that have
        them; None is every one. fit_tokens, fit_cost: scale the pictures to so many tokens, or to
        what a request may cost. may: what whoever asks may know of where nobody names models.

        Raises UnknownModel with the nearest names.
        """
        if models is None:
            every = [self.models.find(target) for target in self.models.default]
            found = [each for each in every if may(each.target)]
        else:
            names = dict.fromkeys(models)
            found = [each for name in names for each in self.models.named(name, may)]
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
        refusal, sent, costs = self._taken(model, detail, asked, text.tokens)
        images = sum(cost.tokens for cost in costs)
        written = text.tokens + sum(cost.markers for cost in costs)
        rates = self.models.prices.rates(model.target)
        cost = repeated = None
        if rates is not None and refusal is None:
            cost = rates.cost(Tokens(written + images, asked.answer_tokens, images))
            again = sum(costs[each.picture].tokens for each in self.repeats(asked.pictures))
            repeated = rates.cost(Tokens(again, 0, again))
        seconds = self._seconds(model.target)
        tokens, rule, known = written + images, model.rule, model.open
        whole = tokens + asked.answer_tokens
        return PlanRow(
            target=model.target,
            model=model.name,
            provider=model.provider,
            detail=detail,
            images=costs,
            sent=sent,
            image_tokens=images,
            text_tokens=written,
            text_error=text.error * text.tokens / written if written else 0.0,
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

    def _taken(
        self, model: Model, detail: str, asked: _Asked, text: int
    ) -> tuple[str | None, tuple[Size, ...], tuple[ImageCost, ...]]:
        """Why the vendor refuses the pictures, or else their sizes as sent, and their costs."""
        if model.rule is None:
            return ("Nobody knows how it counts pictures." if asked.pictures else None), (), ()
        sizes = [picture.size for picture in asked.pictures]
        try:
            room = self._room(model, asked, text)
            if sizes and room != fitting.Room():
                sizes = self.fitted(model.rule, sizes, [detail] * len(sizes), room)
        except fitting.TooMuch as too:
            if too.tokens is not None:
                return f"Its pictures take {too.tokens:,} tokens at least.", (), ()
        limits = limits_for(model.name)
        if limits is not None and (refusal := limits.refusal(sizes)):
            return refusal, (), ()
        costs = []
        for size in sizes:
            cost = self._cost(model, size, detail)
            if isinstance(cost, InvalidRequest):
                return cost.message, (), ()
            assert cost is not None
            costs.append(cost)
        return None, tuple(sizes), tuple(costs)

    def _room(self, model: Model, asked: _Asked, text: int) -> fitting.Room:
        """What the pictures may take together; a budget in money binds where prices are known."""
        rates, most = self.models.prices.rates(model.target), asked.fit_cost
        if most is None or rates is None:
            return fitting.Room(asked.fit_tokens)
        answer = asked.answer_tokens
        paid = largest(lambda n: rates.cost(Tokens(text + n, answer, n)) <= most, MOST_TOKENS)
        return fitting.Room(asked.fit_tokens, paid)

    # What both need ----------------------------------------------------------------------------

    def fitted(
        self, rule: ImageRule, sizes: Sequence[Size], details: Sequence[str], room: fitting.Room
    ) -> list[Size]:
        """As `fitting.fit_all`; a request is fitted again and again on its way."""
        key = (rule.name, tuple(sizes), tuple(details), room)
        found = self._fitted.get(key)
        if found is None:
            found = fitting.fit_all(rule, sizes, details, room)
            if len(self._fitted) >= _FITTED:
                self._fitted.clear()
            self._fitted[key] = found
        return found

    def text(self, model: Model, request: Request) -> TextCount:
        """Text of messages, tools and schema; long ones by a sample."""
        return model.text.conversation(_texts(request), quick=True)

    def _cost(self, model: Model, size: Size, detail: str) -> ImageCost | InvalidRequest | None:
        """What a picture takes, or why it is refused; None where no rule is known."""
        if model.rule is None:
            return None
        key = (model.rule.name, size, detail)
        found = self._costs.get(key)
        if found is None:
            try:
                found = model.rule.cost(*size, fitting.level_of(model.rule, detail))
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


def _texts(request: Request) -> Iterator[tuple[str, str]]:
    """(role, text) of everything that is read as text."""
    for message in request.messages:
        yield message.role, text_of(message)
    if request.tools or request.schema is not None:
        tools = [(each.name, each.description, dict(each.parameters)) for each in request.tools]
        yield "system", json.dumps([tools, request.schema], default=dict, ensure_ascii=False)


def text_of(message: Message) -> str:
    """Everything of a message that is read as text."""
    return "".join(map(_text_of, message.parts))


def _text_of(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, ToolCall):
        return f"{part.name} {part.arguments}"
    if isinstance(part, ToolResult):
        return "".join(map(_text_of, part.parts))
    return ""
