"""Open checkpoints written here with open_clip, and print how far its features are from ours.

The peer needs an environment of its own; see benchmarks/requirements.txt. Besides, it needs
`transformers`, with which open_clip reads tokenizers. Then

    python benchmarks/parity_open_clip.py
    python benchmarks/parity_open_clip.py runs/mine/model

The first form makes networks with random weights, of every kind that open_clip can express; the
second takes a folder that a training run has written. Pictures go through open_clip's own
transforms and texts through its own tokenizer, and both through ours.

    python benchmarks/parity_open_clip.py --names tests/training/open_clip_names.json

writes the tensors' names and shapes that tests/training/test_open_clip_layout.py compares with.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embedding
import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from chiasm.media import Image
from chiasm.models.architectures import ARCHITECTURES
from chiasm.models.checkpoint import load_dual_encoder, save_checkpoint
from chiasm.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.siglip import SigLIP, SigLIPConfig, SigLIPTextConfig, SigLIPVisionConfig
from chiasm.models.tokenizer import Tokenizer
from chiasm.models.tokenizer_training import train_clip_tokenizer
from chiasm.training.open_clip_layout import write_open_clip

TEXTS = [
    *embedding.CAPTIONS[:20],
    "A PHOTO of two Dogs, running!",
    "it's the café's naïve façade",
    "an  old   man\tbeside a lake",
    "1984 🐈 № 5",
    "word " * 60,
]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
ALLOWED = 1e-4


@dataclass(frozen=True)
class Case:
    """allowed: largest difference between features of unit length."""

    name: str
    model: Callable[[int], nn.Module]
    preprocessor: ImagePreprocessor
    allowed: float = ALLOWED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint of a training run")
    parser.add_argument("--names", type=Path, help="write names and shapes, and compare nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    open_clip = embedding.import_open_clip()
    if options.names:
        write_names(open_clip, options.names)
        return
    print("| checkpoint | max \\|Δ\\| image | image, their transform | text, their tokenizer |")
    print("|---|---:|---:|---:|")
    failed = False
    if options.folder:
        failed = report(open_clip, options.folder.name, options.folder, ALLOWED)
    else:
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                write(case, Path(folder))
                failed |= report(open_clip, case.name, Path(folder), case.allowed)
    print()
    print(
        f"Features of unit length, fp32, {len(TEXTS)} texts. Python {platform.python_version()}, "
        f"torch {torch.__version__}, open_clip {open_clip.__version__}."
    )
    if failed:
        raise SystemExit("open_clip disagrees by more than is allowed.")


@torch.inference_mode()
def report(open_clip: Any, name: str, folder: Path, allowed: float) -> bool:
    """Print a row; whether a difference is too large."""
    ours = load_dual_encoder(folder, cache_dir=folder)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pictures = random_pictures()
    pixels = ours.preprocessor(
        [Image(np.asarray(picture), original_size=picture.size) for picture in pictures]
    )
    batch = ours.tokenizer(TEXTS)
    images = ours.model.encode_image(pixels)
    differences = (
        difference(images, theirs.encode_image(pixels)),
        difference(images, theirs.encode_image(torch.stack([transform(p) for p in pictures]))),
        difference(
            ours.model.encode_text(batch.ids, batch.mask), theirs.encode_text(tokenizer(TEXTS))
        ),
    )
    print(f"| {name} | {' | '.join(f'{each:.1e}' for each in differences)} |", flush=True)
    return max(differences) > allowed


def difference(ours: Tensor, theirs: Tensor) -> float:
    unit = (nn.functional.normalize(each, dim=-1) for each in (ours, theirs))
    return float((next(unit) - next(unit)).abs().max())


def random_pictures() -> list[PIL.Image.Image]:
    """Smooth colour pictures of several shapes, larger and smaller than any network's input."""
    chance = np.random.default_rng(0)
    sizes = [(640, 480), (300, 500), (256, 256), (100, 100), (28, 28), (1000, 400)]
    return [
        PIL.Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
            size, PIL.Image.Resampling.BICUBIC
        )
        for size in sizes
    ]


# The checkpoints --------------------------------------------------------------------------------


def write(case: Case, folder: Path) -> None:
    torch.manual_seed(0)
    learned = train_clip_tokenizer(embedding.CAPTIONS, vocabulary=700, max_length=20)
    learned.save(folder)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    model = shaken(case.model(size))
    config: Any = model.config
    tokenizer = Tokenizer.from_folder(
        folder, max_length=20, rules=ARCHITECTURES[config.model_type].texts
    )
    save_checkpoint(folder, model, case.preprocessor, tokenizer)
    write_open_clip(folder, model, case.preprocessor, tokenizer)


def shaken(model: nn.Module) -> nn.Module:
    """Biases of zero and scales of one would hide a wrong mapping."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def clip(vision: dict[str, Any], text: dict[str, Any], **options: Any) -> Callable[[int], CLIP]:
    def make(vocabulary: int) -> CLIP:
        marks = {"bos_token_id": vocabulary - 2, "pad_token_id": vocabulary - 1}
        marks["eos_token_id"] = vocabulary - 1
        # One token more than the tokenizer has: the end of text is not the highest id then.
        spare = options.get("spare", 0)
        return CLIP(
            CLIPConfig(
                vision_config=CLIPVisionConfig(**vision),
                text_config=CLIPTextConfig(
                    **text,
                    **marks,
                    vocab_size=vocabulary + spare,
                    max_position_embeddings=options.get("positions", 20),
                ),
                projection_dim=options.get("dimension", 512),
            )
        )

    return make


def siglip(patch: int, size: int, act: str) -> Callable[[int], SigLIP]:
    def make(vocabulary: int) -> SigLIP:
        return SigLIP(
            SigLIPConfig(
                vision_config=SigLIPVisionConfig(patch_size=patch, image_size=size, hidden_act=act),
                text_config=SigLIPTextConfig(
                    num_hidden_layers=2, vocab_size=vocabulary, max_position_embeddings=20
                ),
            )
        )

    return make


def small(act: str, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "hidden_act": act,
        **changes,
    }


def square(side: int, mean: Any = CLIP_MEAN, std: Any = CLIP_STD) -> ImagePreprocessor:
    return ImagePreprocessor((side, side), side, "bicubic", 1 / 255, mean, std)


CASES = [
    Case("CLIP, ViT-B/32, quick_gelu", clip({}, {}, positions=77), square(224)),
    Case(
        "CLIP, 28 pixels, gelu",
        clip(small("gelu", patch_size=7, image_size=28), small("gelu"), dimension=32),
        square(28, HALF, HALF),
    ),
    Case(
        "CLIP, tanh gelu and gelu, epsilon 1e-6, end of text not the highest id, squashed",
        clip(
            small("gelu_pytorch_tanh", patch_size=4, image_size=28, layer_norm_eps=1e-6),
            small("gelu", hidden_size=64, num_attention_heads=4, layer_norm_eps=1e-6),
            dimension=32,
            spare=5,
        ),
        ImagePreprocessor((28, 28), None, "bilinear", 1 / 255, CLIP_MEAN, CLIP_STD),
    ),
    Case(
        "CLIP, 56 × 28 pixels, squashed",
        clip(small("quick_gelu", patch_size=7, image_size=(56, 28)), small("quick_gelu")),
        ImagePreprocessor((56, 28), None, "bicubic", 1 / 255, HALF, HALF),
    ),
    Case(
        "SigLIP, base, patches of 32, tanh gelu",
        siglip(32, 256, "gelu_pytorch_tanh"),
        ImagePreprocessor((256, 256), None, "bicubic", 1 / 255, HALF, HALF, "SiglipImageProcessor"),
    ),
    Case(
        "SigLIP, base, patches of 16, gelu",
        siglip(16, 224, "gelu"),
        ImagePreprocessor((224, 224), None, "bicubic", 1 / 255, HALF, HALF, "SiglipImageProcessor"),
    ),
    Case(
        "SigLIP, base, patches of 16, tanh gelu, which timm has not",
        siglip(16, 224, "gelu_pytorch_tanh"),
        ImagePreprocessor((224, 224), None, "bicubic", 1 / 255, HALF, HALF, "SiglipImageProcessor"),
        allowed=1e-3,
    ),
]


# Names and shapes -------------------------------------------------------------------------------


def write_names(open_clip: Any, path: Path) -> None:
    """What open_clip's own models call their tensors, without any help of ours."""
    shapes = {"source": f"state_dict() of open_clip {open_clip.__version__}, timm's towers inside"}
    tower = {"layers": 2, "width": 48, "mlp_ratio": 2.0}
    clip_model = open_clip.model.CLIP(
        embed_dim=32,
        vision_cfg={**tower, "head_width": 16, "patch_size": 7, "image_size": 28},
        text_cfg={**tower, "heads": 3, "context_length": 20, "vocab_size": 600},
    )
    siglip_config = open_clip.get_model_config("ViT-B-32-SigLIP2-256")
    siglip_config["text_cfg"] |= {"layers": 2, "vocab_size": 600, "context_length": 20}
    siglip_config.pop("custom_text")
    siglip_model = open_clip.model.CustomTextCLIP(**siglip_config)
    for name, model in (("clip", clip_model), ("siglip", siglip_model)):
        shapes[name] = {key: list(value.shape) for key, value in model.state_dict().items()}
    path.write_text(one_a_line(shapes), encoding="utf-8")


def one_a_line(shapes: dict[str, Any]) -> str:
    """JSON with a line for each tensor."""
    parts = [f' "source": {json.dumps(shapes["source"])}']
    for model in ("clip", "siglip"):
        rows = [f"  {json.dumps(name)}: {shape}" for name, shape in shapes[model].items()]
        parts.append(f' "{model}": {{\n' + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
