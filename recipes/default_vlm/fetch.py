"""Fetch WordNet into the work folder, from Debian's archive.

    python recipes/default_vlm/fetch.py

needs `apt-get` and `dpkg`, not root. The cut-outs are the default embedder's: its fetch.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from split import HERE, load


def main() -> None:
    """Fetch what is missing."""
    settings, packages = load(), embedders_fetch()
    target = Path(settings["work"]) / "fetched"
    target.mkdir(parents=True, exist_ok=True)
    for package in settings["sources"]["debian"]:
        result = target / "usr/share/doc" / package
        packages.once(result, package, lambda name: packages.debian(name, target))


def embedders_fetch() -> Any:
    """The default embedder's module of this name."""
    path = HERE.parent / "default_embedder/fetch.py"
    spec = importlib.util.spec_from_file_location("embedders_fetch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
