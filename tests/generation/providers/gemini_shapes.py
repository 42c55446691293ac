"""What Google's Gemini API sends in answer to `:streamGenerateContent?alt=sse`.

Each object is held against the official SDK's types, which refuse fields that they do not know,
before it is sent, so that no test stands on a shape that Google does not have.
"""

from __future__ import annotations

from typing import Any

from google.genai.types import GenerateContentResponse

from tests.generation.providers.fake_openai import Step


def chunk(*parts: dict[str, Any], reason: str | None = None, **more: Any) -> Step:
    """A piece of an answer. index: which one; usage: the bill so far; logprobs: of its tokens."""
    candidate: dict[str, Any] = {"index": more.pop("index", 0)}
    if parts:
        candidate["content"] = {"parts": list(parts), "role": "model"}
    if reason is not None:
        candidate["finishReason"] = reason
    if "logprobs" in more:
        candidate["logprobsResult"] = more.pop("logprobs")
    return whole(candidates=[candidate], usage=more.pop("usage", None))


def whole(usage: dict[str, Any] | None = None, **fields: Any) -> Step:
    said = {
        **fields,
        "usageMetadata": usage or spent(),
        "modelVersion": "gemini-3.8-flash",
        "responseId": "KoBRaZjGHMfVjMcP8_CpeQ",
    }
    GenerateContentResponse.model_validate(said)
    return said


def spent(
    text: int = 10, image: int = 0, answer: int = 0, thought: int = 0, cached: int = 0
) -> dict[str, Any]:
    """A bill. Fields whose number is 0 are left out, as Google does."""
    details = [{"modality": "TEXT", "tokenCount": text}]
    if image:
        details.append({"modality": "IMAGE", "tokenCount": image})
    bill = {
        "promptTokenCount": text + image,
        "totalTokenCount": text + image + answer + thought,
        "promptTokensDetails": details,
    }
    counts = {
        "candidatesTokenCount": answer,
        "thoughtsTokenCount": thought,
        "cachedContentTokenCount": cached,
    }
    return bill | {name: count for name, count in counts.items() if count}


def called(
    name: str, args: dict[str, Any], id: str | None = None, signature: str | None = None
) -> dict[str, Any]:
    """A part: a wish for a tool. Models before Gemini 3 give neither an id nor a signature."""
    call: dict[str, Any] = {"name": name, "args": args}
    if id is not None:
        call["id"] = id
    part: dict[str, Any] = {"functionCall": call}
    if signature is not None:
        part["thoughtSignature"] = signature
    return part


def answer(said: str = "A cat sleeps.", reason: str = "STOP") -> list[Step]:
    """A whole answer, a word a chunk; the last is empty but for the reason."""
    split = said.split(" ")
    pieces = [word if not at else f" {word}" for at, word in enumerate(split)]
    return [
        *(chunk({"text": piece}) for piece in pieces),
        chunk({"text": ""}, reason=reason, usage=spent(answer=4)),
    ]


def refusal(
    code: int, status: str, said: str, *details: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """An error's body."""
    error: dict[str, Any] = {"code": code, "message": said, "status": status}
    if details:
        error["details"] = list(details)
    return {"error": error}


def info(reason: str) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }


def retry(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def violation(field: str, said: str) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": said}],
    }
