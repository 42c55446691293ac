"""Networks without numbers."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from chiasm.models.skeleton import without_weights

PROGRAM = """
import sys
from torch import nn
from chiasm.models.efficientnet_lite import EfficientNetLite
from chiasm.models.skeleton import without_weights
with without_weights():
    EfficientNetLite().fold_batch_norms()
    nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Conv2d(3, 8, 3), nn.LayerNorm(8))
print(sorted({"sympy", "torch._dynamo"} & set(sys.modules)))
"""


def test_shapes_are_there_and_memory_is_not() -> None:
    with without_weights():
        network = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert [list(parameter.shape) for parameter in network.parameters()] == [
        [10, 4], [3, 4], [3], [3], [3],
    ]  # fmt: skip
    # Outside, everything is as it was.
    torch.manual_seed(0)
    assert nn.Embedding(10, 4).weight.std() > 0.1


def test_torchs_compiler_is_not_imported_for_it() -> None:
    # It takes two seconds, of the five in which a server should answer.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
