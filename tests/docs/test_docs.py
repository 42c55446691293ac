"""What the documentation says exists: links, commands, code, settings, dependencies."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import markdown
import pytest
import typer.main
from packaging.requirements import Requirement

from chiasm import cli
from chiasm.models.catalog.entry import parse
from chiasm.settings import Settings
from chiasm.training.instruct_recipe import InstructRecipe
from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import build_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_pages"))

import commands  # noqa: E402
import endpoints  # noqa: E402
import hooks  # noqa: E402
import settings_table  # noqa: E402

PAGES = sorted(
    [
        *(path for path in DOCS.rglob("*.md") if "_pages" not in path.parts),
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    ]
)
FENCE = re.compile(r"^( *)```(\w+)?[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
WRAPPERS = {"&&", "||", ";", "|", ">", "<", ">>", "&"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            indent, language, body = fence.groups()
            if language in languages:
                body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
                line = text.count("\n", 0, fence.start()) + 2
                found.append(Block(page, line, language, body))
    return found


def _source(page: Path) -> str:
    """A page as it is built, without its fenced blocks."""
    text = hooks.fill_in(page.read_text(encoding="utf-8"))
    return FENCE.sub("", text)


@cache
def _anchors(page: Path) -> set[str]:
    text = _source(page)
    html = markdown.markdown(text, extensions=["toc", "tables", "attr_list"])
    return set(re.findall(r'id="([^"]+)"', html))


# Links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in [*LINK.findall(_source(page)), *IMAGE.findall(_source(page))]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"- ([\w/-]+\.md)", navigation))
    assert listed == {str(path.relative_to(DOCS)) for path in PAGES if path.is_relative_to(DOCS)}


# Commands ---------------------------------------------------------------------------------------


def _command_lines(text: str) -> Iterator[list[str]]:
    """Each simple command of a shell block, as words, without assignments and redirections."""
    joined = text.replace("\\\n", " ")
    for raw in joined.splitlines():
        lexer = shlex.shlex(raw.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in WRAPPERS:
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def _parse(command: Any, words: list[str], name: str) -> None:
    """Parse as the program would, down to the subcommand that takes the options."""
    context = command.make_context(name, list(words))
    rest = [*getattr(context, "_protected_args", []), *context.args]
    if getattr(command, "commands", None) and rest:
        inner_name, inner, inner_words = command.resolve_command(context, rest)
        _parse(inner, inner_words, inner_name)


SHELL = _blocks("bash", "console", "sh")


def test_there_are_commands_to_check() -> None:
    programs = [words[0] for block in SHELL for words in _command_lines(block.text)]
    assert programs.count("chiasm") >= 20
    assert "make" in programs


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_exist_with_their_options(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in _command_lines(block.text):
        if words[0] == "make":
            assert targets.issuperset(words[1:])
        elif words[0] == "chiasm":
            try:
                _parse(typer.main.get_command(cli.app), words[1:], "chiasm")
            except Exception as error:
                if type(error).__name__ != "Exit":  # --help and --version end the parsing
                    pytest.fail(f"{' '.join(words)}: {error}")


def test_a_wrong_option_would_be_noticed() -> None:
    command = typer.main.get_command(cli.app)
    for words in (["search", "x", "--colection", "y"], ["serch", "x"], ["index"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            _parse(command, words, "chiasm")


def test_addresses_in_examples_are_routes() -> None:
    routes = [
        re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path)) for _, path, _ in endpoints.operations()
    ]
    routes += [re.escape("/openapi.json"), "/docs/?", "/", "/v1"]
    for page in PAGES:
        for path in re.findall(
            r"http://(?:127\.0\.0\.1|localhost):\d+(/[\w/.-]*)", page.read_text()
        ):
            assert any(re.fullmatch(route, path) for route in routes), f"{page.name}: {path}"


# Code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", _blocks("python"), ids=str)
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    tree = ast.parse(block.text, str(block))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chiasm"):
            module = import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("block", _blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", _blocks("toml"), ids=str)
def test_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    if block.text.startswith("# catalog.toml\n"):
        assert parse(block.text, tmp_path / "catalog.toml")
        return
    if block.text.startswith("# recipe.toml\n"):
        build_recipe(ContrastiveRecipe, tomllib.loads(block.text), "recipe.toml").model.check()
        return
    if block.text.startswith(("# align.toml\n", "# instruct.toml\n")):
        build_recipe(InstructRecipe, tomllib.loads(block.text), "recipe.toml").check()
        return
    file = tmp_path / "chiasm.toml"
    file.write_text(block.text, encoding="utf-8")
    given = tomllib.loads(block.text)
    assert given
    assert (
        Settings.load(environment={}, file=file)
        != Settings.load(environment={}, file=_empty(tmp_path))
        or given.get("embedder") == "default"
    )


def _empty(folder: Path) -> Path:
    file = folder / "empty.toml"
    file.touch()
    return file


# The reference ----------------------------------------------------------------------------------


def test_every_setting_is_described_once() -> None:
    page = (DOCS / "reference/settings.md").read_text(encoding="utf-8")
    described = re.findall(r"### (\S+)\n\n<!-- generated: setting (\S+) -->\n\n\S", page)
    assert [heading for heading, _ in described] == [name for _, name in described]
    assert sorted(name for _, name in described) == sorted(settings_table.settings())


def test_every_table_is_described() -> None:
    page = (DOCS / "reference/settings.md").read_text(encoding="utf-8")
    for name, named in settings_table.tables().items():
        assert f"<!-- generated: table {name} -->" in page
        section = page[page.index(f"<!-- generated: table {name} -->") :].partition("\n## ")[0]
        assert [each for each in named if f"`{each}`" not in section] == []


def test_settings_variables_are_those_that_are_read(tmp_path: Path) -> None:
    for name, (kind, default) in settings_table.settings().items():
        value = {bool: "1", int: "7", str: "other", float: "7.5"}.get(kind, "/elsewhere")
        loaded: Any = Settings.load(
            environment={settings_table.variable(name): value}, file=_empty(tmp_path)
        )
        for part in name.split("."):
            loaded = getattr(loaded, part)
        assert str(loaded) in {value, "True"}
        assert loaded != default


def test_every_command_and_option_is_in_the_reference() -> None:
    written = hooks.fill_in("<!-- generated: commands -->")
    root = typer.main.get_command(cli.app)
    assert {path.split()[1] for path, _ in commands.walk()} == set(root.commands)
    for path, command in commands.walk():
        assert f"## {path}\n" in written
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert all(f"`{name}`" in written for name in commands.names(parameter))


def test_every_route_is_in_the_reference() -> None:
    written = hooks.fill_in("<!-- generated: endpoints -->")
    for method, path, _ in endpoints.operations():
        assert f"\n{method} {path}\n" in written


def test_every_code_of_the_server_is_explained() -> None:
    page = (DOCS / "how-to/errors.md").read_text(encoding="utf-8")
    sources = (ROOT / "src/chiasm/server").rglob("*.py")
    codes = {
        code for path in sources for code in re.findall(r'\bcode="([a-z_]+)"', path.read_text())
    }
    assert codes >= {"request_too_large", "internal_error"}
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_no_marker_is_left_over() -> None:
    for page in PAGES:
        assert "<!-- generated" not in hooks.fill_in(page.read_text(encoding="utf-8"))


# Dependencies -----------------------------------------------------------------------------------


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {Requirement(line).name for group in groups for line in group} - {project["name"]}
    page = (DOCS / "explanation/dependencies.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| ([\w.-]+) \|", page, re.MULTILINE)) - {"package", "what"}
    assert declared - explained == set()
    assert explained - declared - {"htm"} == set()
    for line in project["dependencies"]:
        assert re.search(rf"\*\*{re.escape(Requirement(line).name)}\*\*", page), line


def test_every_vendored_library_is_explained() -> None:
    page = (DOCS / "explanation/dependencies.md").read_text(encoding="utf-8").lower()
    vendor = ROOT / "src/chiasm/server/console/vendor"
    for folder in (path for path in vendor.iterdir() if path.is_dir()):
        assert re.search(rf"^\| .*\b{folder.name}\b", page, re.MULTILINE), folder.name


# The site ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list(DOCS.rglob("*.md")))
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe|source)[^>]+src="?(?:https?:)?//', html)
        assert not re.search(
            r'<link[^>]+rel="?(?:stylesheet|preload)[^>]+href="?(?:https?:)?//', html
        )
        # Material asks the host of a repository for its stars where this is on a page.
        assert 'data-md-component="source"' not in html
