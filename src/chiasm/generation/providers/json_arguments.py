"""The arguments of a tool's call as an object, which some vendors want; we keep them as JSON."""

from __future__ import annotations

import json
from typing import Any

from chiasm.errors import InvalidRequest
from chiasm.generation.messages import ToolCall


def arguments_of(call: ToolCall, where: str) -> dict[str, Any]:
    """None is an empty object. where: the message, for the InvalidRequest for what is no object."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"{where}: the arguments of {call.name!r} are no JSON object.",
            param=f"{where}.tool_calls",
        )
    return arguments
