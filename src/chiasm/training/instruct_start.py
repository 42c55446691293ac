"""What a vision-language model's training begins with, and what it leaves behind."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from chiasm.errors import ConfigurationError, UnsupportedCheckpoint
from chiasm.models import checkpoint, lora
from chiasm.models.chat import ChatTokenizer
from chiasm.models.decoder import Decoder
from chiasm.models.generator import SMALL_VLM, load_generator
from chiasm.models.vision_language import ImageReader
from chiasm.training.answer_network import part_of
from chiasm.training.instruct_recipe import InstructModelRecipe, InstructRecipe

log = logging.getLogger("chiasm.training")

_PREFIX = "model."  # of the network inside `AnswerNetwork`


@dataclass(frozen=True)
class Begun:
    """A network to be trained, with what turns conversations into its inputs.

    name: of the checkpoint that adapters will belong to. digest: of what the frozen weights are
    from. files: the folder whose processor files the result takes over; None where the network
    brings its own.
    """

    model: Any
    images: ImageReader
    tokenizer: ChatTokenizer
    name: str
    digest: str
    files: Path | None


def begin(
    recipe: InstructModelRecipe,
    *,
    kept: Path,
    seed: int,
    cache_dir: Path,
    offline: bool = False,
    catalogs: Sequence[Path] = (),
) -> Begun:
    """The model to train.

    kept: a folder for the small files of a model that is put together here.
    Raises ConfigurationError, UnsupportedCheckpoint, and what loading the parts raises.
    """
    places: dict[str, Any] = {"cache_dir": cache_dir, "offline": offline, "catalogs": catalogs}
    if recipe.new:
        from chiasm.training.assemble import assembled

        return assembled(recipe.new, kept=kept, seed=seed, **places)
    found = load_generator(recipe.start, **places)
    model: Any = found.model
    if isinstance(model, Decoder) or found.images is None:
        raise ConfigurationError(
            f"{recipe.start} is a language model that sees no pictures.",
            hint="Put it together with an image tower: model.new.language_model and "
            "model.new.image_tower.",
            param="model.start",
        )
    files = None
    if model.config.model_type != SMALL_VLM:
        files = checkpoint.locate(recipe.start, **places)
    if recipe.adapters:
        lora.load_peft(recipe.adapters, model)
    return Begun(model, found.images, found.tokenizer, found.name, found.digest, files)


def with_adapters(model: nn.Module, recipe: InstructRecipe) -> None:
    """Put adapters on the language model, if the recipe asks for them and it has none."""
    if recipe.tune.language != "lora" or any(True for _ in lora.lora_layers(model)):
        return
    lora.add_lora(
        model,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        targets=recipe.lora.targets,
        dropout=recipe.lora.dropout,
    )


# The end ----------------------------------------------------------------------------------------


def write_result(
    folder: Path,
    adapters: Path,
    empty: nn.Module,
    weights: dict[str, Tensor],
    begun: Begun,
    trained: Sequence[str],
) -> None:
    """Write the model, whole, and beside it its adapters in PEFT's layout, if it has any.

    empty: from `export.blueprint`. weights: whole tensors of the run's `AnswerNetwork`, by name.
    trained: names of parameters that learned. Raises NoSpace.
    """
    model: Any = empty
    model.load_state_dict(
        {name: weights[f"{_PREFIX}{name}"] for name in model.state_dict()}, assign=True
    )
    if model.config.model_type == SMALL_VLM:
        from chiasm.models import small_vlm

        small_vlm.save(folder, model)
        return
    if any(True for _ in lora.lora_layers(model)):
        _write_adapters(adapters, model, begun, trained)
        lora.merge_lora(model)
    folder.mkdir(parents=True, exist_ok=True)
    begun.tokenizer.save(folder)
    assert begun.files is not None
    for name in (checkpoint.PREPROCESSOR, checkpoint.PROCESSOR):
        if (begun.files / name).is_file():
            shutil.copyfile(begun.files / name, folder / name)
    checkpoint.save_checkpoint(folder, model)


def _write_adapters(folder: Path, model: nn.Module, begun: Begun, trained: Sequence[str]) -> None:
    """Adapters, and whole what else learned: the projector, and perhaps the tower."""
    modules = {
        name.rpartition(".")[0]
        for name in trained
        if "lora_" not in name and part_of(name) != "language_model"
    }
    try:
        lora.save_peft(folder, model, base=begun.name, saved=sorted(modules))
    except UnsupportedCheckpoint as error:  # the model itself, merged, is written all the same
        log.warning("The adapters are not written by themselves: %s", error)
