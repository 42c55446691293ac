"""The [data] section of a recipe that trains on conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from chiasm.media.limits import Limits
from chiasm.training.data_recipe import Columns


@dataclass(frozen=True, kw_only=True)
class ConversationsRecipe:
    """Where conversations come from, and how they become batches.

    source: a .json file in LLaVA's shape, a .jsonl file of OpenAI's messages, or a table of
        captions (.csv, .tsv, .jsonl, .parquet, or a folder with a.jpg beside a.txt). Several are
        read as one.
    root: the folder that pictures' names are relative to; if empty, each file's own.
    prompts: the questions that a table's captions answer; one of them by chance for each.
    columns: names in a table of captions.
    max_tokens: the longest conversation, its pictures included, and the length of a packed row. Of
        a longer one, or one that is longer than the model's context, the last turns are left out;
        one whose first answer does not fit is not used.
    packing: lay several conversations into one row of `max_tokens`, each seeing itself alone, so
        that nearly no token is padding. Without it a row is one conversation.
    shuffle: another order every epoch.
    bucket_batches: batches whose conversations are sorted by length, or packed, together.
    threads: that decode pictures; 0 for one a core.
    prefetch: batches that are ready before they are asked for.
    max_damaged_share: stop when more than this share of the conversations cannot be used.
    storage_options: passed on to fsspec for addresses such as s3://….
    limits: bounds on one picture.
    """

    source: str | tuple[str, ...] = ""
    root: str = ""
    prompts: tuple[str, ...] = ("Describe the picture.",)
    columns: Columns = field(default_factory=Columns)
    max_tokens: Annotated[int, Field(ge=8)] = 2048
    packing: bool = False
    shuffle: bool = True
    bucket_batches: Annotated[int, Field(ge=1)] = 32
    threads: Annotated[int, Field(ge=0)] = 0
    prefetch: Annotated[int, Field(ge=1)] = 2
    max_damaged_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    storage_options: dict[str, str | int | float | bool] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
