"""Sizes at which rules have been wrong: small, thin, at borders, and at random."""

from __future__ import annotations

import random

Size = tuple[int, int]

_SIDES = (1, 2, 7, 13, 14, 15, 16, 27, 28, 29, 31, 32, 33, 42, 223, 224, 225, 335, 336, 337, 384,
          385, 448, 449, 511, 512, 513, 672, 767, 768, 769, 1007, 1008, 1023, 1024, 1025, 1092,
          1456, 1568, 1569, 2000, 2047, 2048, 2049, 2576, 3000, 4096)  # fmt: skip


def sizes(count: int = 260, *, seed: int = 7) -> list[Size]:
    """At least so many (width, height)."""
    random_ = random.Random(seed)
    found = [(side, side) for side in _SIDES]
    found += [(a, b) for a in (1, 28, 336, 512, 1024, 2048) for b in (1, 29, 447, 513, 1569, 4000)]
    found += [(640, 480), (800, 600), (1280, 720), (1920, 1080), (1080, 1920), (3840, 2160),
              (6000, 4000), (1075, 1520), (200, 1), (1, 200), (4000, 20), (20, 4000)]  # fmt: skip
    while len(set(found)) < count:
        aspect = 2 ** random_.uniform(-7.6, 7.6)
        width = round(2 ** random_.uniform(0, 12.5))
        found.append((max(1, width), max(1, round(width / aspect))))
    return list(dict.fromkeys(found))
