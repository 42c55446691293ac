"""Contrastive training from a recipe to a model, with a kill in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from tiny_run import recipe, write_pictures, write_prompts

from chiasm.errors import ChiasmError, ConfigurationError, TrainingDiverged, UnusableData
from chiasm.media import open_image
from chiasm.models.checkpoint import load_dual_encoder
from chiasm.training.contrastive import train_contrastive
from chiasm.training.distributed import World
from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import build_recipe, show_recipe
from chiasm.training.record import METRICS, read_metrics
from chiasm.training.run import Trained


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def run(folder: Path, tables: dict[str, Any], **options: Any) -> Trained:
    wanted = build_recipe(ContrastiveRecipe, tables, "the test")
    return train_contrastive(wanted, folder, world=World(), cache_dir=folder / "cache", **options)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(folder / METRICS)]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_it_learns_the_colours(tmp_path: Path, table: Path, kind: str) -> None:
    prompts = write_prompts(tmp_path / "prompts.toml")
    trained = run(
        tmp_path / "run",
        recipe(
            table,
            loss={"kind": kind, **({"scale": 10.0, "bias": -5.0} if kind == "sigmoid" else {})},
            loop={"steps": 60, "snapshot_every": 60, "report_every": 10},
            measure={
                "zero_shot": {"prompts": str(prompts), "data": {"source": str(table)}},
                "retrieval": {"data": {"source": str(table)}, "limit": 24},
            },
        ),
    )
    found = losses(tmp_path / "run")
    assert found[-1][1] < 0.8 * found[0][1]
    assert trained.figures["zero_shot_accuracy"] > 0.8  # chance: 1/6
    assert 0 < trained.figures["text_to_image_recall@1"] <= 1
    assert trained.skipped == {}


def test_transformers_reads_the_result_and_agrees(tmp_path: Path, table: Path) -> None:
    import transformers

    trained = run(tmp_path / "run", recipe(table))
    ours = load_dual_encoder(trained.model, cache_dir=tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(trained.model).eval()
    texts = ["something blue", "a square", "white"]
    tokens = ours.tokenizer(texts)
    their_tokens = transformers.AutoTokenizer.from_pretrained(trained.model)(
        texts, padding=True, return_tensors="pt"
    )
    assert their_tokens["input_ids"].tolist() == tokens.ids.tolist()
    picture = table.parent / "3.png"
    pixels = ours.preprocessor([open_image(picture)])
    their_pixels = transformers.CLIPImageProcessor.from_pretrained(trained.model)(
        PIL.Image.open(picture), return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(pixels, their_pixels, atol=2e-2, rtol=0)
    with torch.no_grad():
        projected = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        torch.testing.assert_close(ours.model.encode_image(pixels), projected, atol=1e-4, rtol=1e-4)
        projected = theirs.text_projection(theirs.text_model(**their_tokens).pooler_output)
        torch.testing.assert_close(
            ours.model.encode_text(tokens.ids, tokens.mask), projected, atol=1e-4, rtol=1e-4
        )


@pytest.mark.slow
def test_a_run_killed_with_9_goes_on_to_the_same_losses(tmp_path: Path, table: Path) -> None:
    """In processes of their own, killed without warning, at a step that is no snapshot's."""
    tables = recipe(table, loop={"steps": 14, "snapshot_every": 4, "average": 0.9})
    path = tmp_path / "recipe.toml"
    path.write_text(show_recipe(build_recipe(ContrastiveRecipe, tables, "x")), encoding="utf-8")

    def start(folder: str, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "chiasm.cli", "train", "clip", str(path), "--json"]
        return subprocess.Popen(
            [*command, "--output", str(tmp_path / folder), "--device", "cpu", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"CHIASM_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )

    whole, killed = start("whole"), start("parts")
    deadline = time.monotonic() + 200
    while not any(step >= 6 for step, _ in losses(tmp_path / "parts")):
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert losses(tmp_path / "parts")[-1][0] < 14, "the kill came too late to mean anything"
    resumed = start("parts", "--resume")
    printed, said = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, said
    printed_whole, said = whole.communicate(timeout=200)
    assert whole.returncode == 0, said
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "parts")] == list(range(1, 15))
    weights = "model/model.safetensors"
    ours, theirs = ((tmp_path / name / weights).read_bytes() for name in ("parts", "whole"))
    assert ours == theirs
    assert json.loads(printed)["figures"]["loss"] == json.loads(printed_whole)["figures"]["loss"]


def test_parts_of_a_batch_give_the_gradients_of_the_whole(tmp_path: Path, table: Path) -> None:
    """GradCache through the trainer; without patch dropout, as parts draw other patches."""
    model = {"patch_dropout": 0.0}
    run(tmp_path / "whole", recipe(table, model=model, loop={"steps": 3}))
    run(tmp_path / "parts", recipe(table, model=model, loop={"steps": 3}, batch={"micro_size": 5}))
    for ours, theirs in zip(losses(tmp_path / "parts"), losses(tmp_path / "whole"), strict=True):
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5)


def test_locked_parts_stay_as_they_are(tmp_path: Path, table: Path) -> None:
    first = run(tmp_path / "first", recipe(table, loop={"steps": 2}))
    tables = recipe(table, loop={"steps": 4})
    tables["model"] = {"start": str(first.model), "locked": ["image_tower", "logit_scale"]}
    second = run(tmp_path / "second", tables)
    before, after = (
        load_dual_encoder(each.model, cache_dir=tmp_path).model.state_dict()
        for each in (first, second)
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("image_tower.") for name in moved)
    assert "logit_scale" not in moved
    assert {"image_projection.weight", "text_projection.weight"} <= moved


def test_image_to_image_pairs_are_trained_too(tmp_path: Path, table: Path) -> None:
    tables = recipe(table, loss={"image_image": 1.0}, loop={"steps": 2})
    tables["data"] |= {"per_group": 2, "columns": {"group": "label"}}
    run(tmp_path / "both", tables)
    tables["loss"] = {}
    run(tmp_path / "one", tables)
    # The same first weights, patches and batch; the loss between pictures comes on top.
    assert losses(tmp_path / "both")[0][1] > 0.2 + losses(tmp_path / "one")[0][1]


def test_damaged_pictures_are_counted(tmp_path: Path) -> None:
    table = write_pictures(tmp_path / "pictures")
    for number in (3, 7):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(b"no picture")
    trained = run(tmp_path / "run", recipe(table, loop={"steps": 8}))
    assert set(trained.skipped) == {"not a picture"}
    assert trained.skipped["not a picture"] >= 2


def test_a_rate_that_blows_up_leaves_the_snapshot(tmp_path: Path, table: Path) -> None:
    run(tmp_path, recipe(table, loop={"steps": 5}))
    tables = recipe(table, loop={"steps": 400})
    with pytest.raises((TrainingDiverged, ConfigurationError)):
        run(tmp_path, recipe(table, loop={"steps": 400}, optimizer={"rate": 1e30}), resume=True)
    run(tmp_path, tables | {"loop": tables["loop"] | {"steps": 7}}, resume=True)
    assert losses(tmp_path)[-1][0] == 7


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": {"columns": {"captions": ["titel"]}}}, UnusableData, "no column 'titel'"),
        ({"data": {"source": "nowhere.csv"}}, ChiasmError, "nowhere.csv"),
        ({"model": {"new": {}}}, ConfigurationError, "what to train"),
        ({"model": {"new": {"model_type": "resnet"}}}, ConfigurationError, "'resnet'"),
        ({"model": {"locked": ["tower"]}}, ConfigurationError, "locked names tower"),
        ({"batch": {"size": 13, "micro_size": -1}}, ConfigurationError, "micro_size"),
        (
            {"measure": {"zero_shot": {"prompts": "none.toml", "data": {"source": "x"}}}},
            ConfigurationError,
            "no prompts file none.toml",
        ),
    ],
)
def test_what_cannot_be_trained_is_said(
    tmp_path: Path, table: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    tables = recipe(table, loop={"steps": 1})
    for section, values in change.items():
        tables[section] = {**tables.get(section, {}), **values}
    with pytest.raises(error, match=message):
        run(tmp_path, tables)
