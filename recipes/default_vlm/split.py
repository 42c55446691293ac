"""Who may be shown where: cut-outs of training, of validation, and held out, by concept."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from borrowed import Picture, embedder
from concepts import Concept, concept_of
from wordnet import Nouns

HERE = Path(__file__).parent


def load() -> dict[str, Any]:
    """recipe.toml; the work folder is relative to the repository."""
    settings = tomllib.loads((HERE / "recipe.toml").read_text(encoding="utf-8"))
    settings["work"] = str(HERE.parents[1] / settings["work"])
    return settings


def nouns(settings: dict[str, Any]) -> Nouns:
    """WordNet, as fetched."""
    return Nouns(Path(settings["work"]) / "fetched/usr/share/wordnet")


@dataclass(frozen=True)
class Split:
    """numbers of pictures: train for the namer; and those of a concept, by part."""

    pictures: list[Picture]
    concepts: dict[int, Concept]  # of pictures that show one thing with a name
    parts: dict[str, list[int]]  # "train", "validation", "held out", "familiar"
    namer: list[int]  # pictures, with and without a concept, that the namer may be fitted on

    def concepts_of(self, part: str) -> list[Concept]:
        """Each once."""
        return list({self.concepts[i].key: self.concepts[i] for i in self.parts[part]}.values())


def split(settings: dict[str, Any], words: Nouns) -> Split:
    """The default embedder's split of objects, carried over to concepts.

    A concept is held out if a held-out stamp shows it; then no picture of any source that shows
    it, or a kind of it, is trained on, nor one that the embedder's split left out because it names
    a held-out object. Likewise for validation. "familiar" are new pictures of concepts that others
    are trained on: one in ten of those with three pictures or more.
    """
    pictures = embedder.pictures(embedder.load())
    concepts = {i: c for i, p in enumerate(pictures) if (c := concept_of(p, words))}

    def shown_by(part: str) -> set[str]:
        return {c.key for i, c in concepts.items()
                if pictures[i].source == "stamp" and pictures[i].part == part}  # fmt: skip

    held_out = shown_by("held out")
    validation = shown_by("validation") - held_out
    kinds_held_out, kinds_validation = (_kinds(keys, words) for keys in (held_out, validation))
    parts: dict[str, list[int]] = {"train": [], "validation": [], "held out": [], "familiar": []}
    shown = Counter(concept.key for concept in concepts.values())
    fit = []
    for i, picture in enumerate(pictures):
        key = concepts[i].key if i in concepts else None
        if picture.part == "train" and key not in kinds_held_out | kinds_validation:
            if key is not None and shown[key] >= 3 and fold(str(picture.path.name), 10) == 0:
                parts["familiar"].append(i)
                continue
            fit.append(i)
            if key is not None:
                parts["train"].append(i)
        elif key in held_out and picture.part in ("held out", "left out"):
            parts["held out"].append(i)
        elif key in validation and picture.part in ("validation", "validation only"):
            parts["validation"].append(i)
    return Split(pictures, concepts, parts, fit)


def _kinds(keys: Iterable[str], words: Nouns) -> set[str]:
    return {below for key in keys for below in words.below(key)}


def fold(key: str, folds: int) -> int:
    """Of a concept, or of anything else that has a name."""
    return int(hashlib.sha256(f"fold {key}".encode()).hexdigest(), 16) % folds
