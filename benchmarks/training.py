"""Time one contrastive training step against open_clip's: same weights, same pairs, same loss.

    python benchmarks/training.py                                       # two cores, fp32
    python benchmarks/training.py --device cuda --precision bf16 --model ViT-B-16 --batch 256

in the environment that benchmarks/requirements.txt describes. A step is: both towers forward, the
softmax loss, backward, gradient norm cut to 1, AdamW. open_clip's is made as its own training
does it: texts padded to 77 tokens, its `ClipLoss`, torch's AdamW. The losses are compared before
anything is timed, rounds of the two alternate, and the ratio is the median of the rounds' ratios.
The floor is the arithmetic of the towers (a backward pass counts twice; texts at their own length)
at the rate of a large matrix product, measured on the same device in the same precision. On a GPU,
`--peak` takes the vendor's figure in TFLOP/s, to which MFU, model FLOPs utilisation, then relates.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from embedding import CAPTIONS, import_open_clip, machine, measured_peak, transformer_flops
from torch import Tensor, nn

from chiasm.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from chiasm.training.distributed import World
from chiasm.training.open_clip_layout import clip_tensors
from chiasm.training.optimizer import make_optimizer
from chiasm.training.recipe import LossRecipe, OptimizerRecipe
from chiasm.training.samples import Batch
from chiasm.training.two_towers import ContrastiveTrainee, TwoTowers

PATCHES = {"ViT-B-32": 32, "ViT-B-16": 16}
RECIPE = OptimizerRecipe(rate=1e-6, weight_decay=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PATCHES, default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--peak", type=float, help="TFLOP/s that the vendor states, for MFU")
    options = parser.parse_args()
    open_clip = import_open_clip()
    torch.manual_seed(0)
    device = torch.device(options.device)
    vision = CLIPVisionConfig(patch_size=PATCHES[options.model], hidden_act="gelu")
    config = CLIPConfig(text_config=CLIPTextConfig(hidden_act="gelu"), vision_config=vision)
    ours = CLIP(config)
    theirs = open_clip.create_model(options.model).train()
    theirs.load_state_dict(clip_tensors(ours))
    texts = (CAPTIONS * (options.batch // len(CAPTIONS) + 1))[: options.batch]
    ids = open_clip.tokenize(texts)  # [batch, 77], zeros behind the end of text
    longest = int(ids.argmax(dim=1).max()) + 1
    pixels = torch.randn(options.batch, 3, 224, 224)
    groups = torch.arange(options.batch)
    trimmed = ids[:, :longest]
    batch = Batch(pixels, trimmed, trimmed > 0, groups, groups, ())

    towers = TwoTowers(ours, LossRecipe(), precision=options.precision).to(device).train()
    trainee = ContrastiveTrainee(towers, LossRecipe(), World(device=device))
    mine = make_optimizer(towers, RECIPE)
    theirs = theirs.to(device)
    peer = torch.optim.AdamW(
        [
            # Matrices alone are pulled to zero, as open_clip's own training does it.
            {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.2},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RECIPE.rate,
        betas=RECIPE.betas,
        eps=RECIPE.epsilon,
    )
    cast: Any = torch.autocast(device.type, torch.bfloat16) if options.precision == "bf16" else None

    def here() -> float:
        mine.zero_grad(set_to_none=True)
        loss = trainee.backward(batch, share=1.0, exchange=True)["loss"]
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        mine.step()
        trainee.updated()
        return loss

    clip_loss = open_clip.ClipLoss()

    def there() -> float:
        peer.zero_grad(set_to_none=True)
        with cast or nullcontext():
            images, words, scale = theirs(pixels.to(device), ids.to(device))[:3]
        loss: Tensor = clip_loss(images.float(), words.float(), scale.float())
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        peer.step()
        return float(loss.detach())

    allowed = 1e-4 if options.precision == "fp32" else 2e-2
    losses = {"chiasm": here(), "open_clip": there()}
    compare("first", losses, allowed)
    seconds: dict[str, list[float]] = {"chiasm": [], "open_clip": []}
    for number in range(options.rounds):
        pair = [("chiasm", here), ("open_clip", there)]
        for name, step in pair if number % 2 else reversed(pair):
            settle(device)
            start = time.perf_counter()
            losses[name] = step()
            settle(device)
            seconds[name].append(time.perf_counter() - start)
    compare("last", losses, allowed)
    lengths = (ids.argmax(dim=1) + 1).tolist()
    rows, columns = vision.grid
    flops = 3 * (
        options.batch * transformer_flops(vision, rows * columns + 1)
        + options.batch * 2 * rows * columns * vision.hidden_size * 3 * vision.patch_size**2
        + sum(transformer_flops(config.text_config, length) for length in lengths)
    )
    ratio = statistics.median(
        b / a for a, b in zip(seconds["chiasm"], seconds["open_clip"], strict=True)
    )
    print("| step | seconds | pairs/s | ratio |")
    print("|---|---:|---:|---:|")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"| {name} | {median:.2f} | {options.batch / median:.2f} | "
            f"{ratio if name == 'chiasm' else 1:.2f}× |"
        )
    median = statistics.median(seconds["chiasm"])
    rate = measured_rate(device, options.precision)
    print(f"| floor | {flops / rate:.3f} | {options.batch * rate / flops:.2f} | |")
    print(
        f"\n{flops / median / 1e12:.3f} TFLOP/s of needed arithmetic, {flops / median / rate:.2f} "
        f"of the {rate / 1e12:.3f} TFLOP/s of a large product"
    )
    if options.peak:
        print(f"MFU {flops / median / (options.peak * 1e12):.3f} of {options.peak:g} TFLOP/s")
    print(
        f"{options.model}, batch {options.batch}, {options.precision}, captions of "
        f"{sum(lengths) / len(lengths):.0f} tokens (longest {longest}); {place(device)}; "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, torch {torch.__version__}, "
        f"open_clip {open_clip.__version__}"
    )


def compare(which: str, losses: dict[str, float], allowed: float) -> None:
    """Print both losses of a step, and stop if they are not the same."""
    ours, theirs = losses["chiasm"], losses["open_clip"]
    print(f"loss of the {which} step: chiasm {ours:.5f}, open_clip {theirs:.5f}\n")
    if not abs(ours - theirs) <= allowed * theirs:
        raise SystemExit("The losses differ: these were not the same steps.")


def settle(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    if device.type == "cpu":
        return measured_peak()
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        settle(device)
        start = time.perf_counter()
        a @ b
        settle(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def place(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


if __name__ == "__main__":
    main()
