"""What the model gets right, with intervals: held-out objects, familiar ones, photographs.

    python recipes/default_vlm/evaluate.py [--model FOLDER] [--parts held_out familiar] [--limit N]

Each question is asked by itself, with the picture before it and no other question. Prints tables
and writes `evaluation-PRECISION.json` into the work folder. How things are counted:

- presence: an answer must begin with yes or no; anything else is wrong.
- name: of pictures of one object, asked "What is this?"; right if the answer is an accepted name
  (the concept's synonyms in WordNet and the names of its kinds) or a phrase that ends in one.
- caption: CHAIR_s (Rohrbach et al. 2018, arXiv:1809.02156), the share of captions that mention an
  object which is not there. Names of what an object is a kind of ("bird" for a duck) are no
  hallucination, and no hit either. Words for any object ("an animal") mention none.
- unanswerable: the answer must say that it can't tell.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from asking import answers
from questions import CAPTION, LIST, NAME, UNANSWERABLE
from split import load, nouns
from wordnet import Nouns

from chiasm.evaluation import intervals
from chiasm.media import open_image
from chiasm.models import catalog, small_vlm
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.settings import Settings

PHOTOGRAPHS = {
    "chelsea.png": ("cat", {"cat"}),
    "coffee.png": ("cup", {"cup", "coffee", "mug", "espresso"}),
    "motorcycle_left.png": ("motorcycle", {"motorcycle", "motorbike"}),
    "rocket.jpg": ("rocket", {"rocket", "missile", "spacecraft"}),
}
_HEDGES = {
    "animal", "animals", "food", "plant", "plants", "object", "objects", "part of a body",
    "parts of a body", "something", "things",
}  # fmt: skip


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=small_vlm.SHIPPED)
    parser.add_argument("--parts", nargs="+", default=["held_out", "familiar"])
    parser.add_argument("--limit", type=int, default=10_000, help="pictures of a part")
    parser.add_argument("--precision", default="float32", choices=("float32", "int8"))
    parser.add_argument("--examples", type=int, default=0, help="print so many answers")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    settings = load()
    work = Path(settings["work"])
    words = nouns(settings)
    cache = Settings.load().cache_dir
    found = small_vlm.load(cache_dir=cache, shipped=arguments.model)
    precision = arguments.precision
    report: dict[str, Any] = {"model": found.digest, "precision": precision}
    for part in arguments.parts:
        lines = (work / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        asked = ask(found, [json.loads(line) for line in lines[: arguments.limit]], work, precision)
        for each in asked[: arguments.examples]:
            print(f"{each.names}: {each.question} {each.said}")
        report[part] = figures(asked, words)
        show(part, report[part])
    report["photographs"] = photographs(found, words, cache, precision)
    (work / f"evaluation-{precision}.json").write_text(
        json.dumps(report, indent=2), encoding="utf-8"
    )


@dataclass(frozen=True)
class Asked:
    """A question of a picture and what the model said. picture: its number, for clusters."""

    picture: int
    kind: str
    question: str
    expected: str
    said: str
    objects: list[dict[str, Any]]

    @property
    def names(self) -> str:
        """What is shown."""
        return ", ".join(each["name"] for each in self.objects)


def ask(
    found: GeneratorCheckpoint, lines: Sequence[dict[str, Any]], work: Path, precision: str
) -> list[Asked]:
    """Every question of every picture; and "What is this?" of each picture of one object."""
    images, rows = [], []
    for number, line in enumerate(lines):
        address = line["messages"][0]["content"][0]["image_url"]["url"]
        image = open_image(work / address)
        objects = line["objects"]
        turns = [(turn["kind"], turn["question"], turn["expected"]) for turn in line["turns"]]
        # Held-out files ask for names wherever there is one object; others need not.
        if len(objects) == 1 and not any(kind == "name" for kind, *_ in turns):
            turns.append(("name", NAME[number % len(NAME)], objects[0]["name"]))
        for turn in turns:
            rows.append((number, *turn, objects))
            images.append(image)
    said = answers(found, images, [row[2] for row in rows], precision=precision)
    return [
        Asked(number, kind, question, expected, text, objects)
        for (number, kind, question, expected, objects), text in zip(rows, said, strict=True)
    ]


# Counting ---------------------------------------------------------------------------------------


def figures(asked: Sequence[Asked], words: Nouns) -> dict[str, Any]:
    """Every figure as its value, bounds and number of questions."""
    found: dict[str, Any] = {}

    def share(name: str, hits: Sequence[bool], rows: Sequence[Asked]) -> None:
        if rows:
            clusters = [row.picture for row in rows]
            alone = len(set(clusters)) == len(clusters)
            interval = intervals.share(hits, None if alone else clusters)
            found[name] = {"value": interval.value, "low": interval.low, "high": interval.high,
                           "questions": len(rows)}  # fmt: skip

    presence = [row for row in asked if row.kind.startswith("presence")]
    yes = [row for row in presence if row.expected == "yes"]
    share("presence, shown: says yes", [reply(row) == "yes" for row in yes], yes)
    for kind in ("random", "popular", "co-occurring"):
        rows = [row for row in presence if row.kind == f"presence {kind}"]
        share(f"presence, absent ({kind}): says no", [reply(row) == "no" for row in rows], rows)
    share("presence: yes-share", [reply(row) == "yes" for row in presence], presence)
    found |= balanced(presence)
    for source in ("", "stamp", "openclipart", "noto", "fluent"):
        rows = [row for row in asked if row.kind == "name"
                and source in ("", row.objects[0]["source"])]  # fmt: skip
        hits = [is_named(row.said, row.objects[0], words) for row in rows]
        share("names the object" + (f", {source}" if source else ""), hits, rows)
    rows = [row for row in asked if row.kind == "name"]
    share("names it or what it is a kind of", [
        bool(told := mentions(row.said)) and is_there(told[0], row.objects, words) for row in rows
    ], rows)  # fmt: skip
    captions = [row for row in asked if row.kind == "caption"]
    told = [mentions(row.said) for row in captions]
    invented = [
        any(not is_there(name, row.objects, words) for name in names)
        for row, names in zip(captions, told, strict=True)
    ]
    share("captions: CHAIR_s", invented, captions)
    complete = [
        all(any(name in accepted(each, words) for name in names) for each in row.objects)
        for row, names in zip(captions, told, strict=True)
    ]
    share("captions: all objects named", complete, captions)
    share("captions: no object named", [not names for names in told], captions)
    rows = [row for row in asked if row.kind == "unanswerable"]
    share("unanswerable: declined", ["can't tell" in row.said.lower() for row in rows], rows)
    answerable = [row for row in asked if row.kind in ("name", "colour", "count", "caption")]
    share(
        "answerable: declined", ["can't tell" in row.said.lower() for row in answerable], answerable
    )
    for kind in ("count", "colour", "where", "read"):
        rows = [row for row in asked if row.kind == kind]
        share(
            kind,
            [row.expected.lower() in re.findall(r"\w+", row.said.lower()) for row in rows],
            rows,
        )
    return found


def reply(row: Asked) -> str:
    """The first word of an answer, if it is yes or no."""
    first = re.match(r"\W*(yes|no)\b", row.said.lower())
    return first[1] if first else ""


def balanced(rows: Sequence[Asked]) -> dict[str, Any]:
    """Balanced accuracy and F1 of presence, with bootstrap intervals over pictures."""
    import numpy as np

    pictures = sorted({row.picture for row in rows})
    counts = np.zeros(
        (len(pictures), 4)
    )  # yes of present, present, yes of absent or unsure, absent
    place = {picture: number for number, picture in enumerate(pictures)}
    wrong_no = np.zeros(len(pictures))
    for row in rows:
        at = counts[place[row.picture]]
        if row.expected == "yes":
            at[0] += reply(row) == "yes"
            at[1] += 1
        else:
            at[2] += reply(row) == "no"
            at[3] += 1
            wrong_no[place[row.picture]] += reply(row) == "yes"

    def measure(chosen: Any) -> tuple[float, float]:
        hit, present, right_no, absent = counts[chosen].sum(axis=0)
        false_yes = wrong_no[chosen].sum()
        return (
            float(hit / present + right_no / absent) / 2,
            float(2 * hit / (present + hit + false_yes)),
        )

    random = np.random.default_rng(0)
    drawn = np.array([measure(random.integers(0, len(pictures), len(pictures)))
                      for _ in range(2000)])  # fmt: skip
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    values = measure(np.arange(len(pictures)))
    return {
        f"presence: {name}": {"value": values[i], "low": low[i], "high": high[i],
                              "questions": len(rows)}
        for i, name in enumerate(("balanced accuracy", "F1"))
    }  # fmt: skip


def accepted(thing: dict[str, Any], words: Nouns) -> set[str]:
    """Names of the object: of its concept and of the concept's kinds."""
    return words.names_below(thing["synset"]) | {thing["name"]}


def is_named(said: str, thing: dict[str, Any], words: Nouns) -> bool:
    """Whether the first thing that the answer mentions is the object."""
    told = mentions(said)
    return bool(told) and any(end in accepted(thing, words) for end in endings(told[0]))


def is_there(name: str, objects: Sequence[dict[str, Any]], words: Nouns) -> bool:
    """Whether a mention is a name of an object that is shown, or of what it is a kind of."""
    for thing in objects:
        above = {
            each.lower()
            for key in words.above(thing["synset"])
            for each in words.synsets[key].names
        }
        if any(end in accepted(thing, words) | above for end in endings(name)):
            return True
    return False


def endings(phrase: str) -> list[str]:
    """ "a big black cat" → that, "black cat", "cat"."""
    parts = phrase.split()
    return [" ".join(parts[start:]) for start in range(len(parts))]


def mentions(said: str) -> list[str]:
    """The things that an answer mentions, without articles; words for any object are left out."""
    # A guess that calls itself one is still the top answer.
    lead = r"this is|it is|it may be|there is|i see|the (picture|image) shows|a (picture|image) of"
    text = re.sub(rf"^({lead})\b", "", said.lower().strip())
    found = []
    for phrase in re.split(r",|\band\b|\bwith\b|\.|\bon\b|\bin\b", text):
        phrase = re.sub(r"^\s*(an?|the|some|two|three|four|2 of|3 of|4 of)\s+", " ", phrase)
        phrase = re.sub(r"^\s*(an?|the|some)\s+", " ", phrase).strip()
        if phrase and phrase not in _HEDGES and "can't tell" not in phrase:
            found.append(phrase)
    return found


# Photographs ------------------------------------------------------------------------------------


def photographs(
    found: GeneratorCheckpoint, words: Nouns, cache: Path, precision: str
) -> dict[str, Any]:
    """What the model says of scikit-image's photographs."""
    folder = catalog.pull("scikit-image-photos", cache_dir=cache)
    report = {}
    questions = [NAME[0], NAME[1], CAPTION[0], LIST[0], "Is there a cat in the picture?",
                 UNANSWERABLE["held out"][1]]  # fmt: skip
    for name, (concept, roots) in PHOTOGRAPHS.items():
        image = open_image(folder / name)
        said = answers(found, [image] * len(questions), questions, precision=precision)
        right = {each for root in roots for key in words.meanings.get(root, ())
                 for each in words.names_below(key)} | roots  # fmt: skip
        hit = any(end in right for mention in mentions(said[0]) for end in endings(mention))
        report[name] = {
            "wanted": concept,
            "named": hit,
            "answers": dict(zip(questions, said, strict=True)),
        }
        print(f"{name}: {'named' if hit else 'not named'}; {report[name]['answers']}")
    return report


def show(part: str, table: dict[str, Any]) -> None:
    """Print a Markdown table."""
    print(f"\n| {part.replace('_', ' ')} | questions | |\n|---|---|---|")
    for name, row in table.items():
        bounds = f"({row['low']:.2f}–{row['high']:.2f})"
        print(f"| {name} | {row['questions']} | {row['value']:.3f} {bounds} |")
    print()


if __name__ == "__main__":
    main()
