"""`/v1/responses` in OpenAI's shape: what goes in and what comes out.

Fields as the Responses API has them (developers.openai.com/api/reference/resources/responses; read
2026-11 from the types of its Python SDK 3.54). What would change the answer and cannot be done is
refused; what is a wish about caching or bookkeeping is taken. Nothing is stored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from chiasm.server.chat_schemas import AnswerTokens, Compute, Fitting
from chiasm.server.schemas import EXAMPLE_PICTURE, Request, example

_INPUT: dict[str, Any] = {
    "description": "A question, or a list of items: messages of `input_text` and `input_image` "
    "parts, `function_call`, `function_call_output`.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
}


class ResponsesTool(Request):
    """A function that the model may ask for. Tools that OpenAI runs itself are not run here."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="A JSON schema of the arguments."
    )
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class NamedFunction(Request):
    """The function that the model must ask for."""

    type: Literal["function"]
    name: str


class AllowedTools(Request):
    """Some of the tools: the model may (`auto`) or must (`required`) ask for one of them."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunction]


class TextFormat(Request):
    """Free text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = Field(default="answer", max_length=64)
    description: str | None = None
    # Called `schema` outside; pydantic's own models have an attribute of that name.
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Request):
    """What the answer looks like."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Request):
    """How long the model thinks. Its thoughts are never shown; there is no summary of them."""

    effort: str | None = Field(
        default=None, description="none, minimal, low, medium, high, xhigh or max."
    )
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponsesStreamOptions(Request):
    """Taken, and not used."""

    include_obfuscation: bool | None = None


class CacheOptions(Request):
    """Taken: what is remembered of a prompt is decided here, by `cache_salt`."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: str | None = None


class ResponsesPrompt(Fitting):
    """What both asking and counting take."""

    input: Any = Field(json_schema_extra=_INPUT)
    model: str | None = Field(
        default=None, description="A served model's id; `default`, or none, is the server's own."
    )
    instructions: str | None = Field(default=None, description="A system message before the input.")
    tools: list[ResponsesTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["auto", "none", "required"] | NamedFunction | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = Field(
        default=None, description="What is longer than the context is refused, never cut."
    )
    previous_response_id: str | None = Field(
        default=None, description="Refused: nothing is stored. Send the conversation as `input`."
    )
    conversation: Any = Field(default=None, description="As `previous_response_id`.")


class ResponsesCount(ResponsesPrompt):
    """A prompt whose tokens are counted. Nothing is sent to a model."""

    model_config = example(model="default", input="What is this?")


class ResponsesRequest(ResponsesPrompt):
    """A question about pictures, or about none.

    What would change the answer and is not supported is refused, never dropped in silence.
    """

    model_config = example(
        model="default",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": EXAMPLE_PICTURE, "detail": "auto"},
                    {"type": "input_text", "text": "What is this?"},
                ],
            }
        ],
        max_output_tokens=32,
    )

    max_output_tokens: int | None = Field(default=None, description="Of the answer.")
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = Field(
        default=None,
        max_length=16,
        description="`message.output_text.logprobs`; the others are of tools that are not run "
        "here, or of thoughts that are not shown.",
    )
    stream: bool | None = Field(default=None, description="Server-sent events.")
    stream_options: ResponsesStreamOptions | None = None
    background: Literal[False] | None = None
    store: bool | None = Field(default=None, description="Taken; nothing is stored.")
    metadata: dict[str, str] | None = Field(default=None, description="Given back.")
    max_tool_calls: int | None = Field(
        default=None, description="Taken: it is of tools that OpenAI runs."
    )
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = Field(default=None, description="Taken, and not used.")
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: str | None = Field(default=None, description="Taken, and not used.")
    safety_identifier: str | None = Field(default=None, description="Taken, and not used.")
    user: str | None = Field(default=None, description="Taken, and not used.")


# The answer -------------------------------------------------------------------------------------


class OutputItem(BaseModel):
    """A message, with texts or a refusal; or the wish for a function."""

    id: str
    type: Literal["message", "function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] | None = None
    content: list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = Field(
        default=None, description="JSON, as the model wrote it: check it."
    )


class InputTokens(BaseModel):
    """Where the prompt's tokens came from."""

    text_tokens: int
    image_tokens: int
    cached_tokens: int
    cache_write_tokens: int


class ResponsesUsage(BaseModel):
    """The three budgets. `images` and all below it come on top of OpenAI's fields."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: AnswerTokens
    total_tokens: int
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


class IncompleteDetails(BaseModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(BaseModel):
    """The answer; with it comes what was asked for, as OpenAI has it."""

    id: str = Field(examples=["resp_4f1c"])
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[OutputItem]
    error: dict[str, Any] | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponsesUsage | None = None


class InputTokenCount(BaseModel):
    """How many tokens a prompt has."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
