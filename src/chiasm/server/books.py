"""What questions are expected to take, and what they took: the plan as the server uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from chiasm.generation import Request, Usage
from chiasm.generation.messages import images_of
from chiasm.operations.budgets import Spend

if TYPE_CHECKING:
    from chiasm.generation.router import Attempt, Trace
    from chiasm.generation.targets import Target
    from chiasm.operations.plan import Estimate, Planner


class Books:
    """Plans and bills of requests.

    name: what the planner calls a target. free: whether it costs no money, for it runs here.
    """

    def __init__(
        self, planner: Planner, name: Callable[[Target], str], free: Callable[[Target], bool]
    ) -> None:
        self.planner = planner
        self._name = name
        self.free = free

    def fit(self, target: Target, request: Request) -> Request:
        """The request with its pictures scaled to what it may take of this target."""
        if self.free(target):
            request = replace(request, max_cost=None)
        if request.max_image_tokens is None and request.max_cost is None:
            return request
        return self.planner.fit(self._name(target), request)

    def count(self, target: Target, request: Request) -> int:
        """Tokens of a prompt. Raises InvalidRequest for pictures that are refused."""
        return self.planner.count(self._name(target), self.fit(target, request))

    def price(self, target: Target, request: Request) -> float | None:
        """USD that a request is expected to cost."""
        cost = self.planned(target, request).cost
        return None if cost is None else float(cost)

    def planned(self, target: Target, request: Request) -> Estimate:
        """What a request is expected to take of one target."""
        found = self.planner.estimate(self._name(target), self.fit(target, request))
        return replace(found, cost=Decimal(0), most=Decimal(0)) if self.free(target) else found

    @staticmethod
    def most(estimates: Sequence[Estimate], *, hedged: bool) -> Spend | None:
        """What is set aside: the most that any target may take, twice where two may be asked.

        None where a target has no known price.
        """
        costs = [each.cost if each.most is None else each.most for each in estimates]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        times = 2 if hedged and len(estimates) > 1 else 1
        return Spend(times * max(known), times * max(each.image_tokens for each in estimates))

    def billed(self, trace: Trace, request: Request, usage: Usage) -> Usage:
        """The usage with its cost; with the pictures' share by rule, where none was stated.

        Where a provider sent no bill the prompt counts as it was planned.
        """
        target = trace.target
        assert target is not None
        if usage.estimated:
            rule = self.planned(target, request)
            whole = usage.prompt_tokens or rule.text_tokens + rule.image_tokens
            share = min(rule.image_tokens, whole)
            usage = replace(usage, text_tokens=whole - share, image_tokens=share)
        return replace(usage, cost=Decimal(0) if trace.from_cache else self._cost(target, usage))

    def lost(self, trace: Trace, request: Request) -> list[Usage]:
        """What is charged for each attempt that was sent and did not come to its end.

        There is no bill for one: it is the prompt as it was planned, and what was said, counted.
        Who failed before the first word charges nothing; who was left before it, the prompt.
        """
        return [self._lost(each, request) for each in trace.attempts if each.lost]

    def _lost(self, attempt: Attempt, request: Request) -> Usage:
        rule = self.planned(attempt.at, request)
        said = self.planner.models.find(self._name(attempt.at)).text.count(attempt.text).tokens
        usage = Usage(
            rule.text_tokens,
            rule.image_tokens,
            answer_tokens=max(said if attempt.text else 0, attempt.pieces),
            images=len(images_of(request.messages)),
            estimated=True,
        )
        return replace(usage, cost=self._cost(attempt.at, usage))

    def _cost(self, target: Target, usage: Usage) -> Decimal | None:
        return Decimal(0) if self.free(target) else self.planner.price(self._name(target), usage)
