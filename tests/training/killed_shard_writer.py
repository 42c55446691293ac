"""A process that is meant to be killed: `python killed_shard_writer.py SOURCE OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from chiasm.training.data_recipe import DataRecipe
from chiasm.training.shard_report import ShardRecipe
from chiasm.training.shard_writer import build_shards

if __name__ == "__main__":
    build_shards(
        DataRecipe(source=sys.argv[1], threads=2),
        Path(sys.argv[2]),
        ShardRecipe(samples_per_shard=7, quality=80),
        on_progress=lambda done, total: print(done, flush=True),  # noqa: T201
    )
