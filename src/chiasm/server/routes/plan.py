"""`POST /v1/plan`: what pictures and words would take of each model, before they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from chiasm.errors import InvalidRequest
from chiasm.operations.plan_row import Picture, plan_as_dict
from chiasm.server.bodies import read_body
from chiasm.server.conversation import read_messages, read_picture
from chiasm.server.openapi import body_schema, refusals
from chiasm.server.plan_schemas import Plan, PlannedPicture, PlanRequest

if TYPE_CHECKING:
    from chiasm.generation import Message
    from chiasm.generation.targets import May
    from chiasm.media.limits import Limits
    from chiasm.operations.plan import Planner
    from chiasm.server.callers import Caller

router = APIRouter(prefix="/v1", tags=["plan"])

Asked = tuple[list[Picture], list[tuple[str, str]]]
"""Pictures, and (role, text) of each message."""


@router.post(
    "/plan",
    operation_id="create_plan",
    summary="Say what pictures would cost",
    response_model=Plan,
    responses=refusals(404, 413, 415),
    openapi_extra=body_schema(PlanRequest),
)
async def create_plan(request: Request) -> Any:
    """Tokens, cost, time and compute, model by model. Nothing is sent to any of them."""
    body = await read_body(PlanRequest, request)
    caller, runtime = request.state.caller, request.app.state.runtime
    planner = runtime.books.planner
    may = _may_know(planner, caller)
    for name in body.models or ():
        if not may(name):
            caller.require_model(name)
    fetched = await runtime.fetch(body.messages) if body.messages is not None else {}
    pictures, messages = await runtime.run(_read, body, runtime.settings.media, fetched)
    body.messages, body.pictures = None, []  # in base64, and not needed any more
    return await runtime.run(_planned, planner, body, pictures, messages, may)


def _may_know(planner: Planner, caller: Caller) -> May:
    """What may be asked may be planned, and so may what is behind it."""
    reached = planner.models.reached(caller.may_use_model)
    return lambda name: name in reached or caller.may_use_model(name)


def _read(body: PlanRequest, limits: Limits, fetched: Mapping[str, bytes]) -> Asked:
    if body.messages is None:
        pictures = [_picture(each, at, limits) for at, each in enumerate(body.pictures)]
        return pictures, [("user", body.prompt)]
    if body.pictures or body.prompt:
        raise InvalidRequest(
            "`messages` stand beside `pictures` or `prompt`.", hint="Send either.", param="messages"
        )
    return _conversation(read_messages(body.messages, limits, fetched))


def _picture(given: PlannedPicture, at: int, limits: Limits) -> Picture:
    place = f"pictures[{at}]"
    if given.url is not None and given.width is None and given.height is None:
        image = read_picture(given.url, f"{place}.url", limits).image
        return Picture(*image.size, name=place, digest=image.digest)
    if given.url is None and given.width is not None and given.height is not None:
        return Picture(given.width, given.height, name=place)
    raise InvalidRequest(f"`{place}` must have `width` and `height`, or `url` alone.", param=place)


def _conversation(messages: tuple[Message, ...]) -> Asked:
    from chiasm.operations.plan import text_of

    images = [image for message in messages for image in message.images]
    pictures = [
        Picture(*image.size, name=f"picture {at + 1}", digest=image.digest)
        for at, image in enumerate(images)
    ]
    return pictures, [(message.role, text_of(message)) for message in messages]


def _planned(
    planner: Planner,
    body: PlanRequest,
    pictures: list[Picture],
    messages: list[tuple[str, str]],
    may: May,
) -> dict[str, Any]:
    from chiasm.operations.plan import DEFAULT_ANSWER

    fit = body.fit
    rows = planner.plan(
        pictures,
        messages,
        models=body.models,
        details=body.details,
        answer_tokens=DEFAULT_ANSWER if body.answer_tokens is None else body.answer_tokens,
        fit_tokens=None if fit is None else fit.tokens,
        fit_cost=None if fit is None or fit.cost is None else Decimal(str(fit.cost)),
        may=may,
    )
    return plan_as_dict(rows, pictures, planner.repeats(pictures))
