"""Run the locked towers once over every view and every phrase, and keep what they say.

    python recipes/default_embedder/features.py

writes `pictures.json`, `views-NN.npy` (the squashed view, then the rounds of composites),
`plain-*.npy` (the other views on white) and `texts.npz` into the work folder. What is there is not
computed again.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import phrases
import PIL.Image
import recipe
import torch
from pictures import Picture
from views import composite, letterboxed, mirrored, padded, squashed

from chiasm.models.bert import BERT
from chiasm.models.efficientnet_lite import EfficientNetLite
from chiasm.models.tokenizer import Tokenizer

Pixels = npt.NDArray[np.uint8]

BATCH = 32
_CUTOUT_SIDE = 320  # pixels; composites need no more
# Further views on white; all but the first are made of stamps only.
PLAIN = {"letterboxed": letterboxed, "padded": padded, "mirrored": mirrored}


def main() -> None:
    """Compute what is missing."""
    settings = recipe.load()
    work = Path(settings["work"])
    pictures = recipe.pictures(settings)
    (work / "cutouts").mkdir(parents=True, exist_ok=True)
    tower, text, tokenizer = recipe.towers()
    said = [phrase.text for picture in pictures for phrase in phrases.of_picture(picture)]
    named = [name for names in phrases.imagenet(recipe.imagenet(settings)) for name in names]
    kinds = [phrase.text for each in recipe.class_kinds(settings) for phrase in each]
    keep_texts(work / "texts.npz", text, tokenizer, [*said, *named, *kinds])
    rounds = max(settings["views"][kind] for kind in ("stamp", "openclipart", "emoji"))
    side, seed = settings["views"]["side"], settings["views"]["seed"]
    with multiprocessing.Pool(2) as pool:

        def keep_views(target: Path, chosen: list[int], view: Callable[[int], Pixels]) -> None:
            if target.exists():
                return
            started = time.monotonic()
            rows = np.zeros((len(pictures), tower_width()), dtype=np.float16)
            batches = _batched(pool.imap(view, chosen, chunksize=16))
            for start, batch in zip(range(0, len(chosen), BATCH), batches, strict=True):
                rows[chosen[start : start + BATCH]] = describe(tower, batch)
            np.save(target, rows)
            seconds = time.monotonic() - started
            print(f"{target.name}: {len(chosen)} views, {len(chosen) / seconds:.0f} a second")

        for number in range(rounds + 1):
            chosen = [
                index
                for index, picture in enumerate(pictures)
                if number <= recipe.views_of(picture, settings)
            ]
            view = partial(make_view, pictures, work, number, side, seed)
            keep_views(work / f"views-{number:02}.npy", chosen, view)
        stamps = [index for index, picture in enumerate(pictures) if picture.source == "stamp"]
        for name in PLAIN:
            chosen = list(range(len(pictures))) if name == "letterboxed" else stamps
            keep_views(work / f"plain-{name}.npy", chosen, partial(on_white, pictures, name, side))


def keep_texts(path: Path, text: BERT, tokenizer: Tokenizer, wanted: Sequence[str]) -> None:
    """Add the sentence embeddings that are not there yet."""
    texts: list[str] = []
    embeddings = np.zeros((0, 384), dtype=np.float32)
    if path.exists():
        with np.load(path) as kept:
            texts, embeddings = kept["texts"].tolist(), kept["embeddings"]
    known = set(texts)
    missing = [each for each in dict.fromkeys(wanted) if each not in known]
    if missing:
        rows = recipe.encode_texts(text, tokenizer, missing).numpy()
        both = np.concatenate([embeddings, rows])
        np.savez(path, texts=np.array([*texts, *missing]), embeddings=both)


def on_white(pictures: list[Picture], name: str, side: int, index: int) -> Pixels:
    """One of the views in `PLAIN`: uint8 [side, side, 3]."""
    return np.asarray(PLAIN[name](pictures[index].open(), side))


def make_view(
    pictures: list[Picture], work: Path | None, number: int, side: int, seed: int, index: int
) -> Pixels:
    """View `number` of a picture: uint8 [side, side, 3]. View 0 is squashed, the rest composed.

    work: where shrunken cut-outs are kept between rounds; None keeps none.
    """
    if number == 0:
        return np.asarray(squashed(pictures[index].open(), side))
    small = work and work / "cutouts" / f"{index}.png"
    if small and small.exists():
        cutout = PIL.Image.open(small)
    else:
        cutout = pictures[index].open()
        cutout.thumbnail((_CUTOUT_SIDE, _CUTOUT_SIDE), PIL.Image.Resampling.LANCZOS)
        if small:
            cutout.save(small)
    random = np.random.default_rng([seed, number, index])
    return np.asarray(composite(cutout, side, random, flip=not pictures[index].glyph))


def tower_width() -> int:
    """Means over space of the seven stages, then mean and maximum of the head's map."""
    return 16 + 24 + 40 + 80 + 112 + 192 + 320 + 1280 + 1280


@torch.no_grad()
def describe(tower: EfficientNetLite, views: Pixels) -> npt.NDArray[np.float16]:
    """[batch, side, side, 3] → [batch, tower_width()]."""
    pixels = (torch.from_numpy(views).permute(0, 3, 1, 2).float() - 127) / 128
    maps = list(tower.stages(pixels.contiguous(memory_format=torch.channels_last)))
    means = [each.mean(dim=(2, 3)) for each in maps]
    return torch.cat([*means, maps[-1].amax(dim=(2, 3))], dim=1).half().numpy()


def _batched(views: Iterator[Pixels]) -> Iterator[Pixels]:
    batch = []
    for view in views:
        batch.append(view)
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


if __name__ == "__main__":
    main()
