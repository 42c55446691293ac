"""What each dependency weighs: `python docs/_pages/weigh.py` prints the table.

Own: the files that the package itself installed, in MB (10⁶ bytes). With all: together with
everything that it requires in turn, whoever else requires that too. Import: seconds until the
module is there in a fresh interpreter, its requirements included, median of five.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
MODULES = {"pillow": "PIL.Image", "python-multipart": "python_multipart"}


def declared() -> dict[str, list[Requirement]]:
    """Group ("base", "dev", "docs") → requirements, without chiasm's own extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    groups = {"base": project["dependencies"], **project["optional-dependencies"]}
    return {
        name: [one for one in map(Requirement, lines) if one.name != project["name"]]
        for name, lines in groups.items()
    }


def megabytes(name: str) -> float:
    """What a distribution's files take on the disk."""
    files = [Path(str(file.locate())) for file in metadata.files(name) or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def closure(requirement: Requirement, found: set[str]) -> set[str]:
    """The distribution and all that it requires, added to `found`."""
    name = canonicalize_name(requirement.name)
    if name in found:
        return found
    found.add(name)
    for line in metadata.requires(name) or ():
        inner = Requirement(line)
        extras = requirement.extras or {""}
        if inner.marker is None or any(inner.marker.evaluate({"extra": one}) for one in extras):
            closure(inner, found)
    return found


def import_seconds(name: str) -> float:
    """Median of five fresh interpreters, less the interpreter's own start."""
    module = MODULES.get(name, re.sub(r"[-.]", "_", name))

    def seconds(statement: str) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    return seconds(f"import {module}") - seconds("pass")


def main() -> None:
    rows = ["| dependency | version | own MB | with all MB | import s |\n|---|---|---|---|---|"]
    for group, requirements in declared().items():
        total: set[str] = set()
        for one in requirements:
            below = closure(one, set())
            total |= below
            cells = (
                one.name,
                metadata.version(one.name),
                f"{megabytes(one.name):.1f}",
                f"{sum(map(megabytes, below)):.1f}",
                f"{import_seconds(one.name):.2f}" if group == "base" else "",
            )
            rows.append(f"| {' | '.join(cells)} |")
        size = sum(map(megabytes, total))
        rows.append(f"| {group}, all {len(total)} packages | | | {size:.0f} | |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
