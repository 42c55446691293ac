"""How the tensors of a published checkpoint are called, and how they become a network's.

A layout is data. `rows` maps a module or parameter of the network to its name in the file; `{}`
stands for an index. Where the network keeps one matrix for several of the file's (queries, keys
and values), the row lists them in order. Loading and saving read the same table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint

Names = str | tuple[str, ...]

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LISTED = 8  # tensors named in a message before it says how many more


@dataclass(frozen=True)
class Layout:
    """The mapping table of one checkpoint layout.

    rows: ours → the file's, without `.weight` and `.bias` where a whole module is meant.
    leading: the file's tensors that carry dimensions of size one in front, and how many.
    renames: (pattern, replacement) for other spellings of the published names: prefixes of
        task models, names from before a renaming. Applied in order.
    ignored: patterns of tensors that are known and not wanted, such as a classifier.
    """

    rows: Mapping[str, Names]
    leading: Mapping[str, int] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def published(self, name: str) -> str:
        """A tensor's published name, whichever spelling of it a file uses."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def doubled(self, names: Iterable[str]) -> list[str]:
        """Published names that two tensors of a file would both take."""
        counts = Counter(map(self.published, names))
        return sorted(name for name, count in counts.items() if count > 1)

    def sources(self, ours: str) -> tuple[str, ...]:
        """The file's tensors that make up the network's tensor `ours`."""
        module, _, leaf = ours.rpartition(".")
        for candidate, suffix in ((ours, ""), (module, f".{leaf}")):
            names = self.rows.get(_INDEX.sub("{}", candidate))
            if names is not None:
                indices = _INDEX.findall(candidate)
                each = (names,) if isinstance(names, str) else names
                return tuple(name.format(*indices) + suffix for name in each)
        raise KeyError(ours)

    def read(
        self, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], where: str
    ) -> dict[str, Tensor]:
        """The network's tensors from the file's, in float32.

        tensors: by published name. shapes: the network's, by our name. where: the file or folder
        to name in a message.
        Raises UnsupportedCheckpoint that lists what is missing, unexpected, or of another shape.
        """
        missing: list[str] = []
        wrong: list[str] = []
        used: set[str] = set()
        state: dict[str, Tensor] = {}
        for ours, shape in shapes.items():
            names = self.sources(ours)
            used.update(names)
            absent = [name for name in names if name not in tensors]
            if absent:
                missing += absent
                continue
            parts = [self._squeezed(name, tensors[name]) for name in names]
            rows = shape[0] // len(names) if len(names) > 1 else None
            expected = shape if rows is None else torch.Size((rows, *shape[1:]))
            misfits = [
                f"{name} is {list(part.shape)} and should be {list(expected)}"
                for name, part in zip(names, parts, strict=True)
                if part.shape != expected
            ]
            if misfits:
                wrong += misfits
                continue
            parts = [part.to(torch.float32) for part in parts]
            state[ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
        unexpected = [name for name in tensors if name not in used and not self._passed_over(name)]
        problems = [
            text
            for text in (
                _listed("missing", missing),
                _listed("not expected", unexpected),
                _listed("of another shape", wrong),
            )
            if text
        ]
        if problems:
            raise UnsupportedCheckpoint(
                f"{where}: the tensors do not fit the configuration; {'; '.join(problems)}.",
                hint="Check that config.json and the weights belong to the same model.",
            )
        return state

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors, under their published names, from the network's."""
        tensors: dict[str, Tensor] = {}
        for ours, tensor in state.items():
            names = self.sources(ours)
            parts = (tensor,) if len(names) == 1 else tensor.chunk(len(names))
            for name, part in zip(names, parts, strict=True):
                shaped = part.reshape((1,) * self.leading.get(name, 0) + tuple(part.shape))
                tensors[name] = shaped.detach().cpu().contiguous().clone()
        return tensors

    def _squeezed(self, name: str, tensor: Tensor) -> Tensor:
        leading = self.leading.get(name, 0)
        if leading and tensor.shape[:leading] == (1,) * leading:
            return tensor.reshape(tensor.shape[leading:])
        return tensor

    def _passed_over(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignored)


def under(ours: str, theirs: str, rows: Mapping[str, Names]) -> dict[str, Names]:
    """`rows` moved below a module of the network and its name in the file."""
    return {
        f"{ours}.{name}": (
            f"{theirs}.{names}"
            if isinstance(names, str)
            else tuple(f"{theirs}.{each}" for each in names)
        )
        for name, names in rows.items()
    }


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {what}: {shown}{more}"
