"""Every route with its parameters, body and answers, from the server's OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from table import table

from chiasm.server.app import create_app
from chiasm.settings import Settings

Schema = dict[str, Any]


@cache
def document() -> Schema:
    """The OpenAPI document of a server with default settings; nothing is loaded or started."""
    return create_app(Settings()).openapi()


def operations() -> Iterator[tuple[str, str, Schema]]:
    """(method, path, operation) of every route."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def write() -> str:
    """One heading a route under one a group, then the objects that they speak of."""
    groups: dict[str, list[str]] = {}
    for method, path, operation in operations():
        tag = (operation.get("tags") or ["other"])[0]
        groups.setdefault(tag, []).append(_section(method, path, operation))
    groups["objects"] = [_object(name) for name in _nested()]
    return "\n\n".join(
        "\n\n".join([f"## {tag[:1].upper()}{tag[1:]}", *sections])
        for tag, sections in groups.items()
    )


def _section(method: str, path: str, operation: Schema) -> str:
    parts = [f"### {operation['summary']}", f"```http\n{method} {path}\n```"]
    if operation.get("description"):
        parts.append(operation["description"])
    if operation.get("parameters"):
        rows = [
            (
                f"`{each['name']}`",
                each["in"],
                _kind(each.get("schema", {})),
                _facts(each.get("schema", {}), each.get("required", False))
                + each.get("description", ""),
            )
            for each in operation["parameters"]
        ]
        parts.append(table(("parameter", "where", "kind", "what it is"), rows))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts += [f"Body, `{media}`:", _fields(content["schema"], sent=True)]
    for status, answer in operation["responses"].items():
        if not status.startswith("2"):
            continue
        for media, content in answer.get("content", {}).items():
            fields = _fields(content.get("schema", {}))
            parts += [f"Answer {status}, `{media}`{':' if fields else '.'}", fields]
    refusals = sorted(status for status in operation["responses"] if int(status) >= 400)
    if refusals:
        parts.append(f"Errors: {', '.join(refusals)}.")
    return "\n\n".join(part for part in parts if part)


def _object(name: str) -> str:
    schema = document()["components"]["schemas"][name]
    return "\n\n".join([f"### {_title(schema)}", schema.get("description", ""), _fields(schema)])


def _nested() -> list[str]:
    """Schemas that stand inside others, in the order of the document."""
    schemas = document()["components"]["schemas"]
    inside = {
        name for schema in schemas.values() for name in _references(schema.get("properties", {}))
    }
    return [name for name in schemas if name in inside]


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rsplit("/", 1)[1]
        part = part.values()
    if not isinstance(part, str | int | float | bool | None):
        for inner in part:
            yield from _references(inner)


def _fields(schema: Schema, *, sent: bool = False) -> str:
    schema = _resolved(schema)
    rows = []
    for name, each in schema.get("properties", {}).items():
        described = each.get("description") or _resolved(each).get("description", "")
        facts = _facts(each, name in schema.get("required", ())) if sent else ""
        rows.append((f"`{name}`", _kind(each), facts + described))
    return table(("field", "kind", "what it is"), rows) if rows else ""


def _resolved(schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = document()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _title(schema: Schema) -> str:
    """What an answer calls the object, or else its schema's name: `search.result`, `Timing`."""
    return str(schema.get("properties", {}).get("object", {}).get("const", schema["title"]))


def _kind(schema: Schema) -> str:
    """A schema in a few words: `list of item`, `text or null`."""
    if "$ref" in schema:
        return f"[{(title := _title(_resolved(schema)))}](#{title.lower()})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("format") == "binary" or schema.get("contentMediaType"):
        return "file"
    kinds = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    kind = schema.get("type", "any")
    return str(kinds.get(kind, kind))


def _facts(schema: Schema, required: bool) -> str:
    facts = ["**required**"] if required else []
    if schema.get("default") not in (None, "", {}):
        facts.append(f"default `{json.dumps(schema['default'])}`")
    for key, words in (("minimum", "at least"), ("maximum", "at most")):
        if key in schema:
            facts.append(f"{words} {schema[key]:,}")
    if "maxLength" in schema:
        facts.append(f"at most {schema['maxLength']:,} characters")
    if "maxItems" in schema:
        facts.append(f"at most {schema['maxItems']:,} entries")
    return f"{', '.join(facts)}. " if facts else ""
