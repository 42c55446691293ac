"""Shards of JPEG photographs into training batches: images a second and core.

    python benchmarks/loading.py

For shards of 1, 2, 4, 8 and 12 megapixels, and a mix of as many of each: the loader of `chiasm
train` against the plain road, which reads the same shards with tarfile, decodes in full with Pillow
and resizes with the same filter; and against webdataset's own pipeline, if it is installed
(benchmarks/requirements.txt). All end in a normalised float tensor of 224 × 224 and run on one
core. Rates are images per second of processor time, which a shared machine blurs less; the roads
take turns, and ratios are medians of the rounds'.

The floor is what cannot be avoided without leaving pixels out: entropy decoding, at an eighth of
the scale. The error is the mean absolute difference of the fitted picture to that of a full decode,
of 255; with crops, of random ones of at least half the area. The second table is about padding: how
many of the tokens in the batches are none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import torch
from decode import encoded, machine
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from tokenizers.models import WordLevel

from chiasm.media import Image, open_image
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.tokenizer import Tokenizer
from chiasm.training.augment import Augmentation, apply, draw
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.loader import open_loader

SIDE = 224
SIZES = {1: (1152, 864), 2: (1632, 1224), 4: (2304, 1728), 8: (3264, 2448), 12: (4000, 3000)}
DIFFERENT = 3  # pictures a size; a shard repeats them
IN_SHARD = 24
BATCH = 8
PREPROCESSOR = ImagePreprocessor.from_config({"image_processor_type": "CLIPImageProcessor"})


def caption(chance: random.Random) -> str:
    """As long as captions are: half of them have 6 to 12 words, one in a hundred more than 25."""
    words = max(1, min(60, round(chance.lognormvariate(2.2, 0.45))))
    return " ".join(f"w{chance.randrange(1000)}" for _ in range(words))


def tokenizer() -> Tokenizer:
    vocabulary = {"<pad>": 0, "<unk>": 1} | {f"w{n}": n + 2 for n in range(1000)}
    backend = Backend(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, pad_id=0, max_length=77)


def write_shard(path: Path, pictures: list[bytes], count: int) -> None:
    chance = random.Random(1)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(count):
            text = caption(chance)
            files = {
                "jpg": pictures[number % len(pictures)],
                "json": json.dumps({"caption": text}).encode(),
                "txt": text.encode(),
            }
            for suffix, data in files.items():
                entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


# The roads --------------------------------------------------------------------------------------
# Each is an endless stream of batches, so that all are measured in full swing.


def plain(path: Path) -> Iterator[Any]:
    """tarfile, Pillow in full, one after the other."""
    tokenise = tokenizer()
    while True:
        images, texts = [], []
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                data = archive.extractfile(member).read()
                if member.name.endswith(".txt"):
                    texts.append(data.decode())
                if member.name.endswith(".jpg"):
                    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
                    images.append(fitted(picture))
                if len(texts) == BATCH:
                    yield PREPROCESSOR.batch(images), tokenise(texts)
                    images, texts = [], []


def fitted(picture: PIL.Image.Image) -> np.ndarray:
    """What `PREPROCESSOR` does, from a picture of Pillow's."""
    pixels = np.asarray(picture)
    return PREPROCESSOR.fit(Image(pixels, original_size=picture.size))


def peer(path: Path) -> Iterator[Any]:
    """webdataset's pipeline, as its documentation writes it."""
    import webdataset

    tokenise = tokenizer()
    samples = (
        webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        .shuffle(1000, initial=BATCH)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(fitted, str)
        .repeat()
        .batched(BATCH, collation_fn=lambda rows: list(zip(*rows, strict=True)))
    )
    for images, texts in samples:
        yield PREPROCESSOR.batch(images), tokenise(texts)


def ours(path: Path) -> Iterator[Any]:
    return iter(
        open_loader(
            DataRecipe(source=str(path)),
            preprocessor=PREPROCESSOR,
            tokenizer=tokenizer(),
            batch_size=BATCH,
        )
    )


def floor(path: Path) -> Iterator[Any]:
    with tarfile.open(path) as archive:
        members = [each for each in archive if each.name.endswith(".jpg")]
        pictures = [archive.extractfile(each).read() for each in members]
    while True:
        for start in range(0, len(pictures), BATCH):
            yield [open_image(data, shortest_side=1) for data in pictures[start : start + BATCH]]


def rates(
    roads: dict[str, Callable[[Path], Iterator[Any]]], path: Path, images: int, rounds: int
) -> dict[str, list[float]]:
    """Images per second of processor time, for each road and round."""
    found: dict[str, list[float]] = {name: [] for name in roads}
    for _ in range(rounds):
        for name, road in roads.items():
            stream = road(path)
            next(stream)  # opened, filled, warm
            started = time.process_time()
            for _ in islice(stream, images // BATCH):
                pass
            found[name].append(images / (time.process_time() - started))
            stream.close()  # type: ignore[attr-defined]
    return found


# Errors -----------------------------------------------------------------------------------------


def error(pictures: list[bytes], slack: float, augmentation: Augmentation) -> float:
    differences = []
    for number, data in enumerate(pictures):
        change = draw(augmentation, random.Random(number))
        side = int(np.ceil(slack * SIDE / min(change.width, change.height)))
        exact = apply(open_image(data), change, PREPROCESSOR)
        scaled = apply(open_image(data, shortest_side=side), change, PREPROCESSOR)
        differences.append(np.abs(exact.astype(int) - scaled).mean())
    return statistics.mean(differences)


def padding(folder: Path, batch: int) -> None:
    """Padding among the tokens of a pass over captions of usual lengths."""
    tiny = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(tiny, "JPEG")
    write_shard(folder / "captions.tar", [tiny.getvalue()], 16_384)
    print(f"\n| batches of {batch} captions | tokens a text | of these padding |")
    print("|---|---:|---:|")
    tokens = texts = 0
    for name, buckets in (("padded to the longest, any order", 1), ("bucketed (default)", 8)):
        stream = open_loader(
            DataRecipe(source=str(folder / "captions.tar"), bucket_batches=buckets),
            preprocessor=ImagePreprocessor.from_config(
                {
                    "image_processor_type": "ViTImageProcessor",
                    "size": {"height": 8, "width": 8},
                }
            ),
            tokenizer=tokenizer(),
            batch_size=batch,
        )
        tokens = total = texts = 0
        for found in islice(iter(stream), 16_384 // batch):
            total += found.mask.numel()
            tokens += int(found.mask.sum())
            texts += len(found.mask)
        print(f"| {name} | {total / texts:.1f} | {1 - tokens / total:.1%} |")
        stream.close()
    print(f"| padded to 77 | 77.0 | {1 - tokens / (77 * texts):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="a round and size")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    core = sorted(os.sched_getaffinity(0))[0]
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    roads = {"plain": plain, "ours": ours, "floor": floor}
    names = ["chiasm", "pillow", "torch", "tokenizers"]
    try:
        importlib.metadata.version("webdataset")
        roads["peer"] = peer
        names.append("webdataset")
    except importlib.metadata.PackageNotFoundError:
        pass
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    turbo = PIL.features.version_feature("libjpeg_turbo")
    print(f"{machine()}, one core used; {time.strftime('%Y-%m-%d')}")
    print(f"Python {platform.python_version()}, {versions} (libjpeg-turbo {turbo})\n")
    crops = Augmentation(crop_area=0.5)
    print(
        "| MP | file MB | plain, images/s | webdataset | loader | ratio to plain | floor "
        "| error | error, crops |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = {
            size: [encoded(SIZES[size], seed=100 * size + n) for n in range(DIFFERENT)]
            for size in SIZES
        }
        everything = [each for row in zip(*pictures.values(), strict=True) for each in row]
        for name, some in {**{str(size): each for size, each in pictures.items()}}.items():
            row(name, some, folder, roads, options, crops, IN_SHARD)
        row("mix", everything, folder, roads, options, crops, 2 * len(everything))
        padding(folder, 64)


def row(
    name: str,
    pictures: list[bytes],
    folder: Path,
    roads: dict[str, Callable[[Path], Iterator[Any]]],
    options: argparse.Namespace,
    crops: Augmentation,
    count: int,
) -> None:
    path = folder / f"{name}.tar"
    write_shard(path, pictures, count)
    # A whole number of passes, so that each road sees as many pictures of each size.
    images = max(options.images, count) // count * count
    images = images if images % BATCH == 0 else images * BATCH
    found = rates(roads, path, images, options.rounds)
    ratio = statistics.median(
        mine / theirs for mine, theirs in zip(found["ours"], found["plain"], strict=True)
    )
    middle = {road: f"{statistics.median(each):.1f}" for road, each in found.items()}
    print(
        f"| {name} | {statistics.mean(map(len, pictures)) / 1e6:.1f} | {middle['plain']} "
        f"| {middle.get('peer', '–')} | {middle['ours']} | {ratio:.1f}× | {middle['floor']} "
        f"| {error(pictures, 1.5, Augmentation()):.2f} | {error(pictures, 1.5, crops):.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
