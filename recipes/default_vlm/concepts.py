"""What a cut-out shows: one concept of WordNet, at the level at which people name things."""

from __future__ import annotations

import re
from dataclasses import dataclass

from borrowed import Picture, head_noun, singular
from wordnet import PHYSICAL, Nouns

# Clip art whose titles name one thing that can be seen.
CLIP_ART = (
    "animals/bugs", "animals/amphibian", "animals/dinosaurs", "animals/mammals", "animals/birds",
    "animals/fish", "food", "plants", "transportation/vehicles", "tools", "buildings/furniture",
    "electronics", "recreation/music", "recreation/sports", "recreation/toys", "people/clothing",
    "containers", "office", "computer/hardware", "education", "science", "decorations",
)  # fmt: skip
# People are not named, faces are no objects, and a flag's name is its country's.
_NOT_NAMED = re.compile(
    r"\b(face|flag|person|man|woman|men|women|boy|girl|people|family|button|keycap|sign|symbol|mr"
    r"|mrs|letter|number|clock face|zodiac|skin|medium|mark|mood|couple|kiss|square|circle"
    r"|o’clock|thirty|heart|hand|hands|finger|backhand|moon face|sun with face)\b"
)
# Names that are too wide to be an answer, and words whose usual meaning cannot be seen, though
# another one can.
_TOO_WIDE = """
    object thing item piece body part animal plant food fruit vegetable vehicle tool artifact
    product structure building creature set pair group set collection device equipment material
    line way shape head center side place area top bottom end point world space land down block
    spot character game image park map table-tennis art design card sport male female young
    adult baby house one two three four five six seven eight nine ten zero simple left right up
    down red green black white gray brown kit rest quarter module string intersection volume
    entry icon hub corner presentation pop mate stop route track record core video mobile stack
    pile hole tape queen drone marker light print root cone thread tab pick star vertical staff
    mute flat bust construction crossing wedge beverage drink office loop upright pilot pocket
    pole station seat pump america africa australia earth confetti fuji net bank bin berry
    stock draft test map screen key note page file film pack sheet
"""


@dataclass(frozen=True)
class Concept:
    """key: the synset. name: what it is called. accepted: every name that counts as right."""

    key: str
    name: str
    kind: str
    accepted: frozenset[str]


def concept_of(picture: Picture, nouns: Nouns) -> Concept | None:
    """What the picture shows; None where it shows no one thing that has a name.

    The head noun is the name ("race car" is a car), unless the whole phrase means something else
    ("teddy bear" is no bear). Names of kinds count as right, as in CHAIR's lists (Rohrbach et al.
    2018, arXiv:1809.02156): a beagle is a dog. Names of what it is a kind of do not.
    """
    if picture.glyph or _NOT_NAMED.search(picture.caption.lower()):
        return None
    if picture.source == "openclipart":
        place = "/".join(picture.path.parts[picture.path.parts.index("png") + 1 :])
        if not place.startswith(CLIP_ART):
            return None
    phrase = re.sub(r"^(an?|the|some|our)\s+", "", picture.caption.lower().strip(" .!?"))
    words = re.findall(r"[\w-]+", phrase)
    if not words or len(words) > 6:
        return None
    head = head_noun(picture.caption)
    key = nouns.physical(head)
    # The longest end of the phrase that has a meaning of its own.
    for start in range(max(0, len(words) - 3), len(words) - 1):
        whole = " ".join([*words[start:-1], singular(words[-1])])
        own = nouns.physical(whole)
        if own and (key is None or key not in nouns.above(own)):
            key, head = own, whole
            break
    if key is None or head in _TOO_WIDE.split() or len(head) < 3:
        return None
    accepted = nouns.names_below(key) | {head}
    return Concept(key, head, PHYSICAL[nouns.synsets[key].kind], frozenset(accepted))
