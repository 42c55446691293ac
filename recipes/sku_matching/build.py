"""Make the public example of product matching: a table of pictures, titles and SKUs.

    python recipes/default_embedder/fetch.py
    python recipes/sku_matching/build.py

Each of 2,000 cut-outs of Tux Paint's stamps and Open Clip Art is a product. Its pictures are views
of the cut-out: the first plain on white, as in a catalogue; the others turned, at another scale, on
another background, relit, cropped, and saved as a JPEG of another quality. Written below
build/sku_matching:

    pictures/*.jpg      6 views of each, at most 320 pixels wide and high
    train.csv           file,title,sku: 1,500 SKUs
    test.csv            the same of 500 other SKUs, none of which looks like one in train.csv

Cut-outs that look alike are one product, and only one of them is used; so are those with equal
titles, which no title could tell apart.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "default_embedder"))

import recipe  # noqa: E402 — of the default embedder: where the cut-outs are and how they are read
from pictures import Picture, on_colour  # noqa: E402
from views import composite  # noqa: E402

SOURCES = ("stamp", "openclipart")
SALT = "chiasm sku matching 1"
NEAR_DUPLICATE_BITS = 6  # of the 64 of a perceptual hash
SMALLEST = 48  # pixels of a cut-out's longer side
SEED = 11
_BICUBIC = PIL.Image.Resampling.BICUBIC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=int, default=1500, help="SKUs to train on")
    parser.add_argument("--test", type=int, default=500, help="SKUs to test with")
    parser.add_argument("--views", type=int, default=6, help="pictures of each SKU")
    parser.add_argument("--side", type=int, default=320, help="longest side of a picture")
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build/sku_matching")
    options = parser.parse_args()
    settings = recipe.load()
    if not (Path(settings["work"]) / "fetched").is_dir():
        sys.exit("The cut-outs are not there. Run: python recipes/default_embedder/fetch.py")
    candidates = [
        each
        for each in recipe.pictures(settings)
        if each.source in SOURCES and not each.glyph  # a letter is no product
    ]
    chosen = products(candidates, options.test + options.train)
    (options.work / "pictures").mkdir(parents=True, exist_ok=True)
    render = partial(write_views, folder=options.work, views=options.views, side=options.side)
    with multiprocessing.Pool(2) as pool:
        files = pool.starmap(render, enumerate(chosen), chunksize=8)
    rows = [
        (file, product.caption, sku_of(number))
        for number, (product, names) in enumerate(zip(chosen, files, strict=True))
        for file in names
    ]
    tested = options.test * options.views
    for name, part in (("test", rows[:tested]), ("train", rows[tested:])):
        write_table(options.work / f"{name}.csv", part)
        print(
            f"{options.work / name}.csv: {len(part)} pictures of {len({r[2] for r in part})} SKUs"
        )


# Which cut-outs ---------------------------------------------------------------------------------


def products(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """`count` cut-outs, no two of which look alike or are called the same, in a hash's order.

    Whatever stands in the two halves of this list is therefore another product.
    """
    groups = alike([picture.hash for picture in pictures], NEAR_DUPLICATE_BITS)
    order = sorted(zip(pictures, groups, strict=True), key=lambda each: _order(each[0]))
    seen_groups: set[int] = set()
    seen_titles: set[str] = set()
    chosen: list[Picture] = []
    for picture, group in order:
        title = picture.caption.casefold().strip(" .!")
        if group in seen_groups or title in seen_titles or not is_cut_out(picture):
            continue
        seen_groups.add(group)
        seen_titles.add(title)
        chosen.append(picture)
        if len(chosen) == count:
            return chosen
    sys.exit(f"There are only {len(chosen)} different cut-outs; {count} were asked for.")


def alike(hashes: Sequence[int], bits: int) -> list[int]:
    """A group's number for each hash; those within `bits` of each other share one, by any chain."""
    values = np.array(hashes, dtype=np.uint64)
    group = list(range(len(values)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = index = group[group[index]]
        return index

    for index, value in enumerate(values):
        for other in np.flatnonzero(np.bitwise_count(values[:index] ^ value) <= bits):
            group[root(index)] = root(int(other))
    return [root(index) for index in range(len(values))]


def is_cut_out(picture: Picture) -> bool:
    """Whether there is something large enough on nothing."""
    mask = picture.open().getchannel("A")
    box = mask.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < SMALLEST:
        return False
    covered = float((np.asarray(mask) > 127).mean())
    return 0.02 < covered < 0.98


def _order(picture: Picture) -> bytes:
    place = "/".join(picture.path.parts[-3:])  # the same wherever the work folder is
    return hashlib.sha256(f"{SALT} {picture.source} {place}".encode()).digest()


# Their views ------------------------------------------------------------------------------------


def write_views(number: int, product: Picture, *, folder: Path, views: int, side: int) -> list[str]:
    """Render a product's views and return their files' names, relative to `folder`."""
    cutout = product.open()
    box = cutout.getchannel("A").getbbox()
    cutout = cutout.crop(box)
    cutout.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    names = []
    for view in range(views):
        random = np.random.default_rng([SEED, number, view])
        picture = catalogue_view(cutout, side) if view == 0 else other_view(cutout, side, random)
        name = f"pictures/{sku_of(number)}-{view}.jpg"
        quality = 92 if view == 0 else int(random.integers(45, 96))
        picture.save(folder / name, quality=quality)
        names.append(name)
    return names


def catalogue_view(cutout: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """On white, in the middle, with a margin."""
    ground = PIL.Image.new("RGBA", (side, side), (255, 255, 255, 0))
    scale = 0.85 * side / max(cutout.size)
    size = tuple(max(1, round(length * scale)) for length in cutout.size)
    ground.paste(cutout.resize(size, _BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return on_colour(ground, (255, 255, 255))


def other_view(cutout: PIL.Image.Image, side: int, random: np.random.Generator) -> PIL.Image.Image:
    """Turned, somewhere on a background, then cropped. Never mirrored: that is another product."""
    turned = cutout.rotate(random.normal(0, 12), _BICUBIC, expand=True)
    picture = composite(turned, side, random, flip=False)
    return cropped(picture, random)


def cropped(picture: PIL.Image.Image, random: np.random.Generator) -> PIL.Image.Image:
    """A part of the picture: at least three quarters of each side."""
    width, height = (round(length * random.uniform(0.75, 1)) for length in picture.size)
    left = int(random.integers(0, picture.width - width + 1))
    top = int(random.integers(0, picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


# The table --------------------------------------------------------------------------------------


def sku_of(number: int) -> str:
    """A product's number in the shop."""
    return f"sku-{number:05}"


def write_table(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """file,title,sku."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "title", "sku"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
