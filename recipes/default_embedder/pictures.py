"""The training pictures with their words, and the split by object."""

from __future__ import annotations

import hashlib
import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image

from chiasm.errors import ImageError
from chiasm.media.decode import read_header
from chiasm.media.image import Image
from chiasm.media.limits import Limits
from chiasm.media.perceptual_hash import hamming_distance, perceptual_hash


@dataclass(frozen=True)
class Picture:
    """A cut-out and its words.

    caption: the one sentence or name that describes it. keywords: single words that also apply.
    objects: what is shown, as normalised nouns; the split is made by them.
    part: "train", "validation" or "held out".
    """

    path: Path
    source: str
    caption: str
    keywords: tuple[str, ...] = ()
    objects: frozenset[str] = frozenset()
    glyph: bool = False
    part: str = "train"
    hash: int = field(default=0, compare=False)

    def open(self) -> PIL.Image.Image:
        """RGBA."""
        return PIL.Image.open(self.path).convert("RGBA")


def on_colour(cutout: PIL.Image.Image, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """The cut-out flattened onto one colour."""
    ground = PIL.Image.new("RGBA", cutout.size, (*colour, 255))
    ground.alpha_composite(cutout)
    return ground.convert("RGB")


# Sources ----------------------------------------------------------------------------------------


def stamps(folder: Path, glyphs: str) -> list[Picture]:
    """Tux Paint's stamps with their English captions; those without one are mirror images."""
    pictures = []
    for path in sorted(folder.rglob("*.png")):
        words = path.with_suffix(".txt")
        if not words.is_file():
            continue
        caption = words.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        if not re.search(r"\w", caption):
            continue
        place = path.relative_to(folder)
        keywords = tuple(name for name in place.parts[:-1] if name != "cartoon")
        pictures.append(
            Picture(
                path,
                "stamp",
                caption,
                keywords,
                frozenset({head_noun(caption)}),
                glyph=place.is_relative_to(glyphs),
            )
        )
    return pictures


_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
_LARGEST = 20_000_000  # pixels
_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
_DULL = {"clipart", "clip art", "image", "media", "png", "svg", "public domain", "unsorted", "hash"}


def openclipart(folder: Path, drawings: Path, leave_out: list[str]) -> list[Picture]:
    """Open Clip Art's pictures; titles and keywords stand in the drawing of the same name."""
    places = [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*.png"))
        if not any(path.relative_to(folder).is_relative_to(name) for name in leave_out)
    ]
    metadata = {place: _metadata(drawings / place.with_suffix(".svg")) for place in places}
    titles = Counter(title for title, _ in metadata.values())
    pictures = []
    for place, (title, subjects) in metadata.items():
        stem = _words(place.stem)
        # A title that many share is the name of a series, or was never filled in.
        name = title if title and titles[title] <= 3 and "by nicu" not in title else stem
        if len(name) < 3 or not _is_moderate(folder / place):
            continue
        keywords = dict.fromkeys([*subjects, *(_words(part) for part in place.parts[:-1])])
        pictures.append(
            Picture(
                folder / place,
                "openclipart",
                name,
                tuple(word for word in keywords if word and word not in _DULL)[:8],
                frozenset({head_noun(name), head_noun(stem)}),
            )
        )
    return pictures


def _is_moderate(path: Path) -> bool:
    try:
        read_header(path, limits=Limits(max_pixels=_LARGEST))
    except ImageError:
        return False
    return True


def _metadata(drawing: Path) -> tuple[str, list[str]]:
    try:
        tree = ElementTree.parse(drawing)
    except (OSError, ElementTree.ParseError):
        return "", []
    title = next((node.text or "" for node in tree.iter(_TITLE) if node.text), "").strip()
    subjects = [
        _words(item.text or "") for node in tree.iter(_SUBJECT) for item in node.iter(_ITEM)
    ]
    return _words(html.unescape(title)), subjects


def _words(name: str) -> str:
    """A file's name as words: no numbers, no underscores, no camel case."""
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    name = re.sub(r"[_\-.,/]+|\d+", " ", name)
    name = re.sub(r"\b(architett\w*|archi\w*|remix|ganson|bw|clip\s?art)\b", " ", name, flags=re.I)
    return " ".join(name.split()).lower()


def emoji(names: Path, folder: Path, style: str) -> list[Picture]:
    """One emoji set with the names and keywords of the Unicode CLDR."""
    available = {path.stem.lower(): path for path in folder.iterdir()}
    pictures = []
    for entry in json.loads(names.read_text(encoding="utf-8")):
        code = entry["hexcode"].lower()
        path = available.get(code) or available.get(f"{code}-fe0f")
        label = entry["label"]
        if path is None or label.startswith("regional indicator"):
            continue
        pictures.append(
            Picture(
                path,
                style,
                label.replace("flag: ", "flag of "),
                tuple(entry.get("tags", ()))[:8],
                frozenset({head_noun(label)}),
            )
        )
    return pictures


# Objects ----------------------------------------------------------------------------------------

_STOP = (
    r"[,.;:!?()–—…]|\b(is|are|was|were|can|could|lets?|means?|called|of|in|with|on|for|from|that"
    r"|which|who|has|have|and|to|at|by|used|after|ahead|stands?)\b"
)
_QUANTITIES = {"head", "piece", "pair", "couple", "bunch", "slice", "baby", "kind", "set", "box"}
_LEADING = re.compile(r"^(an?|the|some|one|two|three|four|five|happy|big|large|small|very)\s+")


def head_noun(text: str) -> str:
    """The last noun of the first noun phrase, in the singular: "A great blue heron." → "heron".

    Crude on purpose: it errs by joining different things under one key ("palm tree", "Christmas
    tree"), which makes the held-out objects stranger to the training, never more familiar.
    """
    text = re.sub(r"[“”\"'’]s?\b|[“”\"]", " ", text.lower()).strip()
    sign = re.match(r"^the .*?(letter|number) (\w+)", text)
    if sign:
        return f"{sign[1]} {sign[2]}"
    for phrase in re.split(_STOP, text):
        phrase = (phrase or "").strip()
        while phrase != (phrase := _LEADING.sub("", phrase)):
            pass
        words = re.findall(r"[^\W\d_]+", phrase)
        if words and singular(words[-1]) not in _QUANTITIES and not re.fullmatch(_STOP, phrase):
            return singular(words[-1])
    return text


def singular(word: str) -> str:
    """English plural to singular, by rule."""
    for ending, base in (("ies", "y"), ("ves", "f"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + base
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


# The split --------------------------------------------------------------------------------------


def split(
    pictures: list[Picture],
    *,
    salt: str,
    held_out: int,
    validation: int,
    near_duplicate_bits: int = 5,
) -> list[Picture]:
    """Give every picture its part, by object.

    Objects of the stamps are ordered by a hash; whole objects are held out until `held_out`
    stamps that are no glyphs are reached, then likewise for validation; of the letters a quarter
    and an eighth come on top. A picture of another source whose caption or keywords name one of
    these objects, or that looks like one of these stamps, is left out of training.
    """
    objects: dict[str, list[Picture]] = {}
    for picture in pictures:
        if picture.source == "stamp":
            objects.setdefault(min(picture.objects), []).append(picture)
    order = sorted(objects, key=lambda name: hashlib.sha256(f"{salt} {name}".encode()).digest())
    parts: dict[str, str] = {}
    for part, wanted in (("held out", held_out), ("validation", validation)):
        count = 0
        for name in order:
            size = sum(not picture.glyph for picture in objects[name])
            if name in parts or not size or count + size > wanted:
                continue
            parts[name] = part
            count += size
    letters = [name for name in order if all(picture.glyph for picture in objects[name])]
    share = len(letters) // 4
    parts |= dict.fromkeys(letters[:share], "held out")
    parts |= dict.fromkeys(letters[share : share + share // 2], "validation")
    return _spread(pictures, parts, near_duplicate_bits)


def _spread(pictures: list[Picture], parts: dict[str, str], bits: int) -> list[Picture]:
    hashes = {
        part: [
            picture.hash
            for picture in pictures
            if picture.source == "stamp" and parts.get(min(picture.objects)) == part
        ]
        for part in ("held out", "validation")
    }
    kept = []
    for picture in pictures:
        if picture.source == "stamp":
            part = parts.get(min(picture.objects), "train")
            if part == "train" and is_near(picture.hash, hashes["held out"], bits):
                part = "left out"
            elif part == "train" and is_near(picture.hash, hashes["validation"], bits):
                part = "validation only"
            kept.append(replace(picture, part=part))
            continue
        text = " ".join([picture.caption, *picture.keywords]).lower()
        words = {singular(word) for word in re.findall(r"[^\W\d_]+", text)}
        named = {parts[word] for word in (words | picture.objects) if word in parts}
        for part in ("held out", "validation"):
            if is_near(picture.hash, hashes[part], bits):
                named.add(part)
        part = "train"
        if "held out" in named:
            part = "left out"
        elif "validation" in named:
            part = "validation only"  # trained on once validation has done its work
        kept.append(replace(picture, part=part))
    return kept


def is_near(value: int, others: list[int], bits: int = 5) -> bool:
    """Whether a perceptual hash lies within `bits` of any of the others."""
    return any(hamming_distance(value, other) <= bits for other in others)


def with_hash(picture: Picture) -> Picture:
    """With the perceptual hash of the picture on white."""
    flat = np.asarray(on_colour(picture.open(), (255, 255, 255)))
    return replace(picture, hash=perceptual_hash(Image(flat, (flat.shape[1], flat.shape[0]))))
