"""What this recipe takes from the default embedder's, whose folder is no package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "default_embedder"))

import phrases
import recipe as embedder
from pictures import Picture, head_noun, singular
from train import Cache, load_cache, regress
from views import blend, clouds

__all__ = [
    "Cache",
    "Picture",
    "blend",
    "clouds",
    "embedder",
    "head_noun",
    "load_cache",
    "phrases",
    "regress",
    "singular",
]
