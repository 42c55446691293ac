"""`/v1/chat/completions` in OpenAI's shape: what goes in and what comes out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from chiasm.generation.request import Effort
from chiasm.server.schemas import EXAMPLE_PICTURE, Request, example

_PART: dict[str, Any] = {
    "anyOf": [
        {"$ref": "#/components/schemas/TextPart"},
        {"$ref": "#/components/schemas/ImagePart"},
    ]
}
MESSAGES: dict[str, Any] = {
    "description": "The conversation: perhaps a system message first, then users and assistants "
    "in turns. A user's content is a text or a list of text and image parts; several pictures "
    "may stand in it.",
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
            "tool_calls": {"type": "array", "items": {"type": "object"}},
            "tool_call_id": {"type": "string"},
            "name": {"type": "string"},
        },
    },
}


class StreamOptions(Request):
    """How a stream ends."""

    include_usage: bool = Field(
        default=False, description="Send a last chunk with `usage` and no choices."
    )
    include_obfuscation: bool | None = Field(default=None, description="Taken, and not used.")


class JsonSchema(Request):
    """A schema with a name."""

    name: str = Field(default="answer", max_length=64)
    description: str | None = None
    # Called `schema` outside; pydantic's own models have an attribute of that name.
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="Answers always follow the schema.")


class ResponseFormat(Request):
    """Free text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Function(Request):
    """What a tool does, and which arguments it takes."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="A JSON schema of the arguments.",
    )
    strict: bool | None = None


class ChatTool(Request):
    """A function that the model may ask for."""

    type: Literal["function"] = "function"
    function: Function


class FunctionName(Request):
    """Which one."""

    name: str


class ChosenTool(Request):
    """The function that the model must ask for."""

    type: Literal["function"] = "function"
    function: FunctionName


class Fitting(Request):
    """What one request may take, on top of every vendor's own fields."""

    max_image_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Scale the pictures down to the largest size at which they take no more.",
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        description="In USD. Pictures are scaled down to keep to it; what still costs more is "
        "refused before it is sent.",
    )
    restart: bool | None = Field(
        default=None,
        description="Begin anew with another model when one breaks off in the middle. A chunk "
        "with `restarted` then says that what came before is void.",
    )
    priority: int | None = Field(
        default=None,
        ge=-1_000_000,
        le=1_000_000,
        description="0 by default; under load, smaller numbers are served first.",
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which the answer is of no use: the request then ends with 504.",
    )
    cache_salt: str | None = Field(
        default=None,
        max_length=256,
        description="Prompts and pictures are remembered for requests with the same salt alone.",
    )


class ChatRequest(Fitting):
    """A question about pictures, or about none.

    What would change the answer and is not supported is refused, never dropped in silence.
    """

    model_config = example(
        model="default",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": EXAMPLE_PICTURE}},
                    {"type": "text", "text": "What is this?"},
                ],
            }
        ],
        max_tokens=32,
    )

    messages: Any = Field(json_schema_extra=MESSAGES)
    model: str | None = Field(
        default=None, description="A served model's id; `default`, or none, is the server's own."
    )
    max_tokens: int | None = Field(default=None, description="Of each answer.")
    max_completion_tokens: int | None = Field(default=None, description="The newer name of it.")
    temperature: float | None = Field(
        default=None, description="0, the default, takes the likeliest token."
    )
    top_p: float | None = Field(default=None, description="1 by default: all tokens.")
    top_k: int | None = Field(default=None, description="0 by default: all tokens.")
    stop: str | list[str] | None = Field(default=None, description="Texts that end the answer.")
    seed: int | None = Field(default=None, description="The same seed, the same answer.")
    n: int | None = Field(default=None, description="How many answers.")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = Field(default=None, description="Server-sent events, a chunk each.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Taken as OpenAI has it, and not used.")
    metadata: dict[str, str] | None = Field(default=None, description="Taken, and not used.")
    frequency_penalty: float | None = Field(default=None, description="0, or left out, is none.")
    presence_penalty: float | None = Field(default=None, description="0, or left out, is none.")
    tools: list[ChatTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None


# The answer -------------------------------------------------------------------------------------


class CalledFunction(BaseModel):
    """Which function, with what."""

    name: str
    arguments: str = Field(description="JSON, as the model wrote it: check it.")


class ChatToolCall(BaseModel):
    """The model wants a function to be called."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[ChatToolCall] | None = None


class TopLogprob(BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The answer, token by token."""

    content: list[ContentLogprob]


class Choice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class PromptTokens(BaseModel):
    """Where the prompt's tokens came from."""

    text_tokens: int
    image_tokens: int = Field(description="Positions of the context that pictures took.")
    cached_tokens: int = Field(description="Read before, and not read again.")
    audio_tokens: int = 0


class Compute(BaseModel):
    """Operations that were done for this request: a multiplication and an addition are two."""

    vision_flops: int = Field(description="Image tower and projector.")
    language_flops: int = Field(description="Language model.")


class AnswerTokens(BaseModel):
    """Where the answer's tokens went."""

    reasoning_tokens: int = Field(description="Thought, and not shown.")


class ChatUsage(BaseModel):
    """The three budgets: vision compute, language compute, and context tokens.

    `compute`, `images`, `cost`, `estimated` and `seconds` come on top of OpenAI's fields.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: AnswerTokens
    images: int
    cost: float | None = Field(
        default=None, description="In USD, by list prices; null where none is known."
    )
    estimated: bool = Field(
        default=False,
        description="The provider gave one sum: which share the pictures have is by rule.",
    )
    compute: Compute
    seconds: dict[str, float] = Field(
        description="By stage: queue, prepare, encode, prefill, decode; and to the first token."
    )


class ChatCompletion(BaseModel):
    """The answers."""

    id: str = Field(examples=["chatcmpl-4f1c"])
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str = Field(description="The weights' digest, shortened.")
    choices: list[Choice]
    usage: ChatUsage
