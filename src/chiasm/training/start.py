"""What a contrastive run begins with: a checkpoint, or a new network with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chiasm.errors import ConfigurationError, UnsupportedCheckpoint
from chiasm.models import checkpoint
from chiasm.models.architectures import ARCHITECTURES
from chiasm.models.checkpoint import DualEncoderCheckpoint
from chiasm.models.configuration import read_config
from chiasm.models.preprocess import AnyPreprocessor, preprocessor_from_config
from chiasm.models.tokenizer import CLIP_END, CLIP_START, Tokenizer
from chiasm.training.initialise import initialise
from chiasm.training.recipe import ModelRecipe

_CAPTIONS = 1_000_000  # as many as a vocabulary is learned from


def begin(
    recipe: ModelRecipe,
    captions: Callable[[], Iterable[str]],
    *,
    kept: Path,
    seed: int,
    cache_dir: Path,
    offline: bool = False,
    catalogs: Sequence[Path] = (),
) -> DualEncoderCheckpoint:
    """The model to train, with its preprocessor and its tokenizer.

    captions: called only if a vocabulary is to be learned from them. kept: a folder in which what
        was learned lies, or will lie, so that a continued run reads the same tokens.
    Raises ConfigurationError, and what `load_dual_encoder` raises.
    """
    recipe.check()
    places: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "catalogs": catalogs,
    }
    if recipe.start:
        return checkpoint.load_dual_encoder(recipe.start, adapters=recipe.adapters, **places)
    return _new(recipe, captions, kept, seed, places)


def _new(
    recipe: ModelRecipe,
    captions: Callable[[], Iterable[str]],
    kept: Path,
    seed: int,
    places: dict[str, Any],
) -> DualEncoderCheckpoint:
    entries = dict(recipe.new)
    architecture = ARCHITECTURES.get(str(entries.get("model_type")))
    if architecture is None or architecture.texts is None:
        known = [name for name, each in ARCHITECTURES.items() if each.texts is not None]
        raise ConfigurationError(
            f"model.new has the model_type {entries.get('model_type')!r}, which is no dual encoder "
            "known here.",
            hint=f"Known are {', '.join(known)}.",
            param="model.new",
        )
    text = dict(entries.get("text_config", {}))
    length = int(text.get("max_position_embeddings", 77))
    if recipe.tokenizer:
        folder = checkpoint.locate(recipe.tokenizer, **places)
        tokenizer = Tokenizer.from_folder(folder, max_length=length, rules=architecture.texts)
    else:
        tokenizer = _learned(recipe, captions, kept, length, architecture.texts)
    # The vocabulary decides these, whatever the recipe says.
    text["vocab_size"] = tokenizer.vocabulary
    if entries["model_type"] == "clip":
        text["bos_token_id"] = tokenizer.id_of(CLIP_START)
        text["eos_token_id"] = tokenizer.id_of(CLIP_END)
        text["pad_token_id"] = tokenizer.pad_id
    entries["text_config"] = text
    try:
        config = read_config(architecture.config, entries)
        torch.manual_seed(seed)
        model = architecture.model(config)
    except UnsupportedCheckpoint as error:
        raise ConfigurationError(f"model.new: {error.message}", hint=error.hint) from None
    initialise(model)
    encoder: Any = model
    return DualEncoderCheckpoint(encoder, _preprocessor(recipe, model), tokenizer, "new", "")


def _learned(
    recipe: ModelRecipe,
    captions: Callable[[], Iterable[str]],
    kept: Path,
    length: int,
    rules: Any,
) -> Tokenizer:
    from itertools import islice

    from chiasm.models.tokenizer_training import train_clip_tokenizer

    if not (kept / "tokenizer.json").is_file():
        learned = train_clip_tokenizer(
            islice(captions(), _CAPTIONS), vocabulary=recipe.vocabulary, max_length=length
        )
        learned.save(kept)
    return Tokenizer.from_folder(kept, max_length=length, rules=rules)


def _preprocessor(recipe: ModelRecipe, model: nn.Module) -> AnyPreprocessor:
    config: Any = model.config
    vision = config.vision_config
    if config.model_type == "siglip2":
        usual: dict[str, Any] = {
            "image_processor_type": "Siglip2ImageProcessor",
            "patch_size": vision.patch_size,
            "max_num_patches": vision.num_patches,
        }
    else:
        size = vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        exact = {"height": height, "width": width}
        usual = {"image_processor_type": "SiglipImageProcessor", "size": exact}
        if config.model_type == "clip":
            usual = {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": min(height, width)},
                "crop_size": exact,
            }
    return preprocessor_from_config({**usual, **recipe.preprocessor})
