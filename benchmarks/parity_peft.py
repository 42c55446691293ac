"""Compare adapters with PEFT's own, both ways, as a Markdown table; and write down PEFT's names.

    python -m venv /tmp/peft && /tmp/peft/bin/pip install -e '.[dev]' peft
    /tmp/peft/bin/python benchmarks/parity_peft.py

Each model has random weights. `read` is how far logits are apart when PEFT wrote the adapters,
`written` when they were written here, `merged` when they were merged here and transformers runs
the result. tests/models/peft_names.json holds the names and shapes that PEFT wrote, which
tests/models/test_lora.py expects.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

import parity
import peft
import torch
import transformers

from chiasm.models import lora
from chiasm.models.checkpoint import load_model, save_checkpoint

NAMES = Path(__file__).parents[1] / "tests" / "models" / "peft_names.json"
CASES = {
    "Llama, untied, θ 100000": (None, None),
    "Qwen2, tied head": (None, None),
    "LLaVA, CLIP and Llama": ("model.language_model", "multi_modal_projector"),
    "LLaVA, SigLIP and Qwen2, tied": ("model.language_model", "multi_modal_projector"),
    "LLaVA-NeXT, CLIP and Llama": ("model.language_model", "multi_modal_projector"),
    "Idefics3": ("model.text_model", "modality_projection.proj"),
    "SmolVLM": ("model.text_model", "modality_projection.proj"),
}
LEAVES = ("q_proj", "v_proj", "down_proj")
OURS = {
    None: [],
    "multi_modal_projector": ["projector.linear_1", "projector.linear_2"],
    "modality_projection.proj": ["projector.linear"],
}


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    names: dict[str, Any] = {}
    print("| model | max \\|Δ\\|, read here | written here | merged here |")
    print("|---|---:|---:|---:|")
    for name, (inside, projector) in CASES.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            row, names[name] = compare(name, inside, projector, Path(folder))
        print(f"| {name} | {row[0]:.1e} | {row[1]:.1e} | {row[2]:.1e} |")
    NAMES.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    print(
        f"\nPEFT {peft.__version__}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, fp32."
    )


@torch.no_grad()
def compare(
    name: str, inside: str | None, projector: str | None, folder: Path
) -> tuple[tuple[float, float, float], dict[str, Any]]:
    case = parity.cases()[name]()
    kind = type(case.reference)
    case.reference.save_pretrained(folder / "base")
    outputs = [pair for output, pair in case.outputs.items() if output.startswith("logits")] or [
        next(iter(case.outputs.values()))
    ]

    # PEFT writes, we read.
    base = kind.from_pretrained(folder / "base").eval()
    targets: Any = list(LEAVES)
    if inside:
        targets = rf"{inside.replace('.', '[.]')}[.].*[.]({'|'.join(LEAVES)})"
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        modules_to_save=[projector] if projector else None,
    )
    theirs = peft.get_peft_model(base, config).eval()
    shake(theirs)
    theirs.save_pretrained(folder / "theirs")
    here = load_model(folder / "base")
    lora.load_peft(folder / "theirs", here)
    read = apart(outputs, here, theirs)

    # We write, PEFT reads; then the same, merged.
    own = load_model(folder / "base")
    lora.add_lora(own, rank=3, alpha=5.0, targets=LEAVES)
    shake(own)
    lora.save_peft(folder / "ours", own, base=str(folder / "base"), saved=OURS[projector])
    fresh = kind.from_pretrained(folder / "base").eval()
    opened = peft.PeftModel.from_pretrained(fresh, folder / "ours").eval()
    written = apart(outputs, own, opened)
    expected = [mine(own) for mine, _ in outputs]
    save_checkpoint(folder / "merged", lora.merge_lora(own))
    whole = kind.from_pretrained(folder / "merged").eval()
    merged = max(
        float((theirs_(whole) - wanted).abs().max())
        for (_, theirs_), wanted in zip(outputs, expected, strict=True)
    )
    return (read, written, merged), dict(shapes(folder / "theirs"))


def shake(model: Any) -> None:
    """Adapters and projectors that do something."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name.lower() or "modules_to_save" in name or name.startswith("projector"):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def apart(outputs: list[Any], ours: Any, theirs: Any) -> float:
    return max(float((mine(ours) - other(theirs)).abs().max()) for mine, other in outputs)


def shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for key in sorted(file.keys()):
            yield key, list(file.get_slice(key).get_shape())


if __name__ == "__main__":
    main()
