"""`/v1/plan`: what would be asked, and what it would take of each model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from chiasm.server.chat_schemas import MESSAGES
from chiasm.server.schemas import DataUrl, Request, example

MOST_MODELS = 256


class PlannedPicture(Request):
    """A picture: its size alone, or the picture itself, of which its header is read."""

    width: int | None = Field(default=None, ge=1, le=1_000_000, examples=[1920])
    height: int | None = Field(default=None, ge=1, le=1_000_000, examples=[1080])
    url: DataUrl | None = None


class PlanFit(Request):
    """A budget that the pictures are scaled down to, model by model."""

    tokens: int | None = Field(default=None, ge=1, description="Of all pictures together.")
    cost: float | None = Field(default=None, gt=0, description="Of the request, in USD.")


class PlanRequest(Request):
    """Pictures and words that would be asked about. Nothing is sent to a model."""

    model_config = example(
        pictures=[{"width": 1920, "height": 1080}], prompt="What is in this picture?"
    )

    pictures: list[PlannedPicture] = Field(
        default_factory=list, max_length=600, description="In the order in which they are sent."
    )
    prompt: str = Field(default="", description="What would be asked about them.")
    messages: Any = Field(
        default=None,
        json_schema_extra={
            **MESSAGES,
            "description": "A whole conversation instead, as `/v1/chat/completions` takes it.",
        },
    )
    models: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_MODELS,
        description="Routes, `provider/model`, or open models; all that are known if it is left"
        " out.",
    )
    details: list[str] | None = Field(
        default=None,
        max_length=8,
        description="Levels of detail, for models that have them; every one if it is left out.",
    )
    answer_tokens: int | None = Field(
        default=None, ge=0, le=10_000_000, description="Of the answer; 300 if it is left out."
    )
    fit: PlanFit | None = None


class PlannedImage(BaseModel):
    """What a picture becomes for one model."""

    tokens: int = Field(description="Positions of the context, as they are billed.")
    width: int = Field(description="At which the model sees it.")
    height: int
    tiles: int = Field(description="Crops, the overview included.")
    grid: list[int] | None = Field(description="Columns and rows of crops or patches.")
    sent: list[int] = Field(description="Width and height at which it is sent: `fit` scales it.")


class PlanEntry(BaseModel):
    """One model at one level of detail."""

    model: str = Field(description="As it is asked for here.")
    name: str
    provider: str = Field(description="Who runs it; empty for this server.")
    detail: str
    images: list[PlannedImage]
    image_tokens: int
    text_tokens: int
    text_error: float = Field(description="Nine of ten texts are within this share; 0 is exact.")
    text_by: str
    answer_tokens: int = Field(description="Assumed.")
    cost: float | None = Field(description="USD by list prices; null where none are known.")
    repeated_cost: float | None = Field(description="Of it, for pictures that came before.")
    seconds_to_first_token: float | None
    seconds_known: Literal["measured"] | None
    vision_flops: int | None = Field(description="Of open models whose sizes are known.")
    language_flops: int | None
    context: int | None
    fits_context: bool | None
    source: str = Field(description="Of the rule for pictures.")
    read: str | None = Field(description="When the source was read.")
    evidence: str = Field(description="document, bill or code.")
    price_source: str
    refusal: str | None = Field(description="Why the vendor would not take this.")


class PictureSize(BaseModel):
    """A picture that was asked about."""

    name: str
    width: int
    height: int


class PlanRepeat(BaseModel):
    """A picture that is there already; both count from 0."""

    picture: int
    first: int


class Plan(BaseModel):
    """A row a model and level, the cheapest first; those of no known price come last."""

    object: Literal["plan"] = "plan"
    currency: Literal["USD"] = "USD"
    pictures: list[PictureSize]
    repeats: list[PlanRepeat]
    data: list[PlanEntry]
