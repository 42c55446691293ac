"""JSON files beside a checkpoint's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chiasm.errors import UnsupportedCheckpoint


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must be there and hold an object. Raises UnsupportedCheckpoint."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedCheckpoint(f"{path.parent} holds no {path.name}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise UnsupportedCheckpoint(f"{path} is not a JSON object.")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same, and an empty object where there is no such file."""
    return read_json(path) if path.is_file() else {}
