"""Adapters: their arithmetic, and PEFT's layout.

`peft_names.json` holds the names and shapes that PEFT itself wrote; benchmarks/parity_peft.py made
it, and compares logits with PEFT's, both ways.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models import lora
from chiasm.models.checkpoint import load_model

NAMES = json.loads(Path(__file__).with_name("peft_names.json").read_text(encoding="utf-8"))
LEAVES = ("q_proj", "v_proj", "down_proj")
SAVED = {"LLaVA": ["projector.linear_1", "projector.linear_2"], "Idefics3": ["projector.linear"]}
SAVED["SmolVLM"] = SAVED["Idefics3"]


def saved(name: str) -> list[str]:
    return next((modules for start, modules in SAVED.items() if name.startswith(start)), [])


def opened(name: str, folder: Path) -> tuple[parity.Case, Any]:
    """A case, and its network read here."""
    case = parity.cases()[name]()
    case.reference.save_pretrained(folder / "base")
    return case, load_model(folder / "base")


@torch.no_grad()
def stirred(model: nn.Module) -> nn.Module:
    for _, layer in lora.lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.3)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_those_that_peft_writes(tmp_path: Path, name: str) -> None:
    _, model = opened(name, tmp_path)
    lora.add_lora(model, rank=3, alpha=5.0, targets=LEAVES)
    lora.save_peft(tmp_path / "ours", model, base="some/base", saved=saved(name))
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == NAMES[name]
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (
        3,
        5.0,
        "some/base",
    )


@pytest.mark.parametrize("name", ["Llama, untied, θ 100000", "LLaVA, CLIP and Llama", "SmolVLM"])
@torch.no_grad()
def test_what_peft_would_write_computes_what_it_should(tmp_path: Path, name: str) -> None:
    """The oracle is transformers' network with alpha / rank · B·A added to its own matrices."""
    case, model = opened(name, tmp_path)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        key: 0.3 * torch.randn(shape, generator=generator) for key, shape in NAMES[name].items()
    }
    write_adapter(tmp_path / "adapter", tensors, r=3, lora_alpha=5)
    found = lora.load_peft(tmp_path / "adapter", model)
    added = 0
    for key, tensor in tensors.items():
        path = key.removeprefix("base_model.model.")
        if path.endswith(".lora_A.weight"):
            other = tensors[key.replace("lora_A", "lora_B")]
            layer = case.reference.get_submodule(path.removesuffix(".lora_A.weight"))
            layer.weight += 5 / 3 * other @ tensor
            added += 1
        elif "lora_" not in path:
            case.reference.get_parameter(path).copy_(tensor)
    assert added == len(found) > 0
    for output, (ours, theirs) in case.outputs.items():
        torch.testing.assert_close(ours(model), theirs(case.reference), atol=1e-4, rtol=1e-4)
        if "greedy" in output:
            break
    before = {output: ours(model) for output, (ours, _) in case.outputs.items()}
    merged = lora.merge_lora(model)
    assert not list(lora.lora_layers(merged))
    for output, (ours, _) in case.outputs.items():
        torch.testing.assert_close(ours(merged), before[output], atol=1e-4, rtol=1e-4)


def write_adapter(folder: Path, tensors: dict[str, Tensor], **entries: Any) -> None:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "bias": "none", **entries}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@torch.no_grad()
def test_an_adapter_begins_without_effect_and_adds_its_product() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.decoder = nn.ModuleDict({"q": nn.Linear(6, 5), "gate": nn.Linear(6, 4)})
    model.q = nn.Linear(6, 5)  # outside the language model
    x = torch.randn(3, 6)
    before = model.decoder["q"](x)
    assert lora.add_lora(model, rank=2, alpha=3.0, targets=("q_proj",)) == ["decoder.q"]
    layer = model.decoder["q"]
    assert torch.equal(layer(x), before)
    nn.init.normal_(layer.lora_b)
    expected = before + 1.5 * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected)
    learning = [name for name, each in layer.named_parameters() if each.requires_grad]
    assert learning == ["lora_a", "lora_b"]


@torch.no_grad()
def test_dropout_is_the_adapters_alone_and_training_s_alone() -> None:
    torch.manual_seed(0)
    layer = lora.LoRALinear(nn.Linear(64, 5), rank=2, alpha=2.0, dropout=0.5)
    x = torch.randn(4, 64)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    layer.train()
    torch.testing.assert_close(layer(x), plain)  # B is zero: nothing but the layer itself
    nn.init.normal_(layer.lora_b)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_names_that_are_not_there_are_refused(tmp_path: Path) -> None:
    _, model = opened("Llama, untied, θ 100000", tmp_path)
    with pytest.raises(InvalidRequest, match="no linear layers called c_attn"):
        lora.add_lora(model, targets=("q_proj", "c_attn"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"use_dora": True}, "with use_dora"),
        ({"bias": "all"}, "with bias"),
        ({"rank_pattern": {"q_proj": 2}}, "with rank_pattern"),
        ({"peft_type": "IA3"}, "of the kind 'IA3'"),
    ],
)
def test_adapters_of_other_kinds_are_refused(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    _, model = opened("Llama, untied, θ 100000", tmp_path)
    write_adapter(tmp_path / "odd", {}, **{"r": 3, "lora_alpha": 5, **entries})
    with pytest.raises(UnsupportedCheckpoint, match=message):
        lora.load_peft(tmp_path / "odd", model)


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    _, model = opened("LLaVA, CLIP and Llama", tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write_adapter(tmp_path / "other", {key: torch.zeros(3, 40)}, r=3, lora_alpha=5)
    with pytest.raises(UnsupportedCheckpoint, match=r"model\.layers\.0\.self_attn\.q_proj"):
        lora.load_peft(tmp_path / "other", model)


def test_square_root_scaling(tmp_path: Path) -> None:
    _, model = opened("Llama, untied, θ 100000", tmp_path)
    lora.add_lora(model, rank=4, alpha=6.0, targets=("q_proj",))
    lora.save_peft(tmp_path / "a", stirred(model))
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_rslora": True}))
    again = load_model(tmp_path / "base")
    lora.load_peft(tmp_path / "a", again)
    assert {layer.scaling for _, layer in lora.lora_layers(again)} == {6.0 / 4**0.5}
