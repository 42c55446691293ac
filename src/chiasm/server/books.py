"""What questions are expected to take, and what they took: the plan as the server uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from chiasm.generation import Request, Usage
from chiasm.generation.messages import images_of

if TYPE_CHECKING:
    from chiasm.generation.router import Trace
    from chiasm.generation.targets import Target
    from chiasm.operations.plan import Estimate, Planner


class Books:
    """Plans and bills of requests. name: what the planner calls the model of this server."""

    def __init__(self, planner: Planner, name: Callable[[Target], str]) -> None:
        self.planner = planner
        self._name = name

    def fit(self, target: Target, request: Request) -> Request:
        """The request with its pictures scaled to what it may take of this target."""
        if not target.provider:
            request = replace(request, max_cost=None)  # what runs here is not paid for
        if request.max_image_tokens is None and request.max_cost is None:
            return request
        return self.planner.fit(self._name(target), request)

    def count(self, target: Target, request: Request) -> int:
        """Tokens of a prompt. Raises InvalidRequest for pictures that are refused."""
        return self.planner.count(self._name(target), self.fit(target, request))

    def price(self, target: Target, request: Request) -> float | None:
        """USD that a request is expected to cost."""
        cost = self.planner.estimate(self._name(target), request).cost
        return None if cost is None else float(cost)

    def planned(self, targets: Sequence[Target], request: Request) -> Estimate:
        """The estimate for the first target; at the price of the dearest, for any may answer."""
        found = [
            self.planner.estimate(self._name(each), self.fit(each, request)) for each in targets
        ]
        costs = [each.cost for each in found]
        known = [cost for cost in costs if cost is not None]
        dearest = max(known) if len(known) == len(costs) else None
        return replace(found[0], cost=dearest)

    def billed(self, trace: Trace, request: Request, usage: Usage) -> Usage:
        """The usage with its cost; with the pictures' share by rule, where none was stated.

        Where a provider sent no bill the prompt counts as it was planned.
        """
        target = trace.target
        assert target is not None
        if usage.estimated:
            rule = self.planner.estimate(self._name(target), self.fit(target, request))
            whole = usage.prompt_tokens or rule.text_tokens + rule.image_tokens
            share = min(rule.image_tokens, whole)
            usage = replace(usage, text_tokens=whole - share, image_tokens=share)
        return replace(usage, cost=self._cost(trace, target, usage))

    def broken_off(self, trace: Trace, request: Request, tokens: int) -> Usage:
        """What is charged for an answer of which about so many tokens came, and no bill.

        Nothing where none came; else the prompt as it was planned, and those tokens.
        """
        images, target = len(images_of(request.messages)), trace.target
        if target is None or not tokens:
            return Usage(0, 0, images=images)
        rule = self.planner.estimate(self._name(target), self.fit(target, request))
        usage = Usage(
            rule.text_tokens, rule.image_tokens, answer_tokens=tokens, images=images, estimated=True
        )
        return replace(usage, cost=self._cost(trace, target, usage))

    def _cost(self, trace: Trace, target: Target, usage: Usage) -> Decimal | None:
        if trace.from_cache or not target.provider:
            return Decimal(0)
        return self.planner.price(self._name(target), usage)
