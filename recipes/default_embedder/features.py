"""Run the locked towers once over every view and every phrase, and keep what they say.

    python recipes/default_embedder/features.py

writes `pictures.json`, one `views-NN.npy` a round of views and `texts.npz` into the work folder.
A round that is there is not computed again.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import phrases
import PIL.Image
import recipe
import torch
from pictures import Picture
from views import composite, plain

from chiasm.models.efficientnet_lite import EfficientNetLite

BATCH = 32
_CUTOUT_SIDE = 320  # pixels; composites need no more


def main() -> None:
    """Compute what is missing."""
    settings = recipe.load()
    work = Path(settings["work"])
    pictures = recipe.pictures(settings)
    (work / "cutouts").mkdir(parents=True, exist_ok=True)
    tower, text, tokenizer = recipe.towers()
    if not (work / "texts.npz").exists():
        said = [phrase.text for picture in pictures for phrase in phrases.of_picture(picture)]
        named = phrases.imagenet(work / "fetched/timm/data/_info")
        texts = list(dict.fromkeys([*said, *(name for names in named for name in names)]))
        rows = recipe.encode_texts(text, tokenizer, texts)
        np.savez(work / "texts.npz", texts=np.array(texts), embeddings=rows.numpy())
    rounds = max(settings["views"][kind] for kind in ("stamp", "openclipart", "emoji"))
    with multiprocessing.Pool(2) as pool:
        for number in range(rounds + 1):
            target = work / f"views-{number:02}.npy"
            if target.exists():
                continue
            chosen = [
                index
                for index, picture in enumerate(pictures)
                if number <= recipe.views_of(picture, settings)
            ]
            view = partial(
                make_view,
                pictures,
                work,
                number,
                settings["views"]["side"],
                settings["views"]["seed"],
            )
            started = time.monotonic()
            rows = np.zeros((len(pictures), tower_width()), dtype=np.float16)
            batches = _batched(pool.imap(view, chosen, chunksize=16))
            for start, batch in zip(range(0, len(chosen), BATCH), batches, strict=True):
                rows[chosen[start : start + BATCH]] = describe(tower, batch)
            np.save(target, rows)
            seconds = time.monotonic() - started
            print(f"{target.name}: {len(chosen)} views, {len(chosen) / seconds:.0f} a second")


def make_view(
    pictures: list[Picture], work: Path | None, number: int, side: int, seed: int, index: int
) -> npt.NDArray[np.uint8]:
    """View `number` of a picture: uint8 [side, side, 3]. View 0 is the plain one.

    work: where shrunken cut-outs are kept between rounds; None keeps none.
    """
    if number == 0:
        return np.asarray(plain(pictures[index].open(), side))
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
def describe(tower: EfficientNetLite, views: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """[batch, side, side, 3] → [batch, tower_width()]."""
    pixels = (torch.from_numpy(views).permute(0, 3, 1, 2).float() - 127) / 128
    maps = list(tower.stages(pixels.contiguous(memory_format=torch.channels_last)))
    means = [each.mean(dim=(2, 3)) for each in maps]
    return torch.cat([*means, maps[-1].amax(dim=(2, 3))], dim=1).half().numpy()


def _batched(views: Iterator[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
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
