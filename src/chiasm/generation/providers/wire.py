"""OpenAI's chat API as vLLM speaks it: what it adds, and what it is always told.

vLLM's additions to OpenAI's fields (`top_k`, `repetition_penalty`, `min_p`) are always sent: what
is left out it takes from the checkpoint's `generation_config.json`, and the same question would
have another answer there than here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from chiasm.generation.messages import Message, ToolCall, check_conversation
from chiasm.generation.providers.chat_messages import (
    chat_messages,
    chat_tools,
    check_parts,
    sender,
)
from chiasm.generation.providers.json_body import JsonBody
from chiasm.generation.request import Ability, Request
from chiasm.media import Image
from chiasm.media.limits import Limits

DEFAULT_MAX_TOKENS = 1024  # as here; without a limit vLLM goes on to the end of its context
ABILITIES: frozenset[Ability] = frozenset(
    ("choices", "effort", "logprobs", "penalties", "schema", "seed", "stop", "temperature",
     "tools", "top_k", "top_p")
)  # fmt: skip


def check_messages(request: Request, model: str) -> None:
    """Raise InvalidRequest for a conversation that no chat template would take.

    Once tools are spoken of their own template decides who speaks after whom.
    """
    with_tools = any(
        message.role == "tool" or any(isinstance(part, ToolCall) for part in message.parts)
        for message in request.messages
    )
    if not with_tools:
        check_conversation(request.messages)
    check_parts(request.messages, pictures_from_tools=False, model=model)


def chat_body(request: Request, model: str, context: int, limits: Limits) -> bytes:
    """What is posted to `/v1/chat/completions`. Encodes pictures: call it in a thread."""
    written, sampling = JsonBody(), request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": chat_messages(request.messages, written, sender(limits), joined=True),
        # More than its context vLLM refuses, where only what is left could be generated anyway.
        "max_tokens": min(request.max_tokens or DEFAULT_MAX_TOKENS, context),
        "n": request.choices,
        "temperature": sampling.temperature or 0.0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.priority:
        body["priority"] = request.priority
    if request.tenant:
        # vLLM shares what it has cached among requests of the same salt alone.
        name = f"chiasm-tenant-1 {request.tenant}".encode()
        body["cache_salt"] = hashlib.sha256(name).hexdigest()
    if request.schema is not None:
        schema = {"name": request.schema_name, "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.effort is not None:
        body["reasoning_effort"] = request.effort
    return b"".join(written.pieces(body | chat_tools(request)))


def one_picture(image: Image, text: str) -> dict[str, Any]:
    """A user's message, as JSON has it: a picture and a question."""
    written = JsonBody()
    message = Message.user(image, text)
    pieces = written.pieces(chat_messages([message], written, sender(Limits()))[0])
    found: dict[str, Any] = json.loads(b"".join(pieces))
    return found
