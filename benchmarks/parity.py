"""Print how far networks and readers of pictures are from transformers', as Markdown tables.

    python benchmarks/parity.py [networks] [pictures]

Needs the development extra (`pip install -e .[dev]`). The networks have random weights; the cases
are those of tests/models/test_parity.py, which fails above 1e-4, and of test_image_readers.py,
which fails above 1e-5.
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
import parity_processors
import torch
import transformers


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    wanted = sys.argv[1:] or ["networks", "pictures"]
    if "networks" in wanted:
        networks()
    if "pictures" in wanted:
        pictures()
    print(
        f"fp32. Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.machine()} with "
        f"{torch.backends.cpu.get_cpu_capability()}."
    )


def networks() -> None:
    print("| model | output | largest value | max \\|Δ\\|, read here | max \\|Δ\\|, written here |")
    print("|---|---|---:|---:|---:|")
    worst = 0.0
    for name in parity.cases():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            differences = parity.measure(name, Path(folder))
        for row in differences:
            worst = max(worst, row.read, row.written)
            if "tokens" in row.output and "greedy" in row.output:
                told = ["–", *("other" if each else "the same" for each in (row.read, row.written))]
            else:
                told = [f"{row.largest:.2f}", f"{row.read:.1e}", f"{row.written:.1e}"]
            print(f"| {row.model} | {row.output} | {' | '.join(told)} |")
    print(f"\nWorst: {worst:.1e} (allowed: 1e-4).\n")


def pictures() -> None:
    """A prompt with a picture of each size: whole ids, tiles, and the values in them."""
    print("| processor | sizes | same ids | same tiles | max \\|Δ\\| | of thin pictures |")
    print("|---|---:|---:|---:|---:|---:|")
    cases = {**parity_processors.SMALL, **parity_processors.PUBLISHED}
    for name, (kind, make) in cases.items():
        theirs = make()
        reader = kind.from_files(parity_processors.files(theirs))
        sizes = parity_processors.SIZES
        found = {size: parity_processors.compare(reader, theirs, size) for size in sizes}
        exact = {size for size in sizes if parity_processors.allowed(theirs, size) <= 1e-5}
        worst = max(found[size].difference for size in exact)
        thin = [found[size].difference for size in sizes if size not in exact]
        ids = sum(each.same_ids and each.same_count for each in found.values())
        tiles = sum(each.same_tiles for each in found.values())
        told = f"{max(thin):.1e}" if thin else ""
        print(f"| {name} | {len(sizes)} | {ids} | {tiles} | {worst:.1e} | {told} |")
    print()


if __name__ == "__main__":
    main()
