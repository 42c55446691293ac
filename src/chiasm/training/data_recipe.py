"""The [data] section of a training recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from chiasm.media.limits import Limits
from chiasm.training.augment import Augmentation

Mark = Literal["contaminated", "duplicates"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table, or the fields of a shard's JSON files, are called.

    image: the picture's path; if empty, the first there is of file, file_name, filename, file_path,
        filepath, image, image_path, img, picture, path.
    captions: one column or several; if none is named, those called caption, text or title, in the
        plural or with a number too. A cell may hold a JSON list.
    group: samples with the same value are never each other's negatives; if empty, group or sku.
    label: carried along; if empty, label.
    hard_negatives: texts that look right and are not; if empty, hard_negatives or hard_negative.
    """

    image: str = ""
    captions: tuple[str, ...] = ()
    group: str = ""
    label: str = ""
    hard_negatives: str = ""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where captioned pictures come from, and how they become batches.

    source: shards, as in "shards/{00000..00099}.tar", "shards/*.tar", a folder of .tar files or
        "s3://bucket/{000..127}.tar"; a table (.csv, .tsv, .jsonl, .parquet); or a folder with
        a.jpg beside a.txt. Several can be listed for shards.
    root: the folder that a table's paths are relative to; if empty, the table's own.
    captions: of a sample with several captions, one an epoch by chance, or all of them.
    hard_negatives: at most so many hard negatives of each sample become texts of a batch.
    leave_out: samples with these marks of `chiasm shards build` are not used: contaminated,
        duplicates.
    shuffle: another order every epoch; without it, samples come as they lie.
    shuffle_buffer: samples read from shards and mixed at a time. A table is mixed as a whole.
    shuffle_megabytes: bound on the memory of such a mix; there are up to two in each worker.
    bucket_batches: batches that are made together out of captions sorted by length, so that few
        tokens are padding; 1 does not sort beyond a batch.
    per_group: samples of one group that come together into a batch, as far as a group has them;
        a loss between pictures of one group needs 2. 1 does not look at groups.
    workers: processes that read and decode; 0 does it in threads of this process.
    threads: for decoding, when there are no workers; 0 for one a core.
    prefetch: batches that are ready before they are asked for; a worker each.
    decode_slack: a JPEG is decoded at the smallest scale that leaves so many times the pixels that
        the network looks at, along each side. 0 decodes in full.
    max_damaged_share: stop when more than this share of the samples cannot be read.
    storage_options: passed on to fsspec for addresses such as s3://….
    columns: names in tables and JSON files.
    augment: random changes of the pictures; none by default.
    limits: bounds on one picture.
    """

    source: str | tuple[str, ...] = ""
    root: str = ""
    captions: Literal["one", "all"] = "one"
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    leave_out: tuple[Mark, ...] = ()
    shuffle: bool = True
    shuffle_buffer: Annotated[int, Field(ge=1)] = 4096
    shuffle_megabytes: Annotated[int, Field(ge=1)] = 512
    bucket_batches: Annotated[int, Field(ge=1)] = 8
    per_group: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    prefetch: Annotated[int, Field(ge=1)] = 2
    decode_slack: Annotated[float, Field(ge=0)] = 1.5
    max_damaged_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    storage_options: dict[str, str | int | float | bool] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    augment: Augmentation = field(default_factory=Augmentation)
    limits: Limits = field(default_factory=Limits)
