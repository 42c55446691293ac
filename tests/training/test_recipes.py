"""The recipes that this repository carries say something that can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = [*sorted(RECIPES.glob("clip_from_scratch/s*.toml")), RECIPES / "sku_matching/recipe.toml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_is_read(path: Path) -> None:
    recipe = read_recipe(ContrastiveRecipe, path)
    recipe.model.check()
    assert recipe.batch.share(2) * 2 == recipe.batch.size


def test_both_losses_train_the_same_network() -> None:
    softmax, sigmoid = (read_recipe(ContrastiveRecipe, path) for path in FILES[1::-1])
    assert (softmax.loss.kind, sigmoid.loss.kind) == ("softmax", "sigmoid")
    assert softmax.model == sigmoid.model
    assert softmax.data == sigmoid.data
    assert softmax.loop == sigmoid.loop
