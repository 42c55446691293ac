"""Low-rank adapters on linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685).

A layer's matrix W stays as it is; W + (alpha / rank) · B·A is what the layer computes with, and
only A and B are trained. Adapters are read and written as PEFT does it: `adapter_config.json` and
`adapter_model.safetensors`, with the modules' names as `transformers` has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.json_files import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


class LoRALinear(nn.Linear):
    """A linear layer with an adapter. `weight` and `bias` are the layer's own, under their names.

    lora_a: [rank, inputs], drawn at random. lora_b: [outputs, rank], zero at first, so that the
    layer begins as it was.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as in the authors' code
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.train(linear.training)

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / self.rank

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        whole = F.linear(input, self.weight, self.bias)
        dropped = F.dropout(input, self.dropout, self.training) if self.dropout else input
        return whole + self.scaling * F.linear(F.linear(dropped, self.lora_a), self.lora_b)

    def merged(self) -> nn.Linear:
        """A plain layer that computes the same."""
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        with torch.no_grad():
            added = self.scaling * (self.lora_b.float() @ self.lora_a.float())
            linear.weight = nn.Parameter(
                (self.weight.float() + added).to(self.weight.dtype), requires_grad=False
            )
        if self.bias is not None:
            linear.bias = self.bias
        return linear.train(self.training)


def add_lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    targets: Sequence[str] = TARGETS,
    dropout: float = 0.0,
) -> list[str]:
    """Put adapters on the language model's linear layers called `targets`, in place.

    model: a `Decoder`, or a network that has one as `decoder`. targets: the last part of modules'
        names, as published (`q_proj`) or as here (`q`).
    Returns the modules' names. Raises InvalidRequest for a target that is not there.
    """
    decoder: nn.Module = getattr(model, "decoder", model)
    wanted = {target.removesuffix("_proj"): target for target in targets}
    found: list[str] = []
    seen: set[str] = set()
    for name, module in list(model.named_modules()):
        leaf = name.rpartition(".")[2]
        if leaf not in wanted or type(module) is not nn.Linear or not _inside(module, decoder):
            continue
        _replace(model, name, LoRALinear(module, rank=rank, alpha=alpha, dropout=dropout))
        found.append(name)
        seen.add(leaf)
    if missing := [target for leaf, target in wanted.items() if leaf not in seen]:
        raise InvalidRequest(
            f"The language model has no linear layers called {', '.join(missing)}.",
            hint=f"Usual are {', '.join(TARGETS)}.",
            param="lora.targets",
        )
    return found


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every layer that has an adapter, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its layer's own matrix, in place, and give the network back."""
    for name, module in list(lora_layers(model)):
        _replace(model, name, module.merged())
    return model


def _inside(module: nn.Module, whole: nn.Module) -> bool:
    return any(each is module for each in whole.modules())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


# PEFT's layout ----------------------------------------------------------------------------------


def save_peft(
    folder: Path | str, model: nn.Module, *, base: str = "", saved: Sequence[str] = ()
) -> None:
    """Write the adapters as PEFT does.

    base: the checkpoint that they belong to. saved: modules of the network, such as a projector,
        that were trained whole and are kept beside the adapters (PEFT's `modules_to_save`).
    Raises UnsupportedCheckpoint if there is no adapter, or adapters of several kinds.
    """
    from chiasm.models import checkpoint

    layers = dict(lora_layers(model))
    kinds = {(each.rank, each.alpha, each.dropout) for each in layers.values()}
    if len(kinds) != 1:
        raise UnsupportedCheckpoint(
            "There are no adapters to save." if not kinds else "The adapters are not of one kind."
        )
    ((rank, alpha, dropout),) = kinds
    names = _PeftNames(model)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        path = f"{_PREFIX}{names.module(name)}"
        tensors[f"{path}.lora_A.weight"] = _plain(layer.lora_a)
        tensors[f"{path}.lora_B.weight"] = _plain(layer.lora_b)
    # Of modules within modules PEFT takes the outer ones alone.
    saved = [n for n in saved if not any(n.startswith(f"{other}.") for other in saved)]
    whole = sorted({names.module(name) for name in saved})
    for name in saved:
        for parameter, tensor in model.get_submodule(name).named_parameters(prefix=name):
            tensors[f"{_PREFIX}{names.tensor(parameter)}"] = _plain(tensor)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": _targets(model, layers, names),
        "modules_to_save": whole or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    checkpoint.write_json(folder / ADAPTER_CONFIG, entries)
    checkpoint.write_tensors(folder / ADAPTER_WEIGHTS, tensors)


def load_peft(folder: Path | str, model: nn.Module) -> list[str]:
    """Put the adapters that lie in `folder` on the network, in place, ready to be trained on.

    Returns the names of the modules that have one. Raises UnsupportedCheckpoint if they are of a
    kind that is not known here, or belong to another network.
    """
    folder = Path(folder)
    entries = read_json(folder / ADAPTER_CONFIG)
    _check(entries, folder)
    path = folder / ADAPTER_WEIGHTS
    try:
        tensors = load_file(path)
    except Exception:  # whatever a file that is missing or cut short makes the reader say
        raise UnsupportedCheckpoint(f"{path} is not a complete safetensors file.") from None
    ours = _PeftNames(model).linear_layers()
    pairs: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        named = _KEY.fullmatch(key)
        if named is None:
            rest[key.removeprefix(_PREFIX)] = tensor
            continue
        module = ours.get(named[1])
        if module is None:
            raise UnsupportedCheckpoint(
                f"{path} has an adapter for {named[1]}, which the network does not have.",
                hint=f"It was made for {entries.get('base_model_name_or_path') or 'another'}.",
            )
        pairs.setdefault(module, {})[named[2]] = tensor
    alpha, dropout = float(entries["lora_alpha"]), float(entries.get("lora_dropout") or 0.0)
    for name, pair in pairs.items():
        _put(model, name, pair, alpha, dropout, entries, path)
    _load_saved(model, rest, path)
    return list(pairs)


def _put(
    model: nn.Module,
    name: str,
    pair: Mapping[str, Tensor],
    alpha: float,
    dropout: float,
    entries: Mapping[str, Any],
    path: Path,
) -> None:
    module: Any = model.get_submodule(name)
    if set(pair) != {"A", "B"}:
        raise UnsupportedCheckpoint(f"{path} has half an adapter for {name}.")
    rank = len(pair["A"])
    if pair["A"].shape != (rank, module.in_features) or pair["B"].shape != (
        module.out_features,
        rank,
    ):
        raise UnsupportedCheckpoint(f"{path}: the adapter of {name} has another shape.")
    if entries.get("use_rslora"):
        alpha *= math.sqrt(rank)  # alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)
    layer = LoRALinear(module, rank=rank, alpha=alpha, dropout=dropout)
    like = layer.lora_a
    layer.lora_a = nn.Parameter(pair["A"].to(like.dtype).to(like.device))
    layer.lora_b = nn.Parameter(pair["B"].to(like.dtype).to(like.device))
    _replace(model, name, layer)


def _load_saved(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Modules that were kept whole."""
    if not tensors:
        return
    names = _PeftNames(model)
    ours = {names.tensor(name): parameter for name, parameter in model.named_parameters()}
    published = {names.published(name): parameter for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        parameter = ours.get(name, published.get(name))
        if parameter is None or parameter.shape != tensor.shape:
            raise UnsupportedCheckpoint(f"{path} has {name}, which the network does not have.")
        with torch.no_grad():
            parameter.copy_(tensor)


def _check(entries: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would compute something else."""
    odd = [
        name
        for name in (
            "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication",
            "trainable_token_indices", "megatron_config", "lora_bias", "target_parameters",
        )
        if entries.get(name)
    ]  # fmt: skip
    if entries.get("bias", "none") != "none":
        odd.append("bias")
    if entries.get("peft_type") != "LORA" or odd:
        what = f" with {', '.join(odd)}" if odd else ""
        raise UnsupportedCheckpoint(
            f"{folder} holds an adapter of the kind {entries.get('peft_type')!r}{what}, which is "
            "not read here.",
            hint="Plain LoRA is.",
        )


def _targets(model: nn.Module, layers: Mapping[str, LoRALinear], names: _PeftNames) -> list[str]:
    """What PEFT is to look for: last parts of names, or whole ones where others end so too."""
    leaves = {names.module(name).rpartition(".")[2] for name in layers}
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in layers
    ]
    if any(leaf in leaves for name in others for leaf in names.leaves(name)):
        return sorted(names.module(name) for name in layers)
    return sorted(leaves)


class _PeftNames:
    """How modules are called in the network that `transformers` builds, which PEFT goes by."""

    def __init__(self, model: nn.Module) -> None:
        from chiasm.models.architectures import ARCHITECTURES

        config: Any = getattr(model, "config", None)
        architecture = ARCHITECTURES.get(getattr(config, "model_type", ""))
        if architecture is None:
            raise UnsupportedCheckpoint(
                "Adapters in PEFT's layout need a network that transformers has, too.",
                hint="Merge them into the network instead.",
            )
        self._model = model
        self._layout = architecture.layout

    def published(self, tensor: str) -> str:
        """As in the checkpoint's files."""
        return self._layout.sources(tensor)[0]

    def tensor(self, tensor: str) -> str:
        """As in `transformers`' network, where the language model lies inside `model`."""
        name = self.published(tensor)
        for before, after in _AT_RUN_TIME:
            if name.startswith(before):
                return after + name.removeprefix(before)
        return name

    def module(self, name: str) -> str:
        """A module's name, from a tensor that is in it."""
        module = self._model.get_submodule(name)
        leaf = next(n for n, _ in module.named_parameters() if "lora_" not in n)
        whole = self.tensor(f"{name}.{leaf}")
        if not whole.endswith(f".{leaf}"):
            raise UnsupportedCheckpoint(f"{name} is no single module in transformers' network.")
        return whole.removesuffix(f".{leaf}")

    def leaves(self, name: str) -> list[str]:
        """The last parts of the names of all that a layer holds."""
        sources = self._layout.sources(f"{name}.weight")
        return [source.removesuffix(".weight").rpartition(".")[2] for source in sources]

    def linear_layers(self) -> dict[str, str]:
        """PEFT's name and the published one → ours, for every linear layer."""
        found: dict[str, str] = {}
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Linear):
                for theirs in (self.published, self.tensor):
                    found[theirs(f"{name}.weight").removesuffix(".weight")] = name
        return found


_AT_RUN_TIME = (
    ("language_model.model.", "model.language_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("image_newline", "model.image_newline"),
)
"""Published beginnings of names, and what transformers 5 has in their place."""


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
