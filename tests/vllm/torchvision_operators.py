"""torchvision beside a CPU build of torch: the operators that it looks for are declared.

torchvision on the package index has no CPU build; its compiled part does not load there, and then
it fails on import for want of two operators, which nothing calls here. vLLM starts processes of its
own, so this lies in the environment itself: `make test-vllm` puts it there, with a `.pth` file that
imports it in every process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_OPERATORS = ("nms", "qnms")
_kept = []  # a library's operators go when it does


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing, but hears when torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and not _kept:
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in _OPERATORS:
                library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _kept.append(library)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
