"""Time image and text embedding against open_clip: one architecture, the same weights, fp32.

The peer needs an environment of its own; see benchmarks/requirements.txt. Then

    python benchmarks/embedding.py

prints a Markdown table. Both models get the same random weights, and their outputs are compared
before anything is timed. Runs of the two alternate, so that a disturbance of the machine meets
both; times are medians, the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chiasm.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from chiasm.training.open_clip_layout import clip_tensors

SUBJECTS = ["a cat", "two brown dogs", "an orange motorcycle", "a plate of pasta", "an old man"]
PLACES = ["", "on a sofa", "in the park at sunset", "beside a lake with mountains behind it"]
FRAMES = ["{}", "a photo of {}", "a close-up photo of {} in black and white"]
CAPTIONS = [
    frame.format(f"{subject} {place}".strip())
    for frame in FRAMES
    for place in PLACES
    for subject in SUBJECTS
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    open_clip = import_open_clip()
    peak = measured_peak()
    print("| what | chiasm ms | open_clip ms | open_clip / chiasm | FLOP floor ms |")
    print("|---|---:|---:|---:|---:|")
    for act, name in (("gelu", "ViT-B-32"), ("quick_gelu", "ViT-B-32-quickgelu")):
        ours, theirs = pair(open_clip, act, name)
        with torch.inference_mode():
            images(ours, theirs, act, arguments.batch, arguments.rounds, peak)
            texts(ours, theirs, open_clip, act, arguments.batch, arguments.rounds, peak)
    print()
    print(
        f"fp32, {arguments.threads} threads, {arguments.rounds} rounds, medians. {machine()}; "
        f"measured peak of a 2048³ product {peak / 1e9:.0f} GFLOP/s. "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, open_clip {open_clip.__version__}, "
        f"chiasm {importlib.metadata.version('chiasm')}."
    )


# The two tables' rows ---------------------------------------------------------------------------


def images(ours: CLIP, theirs: Any, act: str, batch: int, rounds: int, peak: float) -> None:
    for size in dict.fromkeys((1, batch)):
        pixels = torch.randn(size, 3, 224, 224)
        check(ours.encode_image(pixels), theirs.encode_image(pixels))
        vision = ours.config.vision_config
        rows, columns = vision.grid
        tokens = rows * columns + 1
        flops = size * (
            transformer_flops(vision, tokens)
            + 2 * rows * columns * vision.hidden_size * 3 * vision.patch_size**2
        )
        compare(
            f"ViT-B/32 image, {act}, batch {size}",
            lambda pixels=pixels: ours.encode_image(pixels),
            lambda pixels=pixels: theirs.encode_image(pixels),
            rounds,
            flops / peak,
        )


def texts(
    ours: CLIP, theirs: Any, open_clip: Any, act: str, batch: int, rounds: int, peak: float
) -> None:
    """`len(CAPTIONS)` captions in batches: sorted by length and trimmed here, 77 tokens there."""
    ids = open_clip.tokenize(CAPTIONS)  # [captions, 77], zeros behind the end of text
    lengths = ids.argmax(dim=1) + 1
    order = lengths.argsort(descending=True, stable=True)
    batches = [(ids[part][:, : int(lengths[part].max())], part) for part in order.split(batch)]

    def here() -> Tensor:
        features = torch.empty(len(ids), ours.dimension)
        for trimmed, part in batches:
            features[part] = ours.encode_text(trimmed, trimmed > 0)
        return features

    def there() -> Tensor:
        return torch.cat([theirs.encode_text(part) for part in ids.split(batch)])

    check(here(), there())
    needed = sum(int(length) for length in lengths)
    compare(
        f"text, {act}, {len(ids)} captions of {needed / len(ids):.0f} tokens, batch {batch}",
        here,
        there,
        rounds,
        sum(transformer_flops(ours.config.text_config, int(n)) for n in lengths) / peak,
    )
    one, end = ids[:1], int(lengths[0])
    compare(
        f"text, {act}, one caption of {end} tokens",
        lambda: ours.encode_text(one[:, :end]),
        lambda: theirs.encode_text(one),
        rounds,
        transformer_flops(ours.config.text_config, end) / peak,
    )


def compare(
    what: str, here: Callable[[], Tensor], there: Callable[[], Tensor], rounds: int, floor: float
) -> None:
    """Print one row. floor: seconds the arithmetic alone would take at the measured peak."""
    for _ in range(2):
        here(), there()
    mine: list[float] = []
    peer: list[float] = []
    for number in range(rounds):
        pair_ = [(here, mine), (there, peer)]
        for run, seconds in pair_ if number % 2 else reversed(pair_):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(mine, peer, strict=True))
    print(
        f"| {what} | {1e3 * statistics.median(mine):.1f} | {1e3 * statistics.median(peer):.1f} "
        f"| **{ratio:.2f}×** | {1e3 * floor:.1f} |",
        flush=True,
    )


# Two models, one set of weights -----------------------------------------------------------------


def pair(open_clip: Any, act: str, name: str) -> tuple[CLIP, Any]:
    """Our CLIP and open_clip's with the same random weights."""
    torch.manual_seed(0)
    ours = CLIP(
        CLIPConfig(
            vision_config=CLIPVisionConfig(hidden_act=act),
            text_config=CLIPTextConfig(hidden_act=act),
        )
    ).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:  # biases of zero would hide a wrong mapping
                parameter.add_(0.02 * torch.randn_like(parameter))
    theirs = open_clip.create_model(name).eval()
    theirs.load_state_dict(clip_tensors(ours))
    return ours, theirs


def check(actual: Tensor, expected: Tensor) -> None:
    difference = float((actual - expected).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"The two models disagree by {difference:.1e}; nothing was timed.")


def import_open_clip() -> Any:
    """open_clip, with a torchvision whose compiled operators need not load.

    open_clip imports torchvision for its transforms. Where only a CUDA build of torchvision can be
    had for a CPU build of torch, its operators are missing and it fails on import; declaring the
    two it looks for lets it go on, and nothing here calls them.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    import open_clip

    return open_clip


# The floor --------------------------------------------------------------------------------------


def transformer_flops(config: Any, tokens: int) -> int:
    """Multiplications and additions of all blocks for one sequence."""
    width, mlp = config.hidden_size, config.intermediate_size
    linear = 2 * tokens * (4 * width * width + 2 * width * mlp)
    attention = 2 * 2 * tokens * tokens * width
    return int(config.num_hidden_layers * (linear + attention))


def measured_peak() -> float:
    """FLOP/s of a large fp32 matrix product, the best of several."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def machine() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.readlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
