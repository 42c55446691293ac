"""Recipe files: read, refused, changed on the command line, shown again."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from chiasm.errors import ConfigurationError
from chiasm.training.instruct_recipe import InstructRecipe
from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import (
    as_table,
    build_recipe,
    differences,
    read_recipe,
    show_recipe,
)


@dataclass(frozen=True, kw_only=True)
class Oven:
    """How it is baked.

    degrees: of heat, which is
        told over two lines.
    rack: where it stands.
    """

    degrees: Annotated[int, Field(gt=0)] = 180
    rack: Literal["top", "middle"] = "middle"


@dataclass(frozen=True, kw_only=True)
class Cake:
    """A cake.

    name: on the icing.
    layers: one above the other.
    oven: the heat.
    box: what it is carried in.
    """

    name: str = 'the "best"'
    layers: tuple[str, ...] = ()
    notes: str | None = None
    shares: dict[str, float] = field(default_factory=dict)
    oven: Oven = Oven()
    box: Oven | None = None


def written(folder: Path, text: str) -> Path:
    path = folder / "cake.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_of_the_file_and_defaults_for_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, 'layers = ["sponge", "jam"]\n[oven]\ndegrees = 200\n')
    assert read_recipe(Cake, path) == Cake(layers=("sponge", "jam"), oven=Oven(degrees=200))


def test_changes_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "a"\n[oven]\ndegrees = 200\n')
    changes = ["oven.degrees=220", "name=birthday cake", 'layers=["one"]', "shares.jam=0.5"]
    cake = read_recipe(Cake, path, changes)
    assert (cake.oven.degrees, cake.name, cake.layers) == (220, "birthday cake", ("one",))
    assert cake.shares == {"jam": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("degrees = 200", r"cake\.toml: there is no degrees"),
        ("[oven]\ndegres = 200", r"there is no oven\.degres\. Did you mean oven\.degrees\?"),
        ("[oven]\ndegrees = 0", r"oven\.degrees cannot be 0: .*greater than 0"),
        ('[oven]\ndegrees = "hot"', r"oven\.degrees cannot be 'hot'"),
        ('[oven]\nrack = "floor"', r"oven\.rack cannot be 'floor': .*'top' or 'middle'"),
        ("[box]\ndegres = 1", r"there is no box\.degres"),
        ("oven = 3", "oven cannot be 3"),
        ("name = ", "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_recipe(Cake, written(tmp_path, text))


def test_a_missing_file_and_a_change_without_a_value_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no recipe"):
        read_recipe(Cake, tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="changes nothing"):
        read_recipe(Cake, written(tmp_path, ""), ["oven.degrees"])


def test_what_is_shown_reads_back_and_says_what_each_value_is_for() -> None:
    cake = Cake(name="x\ny", layers=("a", 'b"'), shares={"a b": 1.5}, oven=Oven(rack="top"))
    shown = show_recipe(cake)
    assert build_recipe(Cake, tomllib.loads(shown), "shown") == cake
    assert "# of heat, which is told over two lines.\ndegrees = 180" in shown
    assert "# notes =" in shown
    assert "# [box]" in shown


def test_every_value_of_the_contrastive_recipe_is_explained() -> None:
    recipe = build_recipe(
        ContrastiveRecipe,
        {"measure": {"zero_shot": {"prompts": "p.json"}, "retrieval": {}}},
        "the test",
    )
    lines = show_recipe(recipe).splitlines()
    values = [n for n, line in enumerate(lines) if " =" in line and not line.startswith("# [")]
    unexplained = [lines[n] for n in values if not lines[n - 1].startswith("# ")]
    assert len(values) > 90
    assert unexplained == []
    assert build_recipe(ContrastiveRecipe, tomllib.loads("\n".join(lines)), "shown") == recipe


def test_every_value_of_the_instruct_recipe_is_explained() -> None:
    recipe = build_recipe(
        InstructRecipe,
        {
            "model": {"new": {"image_tower": "a", "language_model": "b"}},
            "measure": {"answers": {"limit": 5}},
        },
        "the test",
    )
    recipe.check()
    lines = show_recipe(recipe).splitlines()
    values = [n for n, line in enumerate(lines) if " =" in line and not line.startswith("# [")]
    unexplained = [lines[n] for n in values if not lines[n - 1].startswith("# ")]
    assert len(values) > 60
    assert unexplained == []
    assert build_recipe(InstructRecipe, tomllib.loads("\n".join(lines)), "shown") == recipe


@pytest.mark.parametrize(
    ("command", "kind"), [("clip", ContrastiveRecipe), ("vlm", InstructRecipe)]
)
def test_what_is_shown_is_a_recipe_also_in_a_pipe(command: str, kind: type) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "chiasm.cli", "train", command, "--show"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "60"},
    ).stdout
    assert build_recipe(kind, tomllib.loads(shown), "shown") == kind()


def test_differences_are_named_by_their_path() -> None:
    one, other = as_table(Cake(box=Oven())), as_table(Cake(oven=Oven(degrees=1)))
    assert differences(one, other) == ["box.degrees", "box.rack", "oven.degrees"]
