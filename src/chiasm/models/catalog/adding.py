"""A folder of the user's own, entered into the user's own catalogue."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiasm.errors import ChiasmError, ConfigurationError, InvalidRequest, NoSpace
from chiasm.models.catalog import cache
from chiasm.models.catalog.entry import Entry, File, is_name, parse

_HEADER = re.compile(r"""\s*\[\[?\s*(?:"(?P<quoted>[^"]+)"|(?P<bare>[\w-]+))\s*[.\]]""")


def check_name(name: str) -> str:
    """`name`, if a catalogue's entry can be called that. Raises InvalidRequest."""
    if not is_name(name):
        raise InvalidRequest(
            f"{name!r} is no name for an entry of the catalogue.",
            hint="Use letters, digits, dots, hyphens and underscores, such as shoes-2026.",
            param="name",
        )
    return name


def add_entry(
    catalog_file: Path,
    name: str,
    folder: Path,
    *,
    kind: str = "dual-encoder",
    licence: str = "not stated",
    description: str,
) -> Entry:
    """Enter `folder`, with the size and the SHA-256 of every file in it, under `name`.

    The folder is used where it stands; it must not be changed afterwards, or pulling the entry
    says which file was. An entry of that name is replaced; the rest of the catalogue stays, with
    its comments. The file is seen as it was or as it will be, whoever else writes it.

    Raises InvalidRequest for a name or a folder that cannot be entered, ConfigurationError for a
    catalogue that cannot be changed, NoSpace.
    """
    check_name(name)
    folder = folder.expanduser().resolve()
    files = _files(folder)
    needs = _needs(folder)
    if name in needs:
        raise InvalidRequest(
            f"{name} is a part that {folder} itself is made of.", hint="Choose another name."
        )
    import filelock

    table = _written(name, folder, files, needs, (kind, licence, description))
    try:
        catalog_file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(catalog_file.with_name(f".{catalog_file.name}.lock")):
            text = _text_with(catalog_file, name, table)
            cache.write_atomically(catalog_file, text.encode())
    except OSError as error:
        hint = f"The model can be used by its path: {folder}"
        if error.errno in cache.FULL:
            raise NoSpace(f"{catalog_file}: there is no space left.", hint=hint) from None
        raise ChiasmError(f"{catalog_file} cannot be written.", hint=hint) from None
    return parse(text, catalog_file)[name]


def _files(folder: Path) -> dict[str, File]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in paths}
    files = {
        name.as_posix(): File(path.stat().st_size, cache.digest_of(path))
        for name, path in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }
    if not files:
        raise InvalidRequest(f"{folder} is no folder with files in it.", param="folder")
    return files


def _needs(folder: Path) -> list[str]:
    """Entries that a checkpoint stands on, which its `config.json` may name."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # not every model has one
    needs = config.get("needs", []) if isinstance(config, dict) else []
    return [str(name) for name in needs]


# The file's text --------------------------------------------------------------------------------


def _written(
    name: str,
    folder: Path,
    files: Mapping[str, File],
    needs: list[str],
    texts: tuple[str, str, str],
) -> str:
    lines = [f"[{_quoted(name)}]"]
    lines += [
        f"{key} = {_quoted(text)}"
        for key, text in zip(("kind", "licence", "description"), texts, strict=True)
    ]
    lines += ["bytes = 0  # nothing is fetched"]
    if needs:
        lines += [f"needs = [{', '.join(map(_quoted, needs))}]"]
    lines += [f"sources = [{{ from = {_quoted(f'file:{folder}')}, in_place = true }}]"]
    lines += ["", f"[{_quoted(name)}.files]"]
    lines += [
        f"{_quoted(path)} = {{ bytes = {file.bytes}, sha256 = {_quoted(file.sha256)} }}"
        for path, file in files.items()
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML, whose escapes are JSON's, and one more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text_with(catalog_file: Path, name: str, table: str) -> str:
    """The catalogue's text with `table` in the place of the entry `name`, or at its end."""
    try:
        text = catalog_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except UnicodeDecodeError:
        raise ConfigurationError(f"The catalogue {catalog_file} is not text.") from None
    before = parse(text, catalog_file)
    rest = _without(name, text)
    changed = f"{rest}\n\n{table}" if rest else table
    others: dict[str, Any] = {key: entry for key, entry in before.items() if key != name}
    try:
        after = parse(changed, catalog_file)
    except ConfigurationError:
        after = {}
    if {key: entry for key, entry in after.items() if key != name} != others or name not in after:
        raise ConfigurationError(
            f"The entry {name!r} of {catalog_file} is written in a way that cannot be replaced.",
            hint="Delete it from the file, then try again.",
        )
    return changed


def _without(name: str, text: str) -> str:
    """`text` without the tables of `name`. Comments above another's table stay with that."""
    kept: list[str] = []
    waiting: list[str] = []  # comments after our last line: ours if nothing follows them
    ours = False
    for line in text.splitlines():
        if header := _HEADER.match(line):
            ours = name in (header["quoted"], header["bare"])
        if not ours:
            kept += [*waiting, line]
            waiting = []
        elif not line.strip() or line.lstrip().startswith("#"):
            waiting.append(line)
        else:
            waiting = []
    return "\n".join(kept).strip()
