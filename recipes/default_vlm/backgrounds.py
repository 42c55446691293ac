"""What cut-outs are laid on: one set of kinds for training, another for the held-out pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
from borrowed import blend, clouds

TRAIN = ("white", "flat", "gradient", "clouds", "stripes", "checks")
HELD_OUT = ("horizon", "rings", "photograph", "photograph")
PHOTOGRAPHS = ("brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg")


def background(
    kinds: tuple[str, ...], side: int, random: np.random.Generator, photographs: Path | None = None
) -> PIL.Image.Image:
    """One of `kinds`, side × side. photographs: where those of scikit-image lie."""
    kind = str(random.choice(kinds))
    first, second = (random.uniform(0, 255, 3) for _ in range(2))
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    if kind == "photograph":
        assert photographs is not None
        whole = PIL.Image.open(photographs / str(random.choice(PHOTOGRAPHS))).convert("RGB")
        size = round(min(whole.size) * random.uniform(0.4, 1.0))
        left, top = (int(random.integers(0, each - size + 1)) for each in whole.size)
        return whole.crop((left, top, left + size, top + size)).resize((side, side))
    if kind == "white":
        values = np.broadcast_to(random.uniform(235, 255), (side, side, 3))
    elif kind == "flat":
        values = np.broadcast_to(first, (side, side, 3))
    elif kind == "gradient":
        angle = random.uniform(0, 2 * np.pi)
        values = blend(np.cos(angle) * x + np.sin(angle) * y + 0.5, first, second)
    elif kind == "clouds":
        values = blend(clouds(side, random), first, second)
    elif kind in ("stripes", "checks"):
        cells = random.uniform(5, 30)
        across = (x * cells).astype(int) + ((y * cells).astype(int) if kind == "checks" else 0)
        values = blend(across % 2, first, (2 * first + second) / 3)
    elif kind == "rings":
        centre = random.uniform(-0.5, 0.5, 2)
        distance = np.hypot(x - centre[0], y - centre[1])
        values = blend(0.5 + 0.5 * np.sin(distance * random.uniform(20, 80)), first, second)
    else:  # a horizon
        sky = blend(clouds(side, random), np.array([150, 190, 235.0]), np.array([245.0] * 3))
        soil = blend(clouds(side, random), first * 0.7, second * 0.7)
        values = np.where((y < random.uniform(-0.2, 0.3))[..., None], sky, soil)
    noisy = values + random.normal(0, random.uniform(0, 6), (side, side, 1))
    return PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
