"""Compose the pictures and write their conversations: training, validation, held out.

    python recipes/default_vlm/compose.py

writes `train-….jsonl`, `validation.jsonl`, `held_out.jsonl` and `familiar.jsonl` in the shape of
OpenAI's messages, and their pictures, into the work folder. Beside `messages`, a line says what is
shown (`objects`) and what each question is (`turns`), for evaluate.py. Everything follows from the
seed.

What the start model's namer says of a picture decides what is asked of it in training: an object
that is not among the words that the language model is given is not asked for by name.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backgrounds import HELD_OUT, TRAIN
from questions import WORDS, Asker
from scene import Scene, Thing, compose, write
from split import Split, fold, load, nouns, split

from chiasm.media import open_image
from chiasm.models import catalog, small_vlm
from chiasm.settings import Settings
from chiasm.training.picture_features import FeatureCache, picture_key, tower_identity

START = "start"  # the model without adapters, see begin.py


def main() -> None:
    """Compose all parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--again",
        type=Path,
        metavar="MODEL",
        help="write other questions about training's pictures, for a second run of this model",
    )
    again: Path | None = parser.parse_args().again
    torch.set_num_threads(1)
    settings = load()
    words = nouns(settings)
    found = split(settings, words)
    work = Path(settings["work"])
    cache = Settings.load().cache_dir
    photographs = catalog.pull("scikit-image-photos", cache_dir=cache)
    start = small_vlm.load(cache_dir=cache, shipped=again or work / START)
    kept = FeatureCache(work / "features", tower_identity(start.model.image_tower, start.images))
    if again:
        for first, end in pairwise([0, *settings["pictures"]["again"]]):
            path = work / f"again-{first:05}.jsonl"
            if path.exists():
                print(f"{path.name}: there already")
                continue
            numbers = range(first, end)
            lines = written(
                settings, found, "train", work / "train", numbers, start, kept, photographs,
                again=True,
            )  # fmt: skip
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_strange(work, settings["namer"])
        return
    for part in ("train", "validation", "held out", "familiar"):
        target = work / part.replace(" ", "_")
        ends = settings["pictures"][target.name]
        ends = ends if isinstance(ends, list) else [ends]
        for first, end in pairwise([0, *ends]):
            path = work / (
                f"{target.name}-{first:05}.jsonl" if len(ends) > 1 else f"{target.name}.jsonl"
            )
            if path.exists():
                print(f"{path.name}: there already")
                continue
            lines = written(
                settings, found, part, target, range(first, end), start, kept, photographs
            )
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def written(
    settings: dict[str, Any],
    found: Split,
    part: str,
    target: Path,
    numbers: range,
    start: Any,
    kept: FeatureCache,
    photographs: Path,
    *,
    again: bool = False,
) -> list[str]:
    """The lines of some numbers; their pictures go into the folder `target`."""
    rules = settings["pictures"]
    target.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    concepts = found.concepts_of(part)
    shown = [found.concepts[i].key for i in found.parts[part]]
    strange = part in ("held out", "familiar")
    kinds = HELD_OUT if strange else TRAIN
    namer = settings["namer"]
    strangers = frozenset(c.key for c in concepts if fold(c.key, namer["folds"]) in namer["aside"])
    lines = []
    for number in numbers:
        random = np.random.default_rng([rules["seed"], sum(map(ord, part)), number])
        if random.random() < rules["text_share"]:
            texts = WORDS["held out" if strange else "train"]
            text = str(random.choice(texts)) if random.random() < 0.6 else str(random.integers(100))
            scene = write(text, kinds, rules["side"], random, photographs=photographs)
        else:
            scene = drawn(settings, found, part, kinds, random, photographs)
        name = f"{number:05}.jpg"
        quality = int(random.integers(70, 96))
        if not (target / name).exists():  # else the features that are kept are this file's
            scene.image.save(target / name, quality=quality)
        looks = words_given(start, target / name, kept) if part == "train" else []
        known = named(looks, scene) if part == "train" else set(scene.things)
        asker = Asker(
            concepts,
            [shown.count(concept.key) for concept in concepts],
            "held out" if strange else "train",
            known.__contains__,
            guess=partial(guessed, looks) if again else None,
            strange=strangers if again else frozenset(),
        )
        turns = asker.turns(scene, random)
        said = {"messages": messages(f"{target.name}/{name}", turns), **scene.facts()}
        lines.append(json.dumps({**said, "turns": [vars(turn) for turn in turns]}))
        if number % 100 == 99:
            print(f"{part}: {number + 1}, {time.monotonic() - began:.0f} s", flush=True)
    return lines


def write_strange(work: Path, rules: dict[str, Any]) -> None:
    """Of the second questions, those about pictures of strangers alone."""
    kept = []
    for path in sorted(work.glob("again-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            keys = [each["synset"] for each in json.loads(line)["objects"]]
            if keys and all(fold(key, rules["folds"]) in rules["aside"] for key in keys):
                kept.append(line)
    (work / "strange.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def drawn(
    settings: dict[str, Any],
    found: Split,
    part: str,
    kinds: tuple[str, ...],
    random: np.random.Generator,
    photographs: Path,
) -> Scene:
    """A picture of cut-outs drawn by source; half of those of several are of one kind."""
    rules = settings["pictures"]
    pool = found.parts[part]
    weights = np.array([rules["source_weights"][found.pictures[i].source] for i in pool])
    count = 1 + int(random.choice(4, p=rules["counts"]))
    together = count > 1 and random.random() < 0.5
    chosen: list[int] = []
    while len(chosen) < count:
        i = int(random.choice(pool, p=weights / weights.sum()))
        seen = [found.concepts[each] for each in chosen]
        alike = all(found.concepts[i].kind == each.kind for each in seen)
        other = all(found.concepts[i].name not in each.accepted for each in seen)
        if other and (alike or not together):
            chosen.append(i)
        elif together and len(chosen) == 1 and random.random() < 0.02:
            chosen = []  # there may be no other of its kind
    cutouts = [(found.pictures[i], found.concepts[i]) for i in chosen]
    return compose(cutouts, kinds, rules["side"], random, photographs=photographs)


def words_given(start: Any, path: Path, kept: FeatureCache) -> list[list[str]]:
    """The words that the language model will be given for each look at a picture."""
    features = kept.get(picture_key(path))
    if features is None:
        inputs = start.images.prepare(open_image(path))
        with torch.no_grad():
            features = kept.put(picture_key(path), start.model.tower_features(inputs.pixels))
    return [
        [start.tokenizer.decode(word).strip() for word in words]
        for words in start.model.words_given(features)
    ]


def quarter_of(thing: Thing) -> int:
    """The number of the look at the quarter in which a thing's centre lies."""
    x, y = thing.centre
    return 1 + int(x >= 0.5) + 2 * int(y >= 0.5)


def named(looks: list[list[str]], scene: Scene) -> set[Thing]:
    """The things that the namer names, in the whole picture or, one of several, in its quarter."""
    known = set()
    for thing in scene.things:
        own = [0, quarter_of(thing)] if len(scene.things) > 1 else [0]
        if any(word in thing.concept.accepted for look in own for word in looks[look]):
            known.add(thing)
    return known


def guessed(looks: list[list[str]], thing: Thing) -> str:
    """The namer's first word for the whole picture."""
    return looks[0][0]


def messages(picture: str, turns: list[Any]) -> list[dict[str, Any]]:
    """The turns as OpenAI's messages, the picture in the first."""
    found: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        text = {"type": "text", "text": turn.question}
        shown = {"type": "image_url", "image_url": {"url": picture}}
        found.append({"role": "user", "content": [text] if number else [shown, text]})
        found.append({"role": "assistant", "content": turn.answer})
    return found


if __name__ == "__main__":
    main()
