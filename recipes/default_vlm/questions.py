"""Questions about a composed picture and their answers, each said in several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from concepts import Concept
from scene import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")
_WIDER = {
    "animal": "an animal", "food": "some food", "plant": "a plant", "artifact": "an object",
    "body": "a part of a body", "object": "something",
}  # fmt: skip
_SEVERAL = {
    "an animal": "animals", "a plant": "plants", "an object": "objects",
    "a part of a body": "parts of a body", "something": "things",
}  # fmt: skip
CAPTION = ("Describe the picture.", "What can you see?", "Write a caption.", "Describe this image.")
NAME = ("What is this?", "What is in the picture?", "What object is shown?", "Name the object.")
LIST = ("Which objects are in the picture?", "What objects can you see?", "List the objects.")
PRESENCE = (
    "Is there {a} in the picture?", "Is there {a} in the image?", "Can you see {a}?",
    "Does the picture show {a}?", "Do you see {a} here?",
)  # fmt: skip
COUNT = ("How many objects are there?", "How many things can you see?", "Count the objects.")
COLOUR = ("What colour is it?", "What colour is the object?", "Which colour is it mostly?")
SIDE = ("What is on the {side}?", "Which object is on the {side}?")
WHERE = ("Where is the {name}?", "On which side is the {name}?")
WRITTEN = ("What is written here?", "What does it say?", "Read the text.")
UNKNOWN = ("I can't tell from the picture.",)
# Nothing in a picture of cut-outs answers these. The second list is asked of held-out pictures
# alone.
UNANSWERABLE = {
    "train": (
        "Who drew this?", "What is its name?", "How old is it?", "How much did it cost?",
        "Where was this bought?", "Who does it belong to?", "What day is it?",
        "What happened before this?", "What will happen next?", "How heavy is it?",
        "Which country is this?", "What year was this made?", "What sound does it make now?",
        "Why is it here?", "What does it smell like?", "What is the owner's name?",
        "How long has it been there?", "Who is standing behind the camera?",
        "What is the weather like tomorrow?", "What is the phone number?", "Is it expensive?",
        "What is inside it?", "What is on the other side?", "Was it a gift?",
    ),
    "held out": (
        "What time is it?", "Who made this?", "What is the price?", "Where was the picture taken?",
        "How far away is it?", "What is the owner's favourite food?", "Which city is this?",
        "What was here yesterday?", "How warm is it?", "Who will come next?",
        "What is the temperature?", "When was it sold?",
    ),
}  # fmt: skip
WORDS = {
    "train": ("STOP", "OPEN", "SALE", "EXIT", "TAXI", "CAFE", "HELLO", "FREE", "HOT", "NEW",
              "BUS", "PARK", "ZOO", "YES", "GO", "HELP"),
    "held out": ("CLOSED", "SHOP", "HOTEL", "BANK", "NO", "MENU", "COLD", "SLOW"),
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A question and its answer. kind: of question. expected: what an evaluation looks for."""

    kind: str
    question: str
    answer: str
    expected: str = ""


Knows = Callable[[Thing], bool]
Guess = Callable[[Thing], str]


def article(name: str) -> str:
    """With the article that English wants."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def joined(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Asker:
    """Draws conversations.

    absent: concepts that a question may ask for in vain, each as often as it is shown anywhere.
    part: which lists of phrasings and words are used. knows: whether an object can be named from
    what the model is given; one that cannot is called by its kind in captions, and is not asked
    for by name, so that the model learns to say no more than it knows. guess: what else such an
    object is taken for; with it the question for its name is asked, and the answer says that it is
    a guess. strange: keys of concepts; with it, presence is asked of these alone, for whoever knows
    an object by name learns nothing from it about how far strange ones can be told.
    """

    def __init__(
        self,
        absent: Sequence[Concept],
        popularity: Sequence[float],
        part: str,
        knows: Knows,
        *,
        guess: Guess | None = None,
        strange: frozenset[str] = frozenset(),
    ) -> None:
        pairs = [(each, often) for each, often in zip(absent, popularity, strict=True)
                 if not strange or each.key in strange]  # fmt: skip
        self._absent = [each for each, _ in pairs]
        self._popularity = np.array([often for _, often in pairs], dtype=float)
        self._guess = guess
        self._strange = strange
        self._part = part
        self._knows = knows

    def turns(self, scene: Scene, random: np.random.Generator) -> list[Turn]:
        """A conversation in the order in which it is asked."""

        def one(options: Sequence[str]) -> str:
            return str(options[int(random.integers(len(options)))])

        if scene.written:
            return [Turn("read", one(WRITTEN), f"{scene.written}.", scene.written)]
        things = scene.things
        turns = [Turn("caption", one(CAPTION), self._caption(scene, random))]
        if len(things) == 1 and self._knows(things[0]):
            turns.append(Turn("name", one(NAME), f"{article(things[0].concept.name)}.".capitalize(),
                              things[0].concept.name))  # fmt: skip
        elif len(things) > 1 and all(map(self._knows, things)):
            names = list(dict.fromkeys(thing.concept.name for thing in things))
            turns.append(
                Turn("list", one(LIST), f"{joined(list(map(article, names)))}.".capitalize())
            )
        elif len(things) == 1 and self._guess:
            answer = f"It may be {article(self._guess(things[0]))}."
            turns.append(Turn("name", one(NAME), answer, things[0].concept.name))
        asked = [each.concept for each in things
                 if not self._strange or each.concept.key in self._strange]  # fmt: skip
        most = 2 if self._strange else 1
        for number in random.permutation(len(asked))[:most]:
            question = one(PRESENCE).format(a=article(asked[number].name))
            turns.append(Turn("presence", question, "Yes.", "yes"))
            how = one(("random", "popular", "co-occurring"))
            missing = self.missing(scene, how, random)
            question = one(PRESENCE).format(a=article(missing.name))
            turns.append(Turn(f"presence {how}", question, "No.", "no"))
        turns.append(self._extra(scene, random))
        # A picture's questions come in any order, so that each is sometimes the first.
        return [turns[number] for number in random.permutation(len(turns))]

    def missing(self, scene: Scene, how: str, random: np.random.Generator) -> Concept:
        """A concept that is not shown, drawn as POPE draws (Li et al. 2023, arXiv:2305.10355)."""
        shown = [thing.concept for thing in scene.things]
        weights = self._popularity.copy() if how == "popular" else np.ones(len(self._absent))
        others = weights.copy()
        for number, concept in enumerate(self._absent):
            related = any(
                concept.name in each.accepted or each.name in concept.accepted for each in shown
            )
            # What occurs together here is what is of one kind.
            alike = any(concept.kind == each.kind for each in shown)
            if related:
                others[number] = weights[number] = 0
            elif how == "co-occurring" and not alike:
                weights[number] = 0
        if not weights.any():  # none of this kind is left
            weights = others
        return self._absent[int(random.choice(len(weights), p=weights / weights.sum()))]

    def _caption(self, scene: Scene, random: np.random.Generator) -> str:
        called = [
            article(thing.concept.name) if self._knows(thing) else _WIDER[thing.concept.kind]
            for thing in scene.things
        ]
        names = [
            f"{NUMBERS[called.count(name)]} {_SEVERAL[name]}"
            if called.count(name) > 2 and name in _SEVERAL
            else name
            for name in dict.fromkeys(called)
        ]
        lead = str(random.choice(["A picture of ", "The picture shows ", ""]))
        text = f"{lead}{joined(names)}."
        return text[0].upper() + text[1:]

    def _extra(self, scene: Scene, random: np.random.Generator) -> Turn:
        """One of: counting, colour, side, place, or a question without an answer."""

        def one(options: Sequence[str]) -> str:
            return str(options[int(random.integers(len(options)))])

        things, draw = scene.things, random.random()
        if draw < 0.4:
            return Turn("unanswerable", one(UNANSWERABLE[self._part]), one(UNKNOWN), "unknown")
        if len(things) == 1 and things[0].colour and draw < 0.85:
            return Turn(
                "colour", one(COLOUR), f"{things[0].colour}.".capitalize(), things[0].colour
            )
        if len(things) == 2 and draw < 0.8:
            (x0, _), (x1, _) = (thing.centre for thing in things)
            if x1 - x0 > 0.25:
                side = int(random.integers(2))
                name = things[side].concept.name
                word = ("left", "right")[side]
                if self._knows(things[side]) and random.random() < 0.6:
                    question = one(SIDE).format(side=word)
                    return Turn("side", question, f"{article(name)}.".capitalize(), name)
                question = one(WHERE).format(name=name)
                return Turn("where", question, f"On the {word}.", word)
            top = min(things, key=lambda thing: thing.centre[1])
            if abs(things[0].centre[1] - things[1].centre[1]) > 0.25:
                side = int(random.integers(2))
                asked = top if side == 0 else next(thing for thing in things if thing is not top)
                word = ("top", "bottom")[side]
                return Turn("where", f"Is the {asked.concept.name} at the top or at the bottom?",
                            f"At the {word}.", word)  # fmt: skip
        number = NUMBERS[len(things)]
        return Turn("count", one(COUNT), f"{number}.".capitalize(), number)
