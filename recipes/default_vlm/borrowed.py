"""What this recipe takes from the default embedder's, whose folder is no package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "default_embedder"))

import phrases  # noqa: E402
import recipe as embedder  # noqa: E402
from pictures import Picture, head_noun, singular  # noqa: E402
from train import Cache, load_cache, regress  # noqa: E402

__all__ = [
    "Cache",
    "Picture",
    "embedder",
    "head_noun",
    "load_cache",
    "phrases",
    "regress",
    "singular",
]
