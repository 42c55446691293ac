"""The generation plane: messages with pictures in, a stream of tokens out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.generation.engine.native import NativeGenerator, load_native_generator
    from chiasm.generation.loading import load_generator
    from chiasm.generation.messages import (
        ImagePart,
        Message,
        Part,
        TextPart,
        ToolCall,
        ToolResult,
    )
    from chiasm.generation.request import (
        Completed,
        Event,
        Finished,
        Generator,
        RefusalDelta,
        Remote,
        Request,
        Restarted,
        Sampling,
        TextDelta,
        TokenLogprob,
        Tool,
        ToolCallDelta,
        Usage,
    )

__all__ = [
    "Completed",
    "Event",
    "Finished",
    "Generator",
    "ImagePart",
    "Message",
    "NativeGenerator",
    "Part",
    "RefusalDelta",
    "Remote",
    "Request",
    "Restarted",
    "Sampling",
    "TextDelta",
    "TextPart",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "Usage",
    "load_generator",
    "load_native_generator",
]

_HOMES = {
    "NativeGenerator": "engine.native",
    "load_native_generator": "engine.native",
    "load_generator": "loading",
    **dict.fromkeys(
        ("ImagePart", "Message", "Part", "TextPart", "ToolCall", "ToolResult"), "messages"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'request')}"), name)
