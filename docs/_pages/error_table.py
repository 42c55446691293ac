"""Every error class with its code, its HTTP status and its exit code."""

from __future__ import annotations

from collections.abc import Iterator

from table import table

from chiasm.errors import ChiasmError


def errors(base: type[ChiasmError] = ChiasmError) -> Iterator[type[ChiasmError]]:
    """Every class below `base` that is defined in `chiasm.errors`, in the order of the file."""
    for each in base.__subclasses__():
        if each.__module__ == "chiasm.errors":
            yield each
            yield from errors(each)


def write() -> str:
    """One row an error."""
    rows = [
        (
            f"`{each.code}`" if each.code else "",
            str(each.http_status),
            str(each.exit_code),
            " ".join((each.__doc__ or "").split()),
            f"`{each.__name__}`",
        )
        for each in errors()
    ]
    return table(("code", "HTTP", "exit", "what happened", "in Python"), rows)
