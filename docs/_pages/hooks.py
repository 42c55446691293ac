"""Parts of the reference that the code itself knows, written when the site is built.

A page holds a marker, an HTML comment such as `<!-- generated: commands -->`; what replaces it is
made from the command line's own objects, the settings' dataclasses, the error classes or the
server's OpenAPI document. So none of it can be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import commands
import endpoints
import error_table
import settings_table

MARKER = re.compile(r"<!-- generated: ([a-z_-]+)(?: (\S+))? -->")
WRITERS: dict[str, Callable[..., str]] = {
    "commands": commands.write,
    "endpoints": endpoints.write,
    "errors": error_table.write,
    "setting": settings_table.write_one,
    "settings": settings_table.write_all,
    "table": settings_table.write_table,
}


def fill_in(markdown: str) -> str:
    """`markdown` with every marker replaced."""

    def written(marker: re.Match[str]) -> str:
        name, argument = marker.groups()
        return WRITERS[name](*([] if argument is None else [argument]))

    return MARKER.sub(written, markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for each page before it is rendered."""
    return fill_in(markdown)
