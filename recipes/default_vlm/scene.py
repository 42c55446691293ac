"""Composed pictures of which everything is known."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from backgrounds import background
from borrowed import Picture
from concepts import Concept

_BICUBIC = PIL.Image.Resampling.BICUBIC
# Cells for one, two, three and four objects: left, top, width and height as shares of the side.
_CELLS: dict[int, tuple[list[tuple[float, float, float, float]], ...]] = {
    1: ([(0, 0, 1, 1)],),
    2: (
        [(0, 0, 0.5, 1), (0.5, 0, 0.5, 1)],
        [(0, 0, 0.5, 1), (0.5, 0, 0.5, 1)],
        [(0, 0, 1, 0.5), (0, 0.5, 1, 0.5)],
    ),
    3: (
        [(0, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5), (0.1, 0.5, 0.8, 0.5)],
        [(0.1, 0, 0.8, 0.5), (0, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)],
    ),
    4: ([(0, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5), (0, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)],),
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey",
           "white")  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """An object in a picture. centre: as shares of the picture's width and height."""

    concept: Concept
    source: str
    centre: tuple[float, float]
    colour: str


@dataclass(frozen=True)
class Scene:
    """things: what is shown. written: the word or number that is written, or nothing."""

    image: PIL.Image.Image = field(repr=False)
    things: tuple[Thing, ...]
    written: str = ""

    def facts(self) -> dict[str, Any]:
        """For the file of conversations."""
        return {
            "objects": [
                {
                    "name": thing.concept.name,
                    "synset": thing.concept.key,
                    "kind": thing.concept.kind,
                    "source": thing.source,
                    "centre": [round(each, 2) for each in thing.centre],
                    "colour": thing.colour,
                }
                for thing in self.things
            ],
            "written": self.written,
        }


def compose(
    chosen: list[tuple[Picture, Concept]],
    kinds: tuple[str, ...],
    side: int,
    random: np.random.Generator,
    *,
    photographs: Path | None = None,
) -> Scene:
    """The cut-outs, each in a cell of its own, on one background; relit and compressed a little."""
    ground = background(kinds, side, random, photographs).convert("RGBA")
    layouts = _CELLS[len(chosen)]
    cells = layouts[int(random.integers(len(layouts)))]
    things = []
    for number in random.permutation(len(chosen)):
        picture, concept = chosen[number]
        left, top, width, height = (each * side for each in cells[number])
        cutout = picture.open()
        cutout.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
        box = cutout.getchannel("A").getbbox()
        cutout = cutout.crop(box) if box else cutout
        colour = dominant_colour(cutout)
        if random.random() < 0.5:
            cutout = cutout.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < 0.3:
            cutout = cutout.rotate(random.uniform(-15, 15), _BICUBIC, expand=True)
        fill = random.uniform(0.5, 0.95) if len(chosen) == 1 else random.uniform(0.75, 0.98)
        scale = fill * min(width / cutout.width, height / cutout.height)
        size = (max(8, round(cutout.width * scale)), max(8, round(cutout.height * scale)))
        cutout = cutout.resize(size, _BICUBIC)
        x = round(left + (width - size[0]) * random.random())
        y = round(top + (height - size[1]) * random.random())
        ground.paste(cutout, (x, y), cutout)
        centre = ((x + size[0] / 2) / side, (y + size[1] / 2) / side)
        things.append(Thing(concept, picture.source, centre, colour))
    things.sort(key=lambda thing: (thing.centre[0], thing.centre[1]))
    return Scene(ground.convert("RGB"), tuple(things))


def write(
    text: str,
    kinds: tuple[str, ...],
    side: int,
    random: np.random.Generator,
    *,
    photographs: Path | None = None,
) -> Scene:
    """A word or a number, large, on a background."""
    ground = background(kinds, side, random, photographs)
    draw = PIL.ImageDraw.Draw(ground)
    size = side / max(2.0, 0.72 * len(text)) * random.uniform(0.8, 1.1)
    font = PIL.ImageFont.load_default(size=size)
    dark = float(np.asarray(ground.convert("L")).mean()) > 127
    draw.text(
        (side * random.uniform(0.45, 0.55), side * random.uniform(0.35, 0.65)),
        text,
        fill=(10, 10, 30) if dark else (250, 250, 240),
        font=font,
        anchor="mm",
    )
    return Scene(ground, (), text)


def dominant_colour(cutout: PIL.Image.Image) -> str:
    """The name of the colour that covers more than half of the cut-out; "" if none does."""
    small = np.asarray(cutout.resize((24, 24)))
    pixels = small[small[..., 3] > 128][:, :3] / 255.0
    if not len(pixels):
        return ""
    names = [colour_name(*pixel) for pixel in pixels]
    best = max(COLOURS, key=names.count)
    return best if names.count(best) > 0.55 * len(names) else ""


def colour_name(red: float, green: float, blue: float) -> str:
    """Of one pixel, each part from 0 to 1."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    hue *= 360
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.85 else "grey"
    if hue < 14 or hue >= 340:
        return "pink" if saturation < 0.5 and value > 0.75 else "red"
    if hue < 42:
        return "brown" if value < 0.65 else "orange"
    if hue < 68:
        return "yellow" if value > 0.55 else "brown"
    if hue < 165:
        return "green"
    if hue < 255:
        return "blue"
    return "purple" if hue < 300 else "pink"
