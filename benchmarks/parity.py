"""Print how far each network is from transformers' on random weights, as a Markdown table.

    python benchmarks/parity.py

Needs the development extra (`pip install -e .[dev]`). The cases are those of
tests/models/test_parity.py, which fails above 1e-4.
"""

from __future__ import annotations

import contextlib
import io
import platform
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

import parity
import torch
import transformers


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    print("| model | output | largest value | max \\|Δ\\|, read here | max \\|Δ\\|, written here |")
    print("|---|---|---:|---:|---:|")
    worst = 0.0
    for name in parity.cases():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            differences = parity.measure(name, Path(folder))
        for row in differences:
            worst = max(worst, row.read, row.written)
            print(
                f"| {row.model} | {row.output} | {row.largest:.2f} "
                f"| {row.read:.1e} | {row.written:.1e} |"
            )
    print()
    print(
        f"Worst: {worst:.1e} (allowed: 1e-4), fp32. Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}."
    )


if __name__ == "__main__":
    main()
