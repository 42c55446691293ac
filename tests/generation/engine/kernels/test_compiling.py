"""Where compiled kernels are kept, and that old ones are never taken for new."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chiasm
from chiasm.generation.engine.kernels import step

PROGRAM = """
import torch
from chiasm.generation.engine.kernels.passes import KernelPasses
from chiasm.generation.engine.passes import Piece
from chiasm.models.decoder import Decoder, DecoderConfig
torch.set_num_threads(1)
torch.manual_seed(0)
decoder = Decoder(DecoderConfig(vocab_size=40, hidden_size=16, intermediate_size=16,
    num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)).eval()
passes = KernelPasses(decoder, precision="float32", pool_bytes=0, texts=1)
with torch.no_grad():
    piece = Piece([1, 2, 3], 0, [0], True)
    print(float(passes.run([piece])[0].abs().sum()))
"""


def run(package: Path, home: Path, program: str) -> str:
    """The program's output, with the package from there."""
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"),
                   "PYTHONPATH": str(package.parent), "PATH": os.environ["PATH"]}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache lies elsewhere")
def test_an_install_that_cannot_be_written_to(tmp_path: Path) -> None:
    package = tmp_path / "site" / "chiasm"
    shutil.copytree(
        Path(chiasm.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
    )
    kernels = package / "generation" / "engine" / "kernels"
    (kernels / "__pycache__").write_text("no folder can be made here, whoever asks for it")
    home = tmp_path / "home"
    first = run(package, home, PROGRAM)
    kept = {path: path.stat().st_mtime_ns for path in home.rglob("*.nbc")}
    assert kept  # in the user's folder
    assert run(package, home, PROGRAM) == first
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.nbc")} == kept

    # An upgrade changes one of the files, and not the one that holds the function that is kept.
    file = kernels / "arithmetic.py"
    changed = file.read_text().replace("x[row, start + i] * factor * w", "x[row, start + i] * w")
    assert changed != file.read_text()
    file.write_text(changed)
    assert run(package, home, PROGRAM) != first

    # Where nothing can be kept at all, it is compiled in each process.
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert run(package, nowhere, "import chiasm.generation.engine.kernels.step") == ""


def test_what_is_kept_depends_on_every_file() -> None:
    folder = Path(step.__file__).parent
    enclosed = [cell.cell_contents for cell in step.forward.py_func.__closure__]
    assert enclosed == [step.sources()]
    assert {"arithmetic.py", "tiles.py", "step.py"} <= {path.name for path in folder.glob("*.py")}
