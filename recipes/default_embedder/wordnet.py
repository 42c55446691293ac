"""WordNet's nouns: what a word can mean, what is a kind of what, and how common it is.

Read from the database files of WordNet 3.0 (Fellbaum 1998; the format is that of `wndb(5WN)`). The
1000 classes of ImageNet are synsets of this very version, so a class, its names and everything
that it is a kind of are a matter of looking up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Files of lexicographers (lexnames(5WN)) whose nouns can be seen and cut out.
PHYSICAL = {5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 20: "plant"}


@dataclass(frozen=True)
class Synset:
    """One meaning. key: its offset in the file, as ImageNet writes it after the "n"."""

    key: str
    kind: int
    names: tuple[str, ...]
    parents: tuple[str, ...]


class Nouns:
    """The noun database in a folder with `data.noun`, `index.noun` and `cntlist.rev`."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        for line in _lines(folder / "data.noun"):
            fields = line.split(" ")
            words = int(fields[3], 16)
            names = tuple(name.replace("_", " ") for name in fields[4 : 4 + 2 * words : 2])
            pointers = fields[5 + 2 * words :]
            parents = tuple(
                pointers[i + 1] for i in range(len(pointers) - 3) if pointers[i] in ("@", "@i")
            )
            self.synsets[fields[0]] = Synset(fields[0], int(fields[1]), names, parents)
        self.meanings: dict[str, tuple[str, ...]] = {}  # a word → its synsets, the usual first
        for line in _lines(folder / "index.noun"):
            fields = line.split()
            count = int(fields[2])
            self.meanings[fields[0].replace("_", " ")] = tuple(fields[-count:])
        self._counts: dict[tuple[str, int], int] = {}  # (word, sense) → times in tagged text
        for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
            sense, number, times = line.split()
            word, _, rest = sense.partition("%")
            if rest.startswith("1:"):
                self._counts[word.replace("_", " "), int(number)] = int(times)

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """The kinds of every synset, one level down."""
        kinds: dict[str, list[str]] = {}
        for synset in self.synsets.values():
            for parent in synset.parents:
                kinds.setdefault(parent, []).append(synset.key)
        return kinds

    def physical(self, word: str) -> str | None:
        """The usual meaning of `word` as something that can be seen; None if it has none."""
        for key in self.meanings.get(word, ()):
            if self.synsets[key].kind in PHYSICAL:
                return key
        return None

    def times(self, word: str, key: str) -> int:
        """How often `word` means `key` in the text that WordNet's makers tagged."""
        meanings = self.meanings.get(word, ())
        return self._counts.get((word, meanings.index(key) + 1), 0) if key in meanings else 0

    def above(self, key: str) -> list[str]:
        """Everything that `key` is a kind of, nearest first, itself included."""
        found = [key]
        for each in found:  # grows while it is read
            found += [up for up in self.synsets[each].parents if up not in found]
        return found

    def line(self, key: str) -> list[str]:
        """What `key` is a kind of, nearest first, by the first parent of each."""
        found: list[str] = []
        while parents := self.synsets[key].parents:
            key = parents[0]
            found.append(key)
        return found

    def below(self, key: str) -> list[str]:
        """Every kind of `key`, itself included."""
        found = [key]
        seen = {key}
        for each in found:
            fresh = [down for down in self.children.get(each, ()) if down not in seen]
            seen.update(fresh)
            found += fresh
        return found

    def names_below(self, key: str) -> set[str]:
        """The names of every kind of `key`, in lower case."""
        return {name.lower() for each in self.below(key) for name in self.synsets[each].names}


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("  "):  # the licence
                yield line.rstrip()
