"""What is written for open_clip, against the names and shapes that open_clip's own models have.

`open_clip_names.json` holds them; benchmarks/parity_open_clip.py wrote it, and compares the
features themselves where open_clip is installed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.checkpoint import load_dual_encoder, save_checkpoint
from chiasm.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.siglip import SigLIP, SigLIPConfig, SigLIPTextConfig, SigLIPVisionConfig
from chiasm.models.tokenizer import TextRules, Tokenizer
from chiasm.models.tokenizer_training import train_clip_tokenizer
from chiasm.training.open_clip_layout import open_clip_obstacle, write_open_clip

NAMES = json.loads(Path(__file__).with_name("open_clip_names.json").read_text(encoding="utf-8"))
HALF = (0.5, 0.5, 0.5)
TOWER: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}


def clip(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **entries: Any
) -> CLIP:
    torch.manual_seed(0)
    vision = {**TOWER, "patch_size": 7, "image_size": 28, **(vision or {})}
    text = {
        **TOWER,
        "vocab_size": 600,
        "max_position_embeddings": 20,
        "eos_token_id": 599,
        **(text or {}),
    }
    entries = {"projection_dim": 32, **entries}
    return CLIP(
        CLIPConfig(
            vision_config=CLIPVisionConfig(**vision), text_config=CLIPTextConfig(**text), **entries
        )
    )


def preprocessor(side: int = 28, **changes: Any) -> ImagePreprocessor:
    usual = ImagePreprocessor((side, side), side, "bicubic", 1 / 255, HALF, HALF)
    return replace(usual, **changes)


def tokenizer(max_length: int = 20, rules: TextRules | None = None) -> Tokenizer:
    learned = train_clip_tokenizer(["a cat", "a dog"], max_length=max_length)
    learned.rules = rules or learned.rules
    return learned


def written(
    folder: Path,
    model: nn.Module,
    preprocess: ImagePreprocessor | None = None,
    texts: Tokenizer | None = None,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """model_cfg, preprocess_cfg and the tensors."""
    preprocess, texts = preprocess or preprocessor(), texts or tokenizer()
    save_checkpoint(folder, model, preprocess, texts)
    write_open_clip(folder, model, preprocess, texts, **options)
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "open_clip_model.safetensors")
    return config["model_cfg"], config["preprocess_cfg"], tensors


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


# CLIP -------------------------------------------------------------------------------------------


def test_clip_has_open_clips_names_and_shapes(tmp_path: Path) -> None:
    model_cfg, preprocess_cfg, tensors = written(tmp_path, clip())
    assert shapes(tensors) == NAMES["clip"]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    tower = {"width": 48, "layers": 2, "mlp_ratio": 2.0}
    vision = {**tower, "head_width": 16, "patch_size": 7, "image_size": 28}
    text = {**tower, "heads": 3, "context_length": 20, "vocab_size": 600}
    assert model_cfg["embed_dim"] == 32
    assert model_cfg["quick_gelu"] is True
    assert model_cfg["vision_cfg"] == vision
    assert model_cfg["text_cfg"].items() >= text.items()
    # A tokenizer is looked for in the folder only if it is named at all.
    assert model_cfg["text_cfg"]["hf_tokenizer_name"]
    assert preprocess_cfg == {
        "size": [28, 28],
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def test_clip_computed_from_open_clips_tensors(tmp_path: Path) -> None:
    """The towers written out with nothing but the file's tensors, as open_clip defines them."""
    model = clip({"hidden_act": "gelu"}, {"hidden_act": "gelu"}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    _, _, tensors = written(tmp_path, model)
    pixels = torch.randn(2, 3, 28, 28)
    patches = F.conv2d(pixels, tensors["visual.conv1.weight"], stride=7).flatten(2).mT
    first = tensors["visual.class_embedding"].expand(2, 1, -1)
    x = torch.cat((first, patches), dim=1) + tensors["visual.positional_embedding"]
    x = transformer(norm(x, tensors, "visual.ln_pre"), tensors, "visual.", None)
    image = norm(x[:, 0], tensors, "visual.ln_post") @ tensors["visual.proj"]

    ids = torch.tensor([[597, 3, 4, 5, 599, 599], [597, 6, 599, 599, 599, 599]])
    x = tensors["token_embedding.weight"][ids] + tensors["positional_embedding"][:6]
    causal = torch.full((6, 6), float("-inf")).triu(1)
    x = norm(transformer(x, tensors, "", causal), tensors, "ln_final")
    text = x[torch.arange(2), ids.argmax(dim=1)] @ tensors["text_projection"]

    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels), image, atol=1e-4, rtol=0)
        torch.testing.assert_close(model.encode_text(ids), text, atol=1e-4, rtol=0)


def norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def transformer(x: Tensor, tensors: dict[str, Tensor], prefix: str, mask: Tensor | None) -> Tensor:
    for number in range(2):
        name = f"{prefix}transformer.resblocks.{number}"
        attention = nn.MultiheadAttention(48, 3, batch_first=True)
        attention.load_state_dict(
            {
                key.removeprefix(f"{name}.attn."): tensor
                for key, tensor in tensors.items()
                if key.startswith(f"{name}.attn.")
            }
        )
        normed = norm(x, tensors, f"{name}.ln_1")
        x = x + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        inner = F.gelu(linear(norm(x, tensors, f"{name}.ln_2"), tensors, f"{name}.mlp.c_fc"))
        x = x + linear(inner, tensors, f"{name}.mlp.c_proj")
    return x.detach()


def test_positions_behind_the_longest_text_are_left_out(tmp_path: Path) -> None:
    """open_clip pads every text to its context length, and wants as many positions."""
    model_cfg, _, tensors = written(tmp_path, clip(), texts=tokenizer(max_length=12))
    assert model_cfg["text_cfg"]["context_length"] == 12
    assert tensors["positional_embedding"].shape == (12, 48)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (599, {}),
        (2, {}),
        (500, {"pool_type": "eos", "eos_id": 500}),
    ],
)
def test_where_the_text_is_read(end: int, expected: dict[str, Any], tmp_path: Path) -> None:
    """The highest id is open_clip's usual end of text; another must be named."""
    model_cfg, _, _ = written(tmp_path, clip(text={"eos_token_id": end}))
    text_cfg = model_cfg["text_cfg"]
    assert {key: text_cfg[key] for key in ("pool_type", "eos_id") if key in text_cfg} == expected


def test_activations_and_norms(tmp_path: Path) -> None:
    towers = ({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu", "layer_norm_eps": 1e-6})
    model_cfg, _, _ = written(tmp_path, clip(*towers))
    assert model_cfg["quick_gelu"] is False
    assert model_cfg["vision_cfg"]["act_kwargs"] == {"approximate": "tanh"}
    assert "norm_kwargs" not in model_cfg["vision_cfg"]
    assert "act_kwargs" not in model_cfg["text_cfg"]
    assert model_cfg["text_cfg"]["norm_kwargs"] == {"eps": 1e-6}


@pytest.mark.parametrize("inner", [1, 47, 97, 100, 143])
def test_any_mlp_width_survives_being_a_ratio(inner: int, tmp_path: Path) -> None:
    model_cfg, _, _ = written(tmp_path, clip({"intermediate_size": inner}))
    assert int(48 * model_cfg["vision_cfg"]["mlp_ratio"]) == inner


def test_pictures_that_are_not_square(tmp_path: Path) -> None:
    model_cfg, preprocess_cfg, _ = written(
        tmp_path,
        clip({"image_size": (56, 28)}),
        preprocessor(size=(56, 28), shortest_edge=None, resample="bilinear"),
    )
    assert model_cfg["vision_cfg"]["image_size"] == [56, 28]
    assert preprocess_cfg["size"] == [56, 28]
    assert preprocess_cfg["resize_mode"] == "squash"
    assert preprocess_cfg["interpolation"] == "bilinear"


def test_a_published_folder_names_its_tokenizer(tmp_path: Path) -> None:
    model_cfg, _, _ = written(tmp_path, clip(), repository="someone/fashion")
    assert model_cfg["text_cfg"]["hf_tokenizer_name"] == "someone/fashion"


def test_the_checkpoint_beside_it_stays_readable(tmp_path: Path) -> None:
    model = clip()
    written(tmp_path, model)
    again = load_dual_encoder(tmp_path, cache_dir=tmp_path).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


# SigLIP -----------------------------------------------------------------------------------------


def siglip(**vision: Any) -> SigLIP:
    vision = {"patch_size": 32, "image_size": 256, **vision}
    text = {"num_hidden_layers": 2, "vocab_size": 600, "max_position_embeddings": 20}
    with torch.device("meta"):
        model = SigLIP(
            SigLIPConfig(
                vision_config=SigLIPVisionConfig(**vision), text_config=SigLIPTextConfig(**text)
            )
        )
    return model.to_empty(device="cpu").requires_grad_(False)


def siglip_preprocessor(side: int) -> ImagePreprocessor:
    return preprocessor(side, shortest_edge=None, kind="SiglipImageProcessor")


def test_siglip_has_the_names_and_shapes_of_timms_tower(tmp_path: Path) -> None:
    texts = tokenizer(rules=TextRules(fixed_length=True, lower_case=True))
    model = siglip()
    model_cfg, preprocess_cfg, tensors = written(tmp_path, model, siglip_preprocessor(256), texts)
    assert shapes(tensors) == NAMES["siglip"]
    assert model_cfg["vision_cfg"]["timm_model_name"] == "vit_base_patch32_siglip_256"
    assert model_cfg["text_cfg"]["tokenizer_kwargs"] == {"clean": "lower"}
    assert preprocess_cfg["resize_mode"] == "squash"
    pool = "visual.trunk.attn_pool"
    joined = torch.cat((tensors[f"{pool}.q.weight"], tensors[f"{pool}.kv.weight"]))
    assert joined.numpy().tobytes() == model.image_head.attention.qkv.weight.numpy().tobytes()


def test_texts_for_siglips_own_tokenizer_are_cleaned_as_it_does(tmp_path: Path) -> None:
    model, preprocess, texts = siglip(), siglip_preprocessor(256), tokenizer()
    texts.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    entries = json.loads(config.read_text()) | {"tokenizer_class": "SiglipTokenizer"}
    config.write_text(json.dumps(entries))
    write_open_clip(tmp_path, model, preprocess, texts)
    model_cfg = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    assert model_cfg["text_cfg"]["tokenizer_kwargs"] == {"clean": "canonicalize"}


# What open_clip cannot express ------------------------------------------------------------------


def test_nothing_is_in_the_way_of_what_can_be_expressed() -> None:
    assert open_clip_obstacle(clip(), preprocessor()) is None
    assert open_clip_obstacle(siglip(), siglip_preprocessor(256)) is None
    sixteen = siglip(patch_size=16, image_size=224, hidden_act="gelu")
    assert open_clip_obstacle(sixteen, siglip_preprocessor(224)) is None


@pytest.mark.parametrize(
    ("model", "preprocess", "words"),
    [
        (lambda: clip({"hidden_act": "relu"}), preprocessor(), "no activation relu"),
        (lambda: clip({"hidden_act": "gelu"}), preprocessor(), "both of its towers"),
        (clip, preprocessor(resample="lanczos"), "Lanczos"),
        (clip, preprocessor(rescale_factor=1.0), "from 0 to 1"),
        (clip, preprocessor(shortest_edge=32), "shorter side"),
        (clip, preprocessor(56), "no other"),
        (clip, preprocessor(shortest_edge=None, letterbox=(0, 0, 0)), "does not letterbox"),
        (lambda: siglip(image_size=224), siglip_preprocessor(224), "published sizes"),
        (lambda: siglip(num_hidden_layers=3), siglip_preprocessor(256), "3 blocks"),
        (lambda: nn.Linear(2, 2), preprocessor(), "CLIP's and SigLIP's"),
    ],
)
def test_the_reason_is_said_and_nothing_is_written(
    model: Any, preprocess: ImagePreprocessor, words: str, tmp_path: Path
) -> None:
    network = model()
    assert words in (open_clip_obstacle(network, preprocess) or "")
    with pytest.raises(UnsupportedCheckpoint, match=words):
        write_open_clip(tmp_path, network, preprocess, tokenizer())
    assert list(tmp_path.iterdir()) == []
