"""A process that joins a world of one, trains a little, leaves it, and names its threads.

python left_world.py ddp|fsdp [raise]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from chiasm.errors import TrainingDiverged
from chiasm.training.distributed import World, joined, spread


def train(world: World, sharding: str, *, fail: bool) -> None:
    network = spread(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), world, sharding, (nn.Linear,))
    network.cycle = [network]  # it must be found by the collector
    network(torch.ones(2, 4)).sum().backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    torch.optim.AdamW(network.parameters()).step()
    world.gather("a figure")
    sys.stdout.write(f"inside: {names()}\n")
    if fail:
        raise TrainingDiverged("The loss is no number.")


def main() -> None:
    caught = None
    try:
        with joined("cpu") as world:
            train(world, sys.argv[1], fail=len(sys.argv) > 2)
    except TrainingDiverged as error:
        caught = error  # as the command line holds it while it prints it
    sys.stdout.write(f"after: {names()}\n")
    sys.stdout.write(f"error: {caught and str(caught)!r}\n")


def names() -> list[str]:
    return sorted(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    main()
