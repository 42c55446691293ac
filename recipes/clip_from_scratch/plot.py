"""Draw the losses and the zero-shot accuracies of two runs, from their metrics.jsonl.

    python recipes/clip_from_scratch/plot.py build/runs/softmax build/runs/sigmoid

needs matplotlib, and writes losses.png beside this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    """One row of plots: each run's loss, and all accuracies."""
    runs = [Path(name) for name in sys.argv[1:]]
    figure, axes = plt.subplots(1, len(runs) + 1, figsize=(4 * (len(runs) + 1), 3.2))
    for axis, run in zip(axes, runs, strict=False):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        axis.plot(*zip(*losses, strict=True), linewidth=0.8)
        axis.set(title=f"{run.name}: loss", xlabel="update")
        scores = [(r["step"], r["zero_shot_accuracy"]) for r in rows if "zero_shot_accuracy" in r]
        axes[-1].plot(*zip(*scores, strict=True), marker="o", label=run.name)
    axes[-1].axhline(0.88, color="grey", linestyle=":", label="target")
    axes[-1].set(title="zero-shot accuracy, 10,000 test pictures", xlabel="update")
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("losses.png"), dpi=110)


if __name__ == "__main__":
    main()
