"""Views of a cut-out: plain on white, in several ways, or composed onto a made-up background."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import PIL.ImageOps
from pictures import on_colour

Array = npt.NDArray[np.float64]
_BICUBIC = PIL.Image.Resampling.BICUBIC


_WHITE = (255, 255, 255)


def squashed(cutout: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """On white, stretched to a square."""
    return on_colour(cutout, _WHITE).resize((side, side), _BICUBIC)


def letterboxed(cutout: PIL.Image.Image, side: int, share: float = 1.0) -> PIL.Image.Image:
    """On white, scaled to fill `share` of the square: at 1, what the embedder makes of a file."""
    flat = on_colour(cutout, _WHITE)
    scale = share * side / max(flat.size)
    small = flat.resize([max(1, round(length * scale)) for length in flat.size], _BICUBIC)
    square = PIL.Image.new("RGB", (side, side), _WHITE)
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return square


def padded(cutout: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """With white all around."""
    return letterboxed(cutout, side, 0.8)


def mirrored(cutout: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Left and right exchanged."""
    return PIL.ImageOps.mirror(letterboxed(cutout, side))


def composite(
    cutout: PIL.Image.Image, side: int, random: np.random.Generator, *, flip: bool = True
) -> PIL.Image.Image:
    """Somewhere on a background: scaled, stretched, turned a little, relit, compressed."""
    ground = background(side, random).convert("RGBA")
    box = cutout.getchannel("A").getbbox()
    cutout = cutout.crop(box) if box else cutout
    if flip and random.random() < 0.5:
        cutout = cutout.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.5:
        cutout = cutout.rotate(random.uniform(-20, 20), _BICUBIC, expand=True)
    # The longer side fills 40–105 % of the canvas; squashing real pictures stretches them too.
    scale = side * random.uniform(0.4, 1.05) / max(cutout.size)
    stretch = np.exp(random.normal(0, 0.15))
    width = max(8, round(cutout.width * scale * stretch))
    height = max(8, round(cutout.height * scale / stretch))
    cutout = cutout.resize((width, height), _BICUBIC)
    left = round((side - width) * random.random())
    top = round((side - height) * random.random())
    ground.paste(cutout, (left, top), cutout)
    picture = ground.convert("RGB")
    for enhance in (
        PIL.ImageEnhance.Brightness,
        PIL.ImageEnhance.Contrast,
        PIL.ImageEnhance.Color,
    ):
        picture = enhance(picture).enhance(random.uniform(0.75, 1.25))
    if random.random() < 0.2:
        picture = picture.filter(PIL.ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(random.integers(40, 96)))
    return PIL.Image.open(buffer).convert("RGB")


def background(side: int, random: np.random.Generator) -> PIL.Image.Image:
    """A flat colour, a gradient, clouds of noise, a pattern, or a horizon."""
    kind = random.choice(["white", "flat", "gradient", "clouds", "pattern", "horizon"])
    first, second = (random.uniform(0, 255, 3) for _ in range(2))
    if kind == "white":
        values = np.broadcast_to(random.uniform(235, 255), (side, side, 3))
    elif kind == "flat":
        values = np.broadcast_to(first, (side, side, 3))
    elif kind == "gradient":
        angle = random.uniform(0, 2 * np.pi)
        y, x = np.mgrid[0:side, 0:side] / side - 0.5
        values = blend(np.cos(angle) * x + np.sin(angle) * y + 0.5, first, second)
    elif kind == "clouds":
        values = blend(clouds(side, random), first, second)
    elif kind == "pattern":
        period = random.uniform(6, 40)
        y, x = np.mgrid[0:side, 0:side]
        wave = (x // period + y // period) % 2 if random.random() < 0.5 else (x // period) % 2
        values = blend(wave, first, (first + second) / 2)
    else:
        line = random.uniform(0.3, 0.8) * side
        y = np.mgrid[0:side, 0:side][0]
        sky = blend(clouds(side, random), np.array([150, 190, 235.0]), np.array([245.0] * 3))
        soil = blend(clouds(side, random), first * 0.7, second * 0.7)
        values = np.where((y < line)[..., None], sky, soil)
    noisy = values + random.normal(0, random.uniform(0, 6), (side, side, 1))
    return PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def blend(share: Array, first: Array, second: Array) -> Array:
    """From `first` to `second` as `share` goes from 0 to 1."""
    share = np.clip(share, 0, 1)[..., None]
    return (1 - share) * first + share * second


def clouds(side: int, random: np.random.Generator) -> Array:
    """Noise of several sizes summed, 0 to 1: [side, side]."""
    total = np.zeros((side, side))
    for cells in (3, 7, 15, 40):
        noise = PIL.Image.fromarray(random.random((cells, cells)).astype(np.float32))
        total += np.asarray(noise.resize((side, side), _BICUBIC)) / cells**0.7
    return (total - total.min()) / (np.ptp(total) + 1e-9)
