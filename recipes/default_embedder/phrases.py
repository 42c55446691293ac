"""What people may type for a picture: caption, nouns and keywords, said several ways."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pictures import Picture, head_noun
from wordnet import Nouns

TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}", "the {}", "{}s")
_VOWEL = re.compile(r"\ba ([aeiou])")


@dataclass(frozen=True)
class Phrase:
    """One phrase for a picture. weight: how often it is drawn, relative to the others."""

    text: str
    weight: float


def of_picture(picture: Picture) -> list[Phrase]:
    """The caption most often, bare and in sentences; then nouns; then keywords."""
    bare = noun_phrase(picture.caption)
    nouns = [bare] if bare else []
    head = head_noun(picture.caption)
    if head in bare.split():
        nouns.append(head)
    weights = {picture.caption: 3.0}
    for share, noun in zip((1.0, 0.3), dict.fromkeys(nouns), strict=False):
        weights[noun] = weights.get(noun, 0) + 2 * share
        for template in TEMPLATES[:4]:
            weights[said(template, noun)] = weights.get(said(template, noun), 0) + 0.5 * share
    keywords = [word for word in picture.keywords if len(word) > 2]
    for word in keywords:
        weights[word] = weights.get(word, 0) + 1.0 / len(keywords)
    if keywords:
        joined = f"{bare or picture.caption}, {', '.join(keywords[:4])}"
        weights[joined] = 1.0
    return [Phrase(text, weight) for text, weight in weights.items()]


def noun_phrase(caption: str) -> str:
    """A short caption without its article and its full stop; "" for a longer sentence."""
    text = re.sub(r"^(an?|the|some)\s+", "", caption.strip().rstrip(".!?").lower())
    return text if len(text.split()) <= 4 else ""


def said(template: str, noun: str) -> str:
    """A template filled, with the article English wants."""
    return _VOWEL.sub(r"an \1", template.format(noun))


def imagenet(info: Path) -> list[list[str]]:
    """For each of the 1000 classes its names and its definition (WordNet's, as timm carries them).

    info: the folder `timm/data/_info` of the unpacked wheel.
    """
    lemmas = _table(info / "imagenet_synset_to_lemma.txt")
    definitions = _table(info / "imagenet_synset_to_definition.txt")
    classes = (info / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    phrases = []
    for synset in classes:
        names = [name.strip() for name in lemmas[synset].split(",")]
        phrases.append(
            [
                *names,
                *(said(template, names[0]) for template in TEMPLATES[:4]),
                f"{names[0]}, {definitions[synset]}",
                lemmas[synset],
            ]
        )
    return phrases


def imagenet_kinds(info: Path, nouns: Nouns) -> list[list[Phrase]]:
    """For each of the 1000 classes its name beside what it is a kind of, and its definition.

    A bare name means too much ("drake", "crane", "bow"); beside its hypernyms it means one thing.
    """
    lemmas = _table(info / "imagenet_synset_to_lemma.txt")
    definitions = _table(info / "imagenet_synset_to_definition.txt")
    phrases = []
    for synset in (info / "imagenet_synsets.txt").read_text(encoding="utf-8").split():
        name = lemmas[synset].partition(",")[0].strip()
        above = [nouns.synsets[key].names[0] for key in nouns.line(synset.removeprefix("n"))]
        phrases.append(
            [
                Phrase(f"{name}, a kind of {above[0]}", 1.0),
                Phrase(f"{name} ({', '.join(above[:3])})", 1.0),
                Phrase(said(f"a {{}} is a {above[0]}", name), 1.0),
                Phrase(f"{name}, {definitions[synset]}", 0.9),
            ]
        )
    return phrases


def _table(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if line)
