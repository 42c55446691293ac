"""A process that is meant to be interrupted: `python interrupted_loader.py SHARDS WORKERS`."""

from __future__ import annotations

import sys

from captioned import preprocessor, tokenizer

from chiasm.training.data_recipe import DataRecipe
from chiasm.training.loader import open_loader

if __name__ == "__main__":
    loader = open_loader(
        DataRecipe(source=sys.argv[1], workers=int(sys.argv[2])),
        preprocessor=preprocessor(),
        tokenizer=tokenizer(),
        batch_size=4,
    )
    for batch in loader:
        print(len(batch.keys), flush=True)  # noqa: T201
