"""Where a network runs."""

from __future__ import annotations

import torch

from chiasm.errors import ConfigurationError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the best there is. ConfigurationError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigurationError(
            f"There is no device {name!r} on this machine.",
            hint="Use auto, cpu, cuda or mps.",
            param="device",
        ) from None
    return device
