"""`/v1/messages` in Anthropic's shape: what goes in and what comes out.

Fields as Anthropic's Messages API has them (platform.claude.com/docs/en/api/messages, version
2023-06-01; read 2026-11 from the types of its Python SDK 2.14). What would change the answer and
cannot be done is refused; what is a wish about caching or bookkeeping is taken.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from chiasm.server.chat_schemas import Compute, Fitting
from chiasm.server.schemas import EXAMPLE_PICTURE, Request, example

_TEXTS: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]
}
_MESSAGES: dict[str, Any] = {
    "description": "Users and assistants in turns. Content is a text, or a list of blocks: `text`, "
    "`image`, `tool_use`, `tool_result`.",
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _TEXTS},
    },
}


class CacheControl(Request):
    """Taken: what is remembered of a prompt is decided here, by `cache_salt`."""

    type: Literal["ephemeral"] = "ephemeral"
    ttl: Literal["5m", "1h"] | None = None


class MessagesMetadata(Request):
    """Taken, and not used."""

    user_id: str | None = None


class MessagesTool(Request):
    """A function that the model may ask for. Tools that Anthropic runs itself are not run here."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="A JSON schema of the arguments.")
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = Field(default=None, description="Taken, and not used.")
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class MessagesToolChoice(Request):
    """Whether it may (`auto`), must (`any`, or `tool` by its name) or must not (`none`)."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, description="Of the tool; with type `tool` alone.")
    disable_parallel_tool_use: bool | None = None


class Thinking(Request):
    """`adaptive` leaves it to the model, as leaving it out does. Thoughts are never shown."""

    type: Literal["adaptive", "disabled"] = Field(
        description="A budget of its own cannot be passed on: say `output_config.effort`."
    )
    display: Literal["omitted"] | None = None


class OutputFormat(Request):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    # Called `schema` outside; pydantic's own models have an attribute of that name.
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Request):
    """How long to think, and what the answer looks like."""

    effort: str | None = Field(
        default=None, description="low, medium, high, xhigh or max, as the model has it."
    )
    format: OutputFormat | None = None


class MessagesPrompt(Fitting):
    """What both asking and counting take."""

    messages: Any = Field(json_schema_extra=_MESSAGES)
    model: str | None = Field(
        default=None, description="A served model's id; `default`, or none, is the server's own."
    )
    system: Any = Field(
        default=None, json_schema_extra={"description": "Instructions, as text blocks.", **_TEXTS}
    )
    tools: list[MessagesTool] | None = Field(default=None, max_length=128)
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None


class CountRequest(MessagesPrompt):
    """A prompt whose tokens are counted. Nothing is sent to a model."""

    model_config = example(model="default", messages=[{"role": "user", "content": "What is this?"}])


class MessagesRequest(MessagesPrompt):
    """A question about pictures, or about none.

    What would change the answer and is not supported is refused, never dropped in silence.
    """

    model_config = example(
        model="default",
        max_tokens=32,
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {
                            "type": "base64",
                            "media_type": "image/png",
                            "data": EXAMPLE_PICTURE.partition(",")[2],
                        },
                    },
                    {"type": "text", "text": "What is this?"},
                ],
            }
        ],
    )

    max_tokens: int = Field(description="Of the answer.")
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = Field(default=None, description="Texts that end the answer.")
    stream: bool | None = Field(default=None, description="Server-sent events.")
    metadata: MessagesMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(
        default=None, description="Taken, and not used."
    )


# The answer -------------------------------------------------------------------------------------


class MessagesBlock(BaseModel):
    """A text, or the wish for a tool."""

    type: Literal["text", "tool_use"]
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = Field(default=None, description="As the model wrote it.")


class ThoughtTokens(BaseModel):
    """Where the answer's tokens went."""

    thinking_tokens: int


class MessagesUsage(BaseModel):
    """The three budgets. `images` and all below it come on top of Anthropic's fields."""

    input_tokens: int = Field(description="Without those that a cache held or took up.")
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThoughtTokens
    text_tokens: int = Field(description="Of the whole prompt.")
    image_tokens: int = Field(description="Of the whole prompt.")
    images: int
    cost: float | None = Field(
        default=None, description="In USD, by list prices; null where none is known."
    )
    estimated: bool = Field(
        default=False,
        description="The provider gave one sum: which share the pictures have is by rule.",
    )
    compute: Compute
    seconds: dict[str, float]


class StopDetails(BaseModel):
    """Why a model will not answer, in its words."""

    type: Literal["refusal"] = "refusal"
    category: str | None = None
    explanation: str | None = None


class MessagesAnswer(BaseModel):
    """The answer."""

    id: str = Field(examples=["msg_4f1c"])
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[MessagesBlock]
    stop_reason: Literal["end_turn", "stop_sequence", "max_tokens", "tool_use", "refusal"]
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: MessagesUsage


class TokenCount(BaseModel):
    """How many tokens a prompt has."""

    input_tokens: int


# Models -----------------------------------------------------------------------------------------


class Page(BaseModel):
    """Which of the models. `after_id`, `before_id`: the model that the page begins or ends at."""

    limit: int = Field(default=20, ge=1, le=1000)
    after_id: str | None = None
    before_id: str | None = None


class MessagesModel(BaseModel):
    """A model that answers questions."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: datetime = Field(description="When the server started.")
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None = Field(
        default=None, description="Pictures and answer included; null where nobody knows."
    )


class MessagesModelList(BaseModel):
    """A page of them."""

    data: list[MessagesModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


# Errors -----------------------------------------------------------------------------------------


class MessagesErrorDetail(BaseModel):
    """What happened, to what, and what to do."""

    type: str = Field(examples=["invalid_request_error"])
    message: str = Field(examples=["messages[0].content is empty. Give it at least one block."])


class MessagesError(BaseModel):
    """The body of every answer with an error status, as Anthropic has it."""

    type: Literal["error"] = "error"
    error: MessagesErrorDetail
    request_id: str
