"""`chiasm ask`: a question about pictures, answered while you watch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm import collector
from chiasm.cli.options import Device, Json, Offline, read_settings
from chiasm.cli.weights import fetch_weights
from chiasm.errors import InvalidRequest

if TYPE_CHECKING:
    from chiasm.generation import Generator, Request, Usage
    from chiasm.settings import Settings

GeneratorName = Annotated[
    str | None,
    typer.Option(
        "--generator",
        "-g",
        help="A name of the catalogue, hf:owner/name, a folder, vllm:http://host:port, or a "
        "vendor's model as in openai:gpt-5-mini.",
        show_default="default-vlm",
    ),
]


def ask(
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="PICTURE…", help="The pictures, in order.")
    ] = None,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What you want to know.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Instructions that come first.")] = None,
    text: Annotated[
        bool, typer.Option("--text", help="There is no picture: ask about text alone.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the answer.", show_default="1024")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=2.0, help="0 takes the likeliest token.", show_default="the model's own"
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(max=1.0, help="Share of probability to draw from.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends the answer; repeatable.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="A JSON schema, in a file, that the answer must follow.")
    ] = None,
    generator: GeneratorName = None,
    device: Device = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Ask about one picture or several. The answer goes to standard output as it comes."""
    paths = _sorted_out(pictures or [], question, text)
    settings = read_settings({"generator": generator, "device": device, "offline": offline})
    from chiasm.generation import Message, Request, Sampling, TextPart
    from chiasm.media import open_image

    assert question is not None
    asked = Message.user(*(open_image(path, limits=settings.media) for path in paths), question)
    before = () if system is None else (Message("system", (TextPart(system),)),)
    request = Request(
        messages=(*before, asked),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        stop=tuple(stop or ()),
        schema=None if schema is None else _read_schema(schema),
    )
    model = _generator(settings)
    try:
        _answer(model, request, as_json=as_json)
    finally:
        model.close()


def _sorted_out(pictures: list[str], question: str | None, text: bool) -> list[Path]:
    """The pictures' paths. Raises InvalidRequest where a picture or the question is missing."""
    if question is None or (not text and _is_file(question)):
        raise InvalidRequest(
            "There is no question after the pictures.",
            hint='Write it last, in quotes: chiasm ask cat.jpg "What is this?"',
        )
    if not pictures and not text:
        raise InvalidRequest(
            "There is no picture to ask about.",
            hint="Name one before the question, or give --text to ask without.",
        )
    return [Path(picture) for picture in pictures]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a question can be too long to be a path
        return False


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InvalidRequest(f"The schema {path} could not be read.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path} holds no JSON object.", hint="A JSON schema is one.")
    return schema


def _generator(settings: Settings) -> Generator:
    fetch_weights(settings, settings.generator)
    with collector.paused():
        from chiasm.generation import load_generator

        return load_generator(settings)


def _answer(model: Generator, request: Request, *, as_json: bool) -> None:
    from chiasm import terminal
    from chiasm.generation import Completed, Finished, TextDelta

    pieces: list[str] = []
    reason, usage = "stop", None
    for event in model.run(request):
        if isinstance(event, TextDelta):
            pieces.append(event.text)
            if not as_json:
                sys.stdout.write(event.text)
                sys.stdout.flush()
        elif isinstance(event, Finished):
            reason = event.reason
        elif isinstance(event, Completed):
            usage = event.usage
    assert usage is not None
    if as_json:
        answer = {"model": model.name, "answer": "".join(pieces), "finish_reason": reason}
        terminal.print_json({**answer, "usage": _figures(usage)})
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    terminal.err.print(f"[dim]{_summary(usage, reason)}[/]", highlight=False)


def _figures(usage: Usage) -> dict[str, Any]:
    return {
        "image_tokens": usage.image_tokens,
        "text_tokens": usage.text_tokens,
        "answer_tokens": usage.answer_tokens,
        "images": usage.images,
        "vision_flops": usage.vision_flops,
        "language_flops": usage.language_flops,
        "seconds": dict(usage.seconds),
        "tokens_per_second": usage.tokens_per_second,
    }


def _summary(usage: Usage, reason: str) -> str:
    parts = [
        f"{usage.image_tokens} image tokens",
        f"{usage.text_tokens} text tokens",
        *_compute(usage),
        f"first token after {usage.seconds['first_token']:.2f} s",
    ]
    if usage.tokens_per_second:
        parts.append(f"{usage.tokens_per_second:.1f} tokens/s")
    if reason == "length":
        parts.append("cut at --max-tokens")
    return " · ".join(parts)


def _compute(usage: Usage) -> list[str]:
    if not usage.language_flops:  # run elsewhere
        return []
    return [f"{usage.vision_flops / 1e9:.1f} + {usage.language_flops / 1e9:.1f} GFLOP"]
