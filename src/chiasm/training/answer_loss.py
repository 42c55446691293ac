"""Cross-entropy over answers, with logits for a few tokens at a time.

The logits of one token are a row as long as the vocabulary; for all tokens of a batch they would
be the largest tensor of the whole step. So they are computed for learned tokens alone, in chunks,
and once more in the backward pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # tokens; with a vocabulary of 128 thousand, 0.26 GB of logits


def answer_loss(
    hidden: Tensor,
    ids: Tensor,
    learned: Tensor,
    logits: Callable[[Tensor], Tensor],
    *,
    chunk: int = CHUNK,
) -> Tensor:
    """The sum of −log p(token | what stands before it) over learned tokens, a float32 scalar.

    hidden: [rows, tokens, width], after the last norm. ids: int64 [rows, tokens]. learned: bool
    [rows, tokens]; the first token of a row is never learned.
    logits: [n, width] → [n, vocabulary].
    """
    wanted = learned[:, 1:]
    before = hidden[:, :-1][wanted]  # [n, width]
    tokens = ids[:, 1:][wanted]  # [n]

    def part(rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(rows).float(), targets, reduction="sum")

    if len(before) <= chunk:
        return part(before, tokens)
    total = before.new_zeros((), dtype=torch.float32)
    for rows, targets in zip(before.split(chunk), tokens.split(chunk), strict=True):
        if torch.is_grad_enabled():
            # No random number is drawn in there.
            loss: Tensor = checkpoint(
                part, rows, targets, use_reentrant=False, preserve_rng_state=False
            )
        else:
            loss = part(rows, targets)
        total = total + loss
    return total
