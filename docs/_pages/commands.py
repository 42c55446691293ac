"""Every command with its arguments and options, read from the command line's own objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main
from table import table

from chiasm import cli

_MARKUP = re.compile(r"\[/?[a-z ]*\]")


def walk() -> Iterator[tuple[str, Any]]:
    """("chiasm index", its command) for each command that does something."""
    yield from _below("chiasm", typer.main.get_command(cli.app))


def _below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        if getattr(inner, "commands", None):
            yield from _below(f"{path} {name}", inner)
        else:
            yield f"{path} {name}", inner


def write() -> str:
    """One heading a command."""
    return "\n\n".join(_section(path, command) for path, command in walk())


def _section(path: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [
        each
        for each in command.params
        if each.param_type_name == "option" and not each.hidden and each.name != "help"
    ]
    usage = " ".join([path, "[OPTIONS]", *(_argument(each) for each in arguments)])
    parts = [f"## {path}", _plain(command.help), f"```text\n{usage}\n```"]
    if arguments:
        rows = [(f"`{_argument(each)}`", _plain(each.help)) for each in arguments]
        parts.append(table(("argument", "what it is"), rows))
    if options:
        rows = [
            (", ".join(f"`{name}`" for name in names(each)), _plain(each.help), _default(each))
            for each in options
        ]
        parts.append(table(("option", "what it does", "default"), rows))
    return "\n\n".join(parts)


def names(option: Any) -> list[str]:
    """Every spelling of an option, `--no-…` included."""
    return [*option.opts, *option.secondary_opts]


def _argument(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return f"`{option.show_default}`"
    if option.default is None or option.show_default is False:
        return ""
    if option.is_flag:
        if not option.secondary_opts:
            return ""
        return f"`{option.opts[0] if option.default else option.secondary_opts[0]}`"
    return f"`{option.default}`"


def _plain(text: str | None) -> str:
    return _MARKUP.sub("", " ".join((text or "").split()))
