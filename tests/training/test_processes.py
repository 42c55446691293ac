"""The same command on two processes, through torchrun: with copied weights and with split ones."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import recipe, write_pictures, write_prompts

from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import build_recipe, show_recipe
from chiasm.training.record import METRICS, read_metrics

pytestmark = pytest.mark.slow


def torchrun(recipe_file: Path, output: Path, *flags: str) -> None:
    """Two processes on this machine's CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "chiasm.cli", "train", "clip", str(recipe_file)]
    done = subprocess.run(
        [*command, "--output", str(output), "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CHIASM_CACHE_DIR": str(output.parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_ddp_and_fsdp_train_alike_and_take_over_from_each_other(tmp_path: Path) -> None:
    table = write_pictures(tmp_path / "pictures")
    prompts = write_prompts(tmp_path / "prompts.toml")
    tables = recipe(
        table,
        batch={"size": 12, "micro_size": 4},  # six a process, in two parts
        model={"patch_dropout": 0.0},
        loop={"steps": 6, "snapshot_every": 3, "average": 0.5},
        measure={"zero_shot": {"prompts": str(prompts), "data": {"source": str(table)}}},
    )
    path = tmp_path / "recipe.toml"
    path.write_text(show_recipe(build_recipe(ContrastiveRecipe, tables, "x")), encoding="utf-8")
    torchrun(path, tmp_path / "ddp")
    torchrun(path, tmp_path / "mixed", "--set", "loop.steps=6", "--set", "loop.sharding=fsdp")
    ddp, mixed = (read_metrics(tmp_path / name / METRICS) for name in ("ddp", "mixed"))
    assert [row["step"] for row in ddp] == list(range(1, 7))
    for one, other in zip(ddp, mixed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    ours, theirs = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("ddp", "mixed")
    )
    # Where a gradient is zero but for rounding (the keys' biases), Adam makes steps of it all the
    # same: six of them are less than this.
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=5e-3, rtol=1e-3)
    # What split weights left, copied ones go on with.
    torchrun(path, tmp_path / "mixed", "--resume", "--set", "loop.steps=8")
    assert [row["step"] for row in read_metrics(tmp_path / "mixed" / METRICS)] == list(range(1, 9))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are named in /proc")
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("ends", [(), ("raise",)], ids=["done", "error"])
def test_no_thread_of_the_group_outlives_it(sharding: str, ends: tuple[str, ...]) -> None:
    """One that did could meet an interpreter that has begun to end, and abort the process."""
    launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("left_world.py")), sharding, *ends],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | launched | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    inside, after, error = (
        ast.literal_eval(line.split(": ", 1)[1]) for line in done.stdout.splitlines()[-3:]
    )
    assert sum("gloo" in name for name in inside) >= 2
    assert [name for name in after if "gloo" in name or name.startswith("pt_")] == []
    assert (error is not None) == bool(ends)
