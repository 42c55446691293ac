"""How well an embedder matches products, before and after it was fine-tuned.

    python recipes/sku_matching/evaluate.py build/sku_matching/test.csv --after shoes

where `shoes` is a folder that `chiasm train clip` wrote, or the name given to it with `--name`.

Any table of pictures, titles and SKUs will do: CSV, TSV, JSON Lines or Parquet, with the columns
that `chiasm train clip` takes. Every picture looks for the other pictures of its SKU, itself left
out; every title looks for the pictures of its SKU. Intervals are of 95 %; whole SKUs are drawn,
because pictures of one product are not independent. The difference is paired: the same queries,
before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chiasm.errors import ChiasmError, ImageError
from chiasm.evaluation import intervals, retrieval
from chiasm.evaluation.intervals import Interval
from chiasm.media import open_image
from chiasm.retrieval import Embedder, load_embedder
from chiasm.settings import Settings
from chiasm.training.data_recipe import Columns
from chiasm.training.tables import read_table

BATCH = 64
MEASURES: dict[str, Callable[[retrieval.Ranking], npt.NDArray[Any]]] = {
    "recall@1": lambda ranking: ranking.found(1),
    "recall@10": lambda ranking: ranking.found(10),
    "mAP": lambda ranking: ranking.average_precision,
}
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shot:
    """A picture of a product, and what it is sold as."""

    path: Path
    titles: tuple[str, ...]
    sku: str


@dataclass(frozen=True)
class Line:
    """A line of the report. difference: after − before on the same queries."""

    task: str
    measure: str
    queries: int
    before: Interval
    after: Interval | None = None
    difference: Interval | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path, help="pictures, titles and SKUs not trained on")
    parser.add_argument("--before", default="default", help="the embedder to compare with")
    parser.add_argument("--after", help="the fine-tuned one: a folder or a name")
    parser.add_argument("--image", default="", help="the column of pictures, if not file or image")
    parser.add_argument("--title", default="", help="the column of titles, if not title or text")
    parser.add_argument("--sku", default="", help="the column of SKUs, if not sku or group")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    captions = (options.title,) if options.title else ()
    columns = Columns(image=options.image, captions=captions, group=options.sku)
    try:
        report(options, columns)
    except ChiasmError as error:
        sys.exit(str(error))


def report(options: argparse.Namespace, columns: Columns) -> None:
    """Print the table, and write it if it was asked for."""
    shots, passed_over = read_shots(options.table, columns)
    before, after = embedder(options.before), options.after and embedder(options.after)
    opened, pictures = embed_pictures(before, shots, passed_over)
    if passed_over:
        print("Passed over:", ", ".join(f"{count} × {why}" for why, count in passed_over.items()))
    skus = len({shot.sku for shot in opened})
    print(f"{len(opened)} pictures of {skus} SKUs; 95 % intervals clustered by SKU.\n")
    lines = compare(
        rankings(before, opened, pictures),
        after and rankings(after, opened, embed_pictures(after, opened, Counter())[1]),
    )
    print("\n".join(as_table(lines)))
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")


def embedder(name: str) -> Embedder:
    """By name or folder, with the user's settings."""
    return load_embedder(replace(Settings.load(), embedder=name))


# Pictures ---------------------------------------------------------------------------------------


def read_shots(table: Path, columns: Columns) -> tuple[list[Shot], Counter[str]]:
    """The rows with a picture, a title and a SKU; and why others were passed over."""
    read = read_table(str(table), "", columns, {})
    shots, passed_over = [], Counter[str]()
    for row in read.rows.to_pylist():
        if why := row["damage"] or (None if row["group"] else "no SKU"):
            passed_over[why] += 1
        else:
            path = Path(read.root) / row["file"]
            shots.append(Shot(path, tuple(row["captions"]), row["group"]))
    return shots, passed_over


def embed_pictures(
    model: Embedder, shots: Sequence[Shot], passed_over: Counter[str]
) -> tuple[list[Shot], Vectors]:
    """The shots that could be opened, and their vectors: [shots, dimension]."""
    opened: list[Shot] = []

    def images() -> Iterator[Any]:
        for shot in shots:
            try:
                image = open_image(shot.path, shortest_side=model.decode_side)
            except ImageError as error:
                passed_over[error.reason] += 1
            else:
                opened.append(shot)
                yield image

    rows, batch = [np.empty((0, model.dimension), np.float32)], []
    for image in images():
        batch.append(image)
        if len(batch) == BATCH:
            rows.append(model.embed_images(batch))
            batch = []
    rows.append(model.embed_images(batch))
    return opened, np.concatenate(rows)


# Figures ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the queries of a task found, and the SKU of each."""

    ranking: retrieval.Ranking
    skus: npt.NDArray[Any]


def rankings(model: Embedder, shots: Sequence[Shot], pictures: Vectors) -> dict[str, Found]:
    """Both tasks with one embedder; a title of a SKU is one query, whatever pictures it has."""
    skus = np.array([shot.sku for shot in shots])
    asked = list(dict.fromkeys((shot.sku, title) for shot in shots for title in shot.titles))
    titles = model.embed_texts([title for _, title in asked])
    wanted = np.array([sku for sku, _ in asked])
    by_picture = retrieval.rank(pictures, pictures, skus, skus, exclude=range(len(shots)))
    by_title = retrieval.rank(titles, pictures, wanted, skus)
    return {
        "image → image": Found(by_picture, skus[by_picture.queries]),
        "title → image": Found(by_title, wanted[by_title.queries]),
    }


def compare(before: dict[str, Found], after: dict[str, Found] | None) -> list[Line]:
    """Every measure of every task, and what became of it."""
    lines = []
    for task, found in before.items():
        for measure, of in MEASURES.items():
            first = of(found.ranking)
            line = Line(task, measure, len(first), interval(first, found.skus))
            if after:
                second = of(after[task].ranking)
                line = replace(
                    line,
                    after=interval(second, found.skus),
                    difference=intervals.difference(first, second, found.skus),
                )
            lines.append(line)
    return lines


def interval(values: npt.NDArray[Any], skus: npt.NDArray[Any]) -> Interval:
    """Clustered by SKU."""
    of = intervals.share if values.dtype == bool else intervals.mean
    return of(values, skus)


def as_table(lines: Sequence[Line]) -> list[str]:
    """Markdown."""
    rows = ["| | | queries | before | after | difference |", "|---|---|---:|---|---|---|"]
    for line in lines:
        cells = [line.task, line.measure, f"{line.queries:,}", str(line.before)]
        cells += ["" if line.after is None else str(line.after)]
        change = line.difference
        cells += [
            ""
            if change is None
            else f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
