"""Lets the reference show `name: what it is` in a docstring as a list.

The docstrings of this project describe parameters and attributes in plain lines, which Markdown
would run together into one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMED = re.compile(r"(\w+(?:, \w+)*): (\S.*)")


class NamedParts(griffe.Extension):
    """Runs over each object once griffe has read it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a function or a class."""
        if obj.docstring and isinstance(obj, griffe.Function | griffe.Class):
            names = {parameter.name for parameter in obj.parameters} | set(obj.members)
            obj.docstring.value = as_list(obj.docstring.value, names)


def as_list(docstring: str, names: set[str]) -> str:
    """`docstring` with each paragraph that begins with one of `names` and a colon as an entry."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        named = _NAMED.fullmatch(line)
        if named and names.issuperset(named[1].split(", ")):
            if not inside:
                lines.append("")
            lines.append(f"- `{named[1].replace(', ', '`, `')}`: {named[2]}")
            inside = True
        elif inside and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
            inside = False
    return "\n".join(lines)
