"""Measure the shipped embedder on the held-out stamps and on photographs.

    python recipes/default_embedder/evaluate.py

goes the road a user's picture goes: file, decoder, preprocessor, tower, head. The held-out stamps
show objects that no training picture of any source was said to show.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import recipe
import torch
import torch.nn.functional as F
from features import make_view
from pictures import Picture
from torch import Tensor

from chiasm.media.decode import open_image
from chiasm.media.image import Image
from chiasm.models import aligned
from chiasm.models.catalog import pull
from chiasm.models.checkpoint import DualEncoderCheckpoint
from chiasm.settings import Settings

DEPTHS = (1, 5, 10)
COMPOSITE_SEED = 2_000  # not the training's
PHOTOGRAPHS = {
    "a cup of coffee": "coffee",
    "a cat": "chelsea",
    "a rocket": "rocket",
    "a motorcycle": "motorcycle",
    "an astronaut": "astronaut",
    "coins": "coins",
    "a page of text": "page|text",
    "a horse": "horse",
    "stars in space": "hubble",
    "a man with a camera": "camera",
    "a brick wall": "brick",
    "grass": "grass",
    "a clock": "clock",
    "the moon": "moon",
}


@dataclass(frozen=True)
class Recall:
    """Share of queries whose answer stands among the first k, for each depth."""

    hits: tuple[int, ...]
    queries: int

    @classmethod
    def of(cls, ranks: Sequence[int]) -> Recall:
        """ranks: of each query's first right answer, from 1."""
        return cls(tuple(sum(rank <= depth for rank in ranks) for depth in DEPTHS), len(ranks))

    def row(self, name: str) -> str:
        """One line of the table, each figure with its 95 % interval."""
        cells = []
        for hits in self.hits:
            low, high = wilson(hits, self.queries)
            cells.append(f"{hits / self.queries:.3f} ({low:.2f}–{high:.2f})")
        return f"| {name} | {self.queries} | {' | '.join(cells)} |"


def wilson(hits: int, queries: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927)."""
    share = hits / queries
    centre = (share + z**2 / (2 * queries)) / (1 + z**2 / queries)
    half = z * np.sqrt(share * (1 - share) / queries + z**2 / (4 * queries**2))
    half /= 1 + z**2 / queries
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def ranks(similarity: Tensor, right: Tensor) -> list[int]:
    """Rank of the best right answer of every query; a tie counts against us.

    similarity: [queries, answers]; right: bool, the same shape.
    """
    best = similarity.masked_fill(~right, -torch.inf).max(dim=1, keepdim=True).values
    ahead = (similarity >= best) & ~right
    return [int(count) + 1 for count in ahead.sum(dim=1)]


def own(queries: int) -> Tensor:
    """Only the query's own picture is right."""
    return torch.eye(queries, dtype=torch.bool)


def same_object(pictures: Sequence[Picture]) -> Tensor:
    """Any picture of the query's object is right."""
    names = [min(picture.objects) for picture in pictures]
    return torch.tensor([[a == b for b in names] for a in names])


def encode_images(embedder: DualEncoderCheckpoint, images: Iterator[Image]) -> Tensor:
    """Unit length: [images, dimension]."""
    with torch.inference_mode():
        rows = [embedder.model.encode_image(embedder.preprocessor([image])) for image in images]
    return F.normalize(torch.cat(rows), dim=-1)


def encode_texts(embedder: DualEncoderCheckpoint, texts: Sequence[str]) -> Tensor:
    """Unit length: [texts, dimension]."""
    batch = embedder.tokenizer(texts)
    with torch.inference_mode():
        return F.normalize(embedder.model.encode_text(batch.ids, batch.mask), dim=-1)


def stamps_table(
    embedder: DualEncoderCheckpoint, stamps: Sequence[Picture], work: Path, side: int
) -> list[str]:
    """The rows of the held-out table."""
    captions = encode_texts(embedder, [stamp.caption for stamp in stamps])
    plain = encode_images(embedder, (open_image(stamp.path) for stamp in stamps))
    composites = encode_images(embedder, _composites(stamps, work, side))
    objects = [i for i, stamp in enumerate(stamps) if not stamp.glyph]
    chosen = [stamps[i] for i in objects]
    rows = []
    for name, pictures in (("plain", plain), ("composite", composites)):
        similarity = captions[objects] @ pictures[objects].T
        one = own(len(objects))
        rows.append(Recall.of(ranks(similarity, one)).row(f"text → image, {name}"))
        rows.append(
            Recall.of(ranks(similarity, same_object(chosen))).row(
                f"text → image, {name}, any of the object"
            )
        )
        rows.append(Recall.of(ranks(similarity.T, one)).row(f"image → text, {name}"))
    everything = Recall.of(ranks(captions @ plain.T, own(len(stamps))))
    rows.append(everything.row("text → image, plain, with the held-out letters"))
    return rows


def _composites(stamps: Sequence[Picture], work: Path, side: int) -> Iterator[Image]:
    for index in range(len(stamps)):
        view = make_view(list(stamps), None, 1, side, COMPOSITE_SEED, index)
        yield Image(view, (side, side))


def photographs(
    embedder: DualEncoderCheckpoint, folder: Path, show: Callable[[str], None] = print
) -> dict[str, int]:
    """Each query's rank among all of scikit-image's photographs."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".png", ".jpg"})
    pictures = encode_images(embedder, (open_image(path) for path in paths))
    names = [path.stem for path in paths]
    queries = {
        query: wanted
        for query, wanted in PHOTOGRAPHS.items()
        if any(name.startswith(tuple(wanted.split("|"))) for name in names)
    }
    similarity = encode_texts(embedder, list(queries)) @ pictures.T
    found = {}
    for row, (query, wanted) in zip(similarity, queries.items(), strict=True):
        right = torch.tensor([name.startswith(tuple(wanted.split("|"))) for name in names])
        found[query] = ranks(row[None], right[None])[0]
        first = [names[i] for i in row.argsort(descending=True)[:3]]
        show(f"| {query} | {found[query]} | {', '.join(first)} |")
    return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", default="held out", choices=["held out", "validation"])
    parser.add_argument("--heads", type=Path, default=aligned.SHIPPED, help="folder of the heads")
    arguments = parser.parse_args()
    settings = recipe.load()
    cache = Settings.load().cache_dir
    embedder = aligned.load(cache_dir=cache, shipped=arguments.heads)
    stamps = [
        picture
        for picture in recipe.pictures(settings)
        if picture.source == "stamp" and picture.part == arguments.part
    ]
    print(f"Stamps, {arguments.part}; 95 % intervals.\n")
    print("| | queries | R@1 | R@5 | R@10 |\n|---|---|---|---|---|")
    for row in stamps_table(embedder, stamps, Path(settings["work"]), settings["views"]["side"]):
        print(row)
    print("\n| query | rank | first three |\n|---|---|---|")
    photographs(embedder, pull("scikit-image-photos", cache_dir=cache))


if __name__ == "__main__":
    main()
