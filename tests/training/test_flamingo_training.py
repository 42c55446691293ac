"""A Flamingo put together from two networks, trained like any vision-language model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from chiasm.models.checkpoint import load_model, save_checkpoint
from chiasm.models.flamingo import Flamingo
from chiasm.models.generator import load_generator
from chiasm.models.idefics_reader import AROUND, IMAGE, IdeficsReader
from chiasm.models.perceiver import PerceiverConfig
from chiasm.models.vision_language import ImageInputs
from chiasm.training.distributed import World
from chiasm.training.instruct import train_vlm
from chiasm.training.instruct_recipe import InstructRecipe
from chiasm.training.recipe_file import build_recipe


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new Flamingo's folder: two networks' weights, closed gates, one token more."""
    folder = tmp_path_factory.mktemp("flamingo")
    parts = tiny_vlm.write_parts(folder)
    path = folder / "start"
    shutil.copytree(parts["language_model"], path)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(AROUND, normalized=False)])
    tokenizer.save(str(path / "tokenizer.json"))
    decoder: Any = load_model(parts["language_model"])
    clip: Any = load_model(parts["image_tower"])
    perceiver = PerceiverConfig(
        resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8
    )
    torch.manual_seed(0)
    model = Flamingo.around(
        decoder,
        clip.image_tower,
        additional_vocab_size=1,
        image_token_id=tokenizer.token_to_id(IMAGE),
        use_resampler=True,
        perceiver_config=perceiver,
    )
    entries = {"image_processor_type": "IdeficsImageProcessor", "image_size": tiny_vlm.SIDE}
    save_checkpoint(path, model, IdeficsReader.from_config(entries))
    return path


def trained(start: Path, folder: Path, steps: int, **tune: Any) -> tuple[Path, list[float]]:
    """The model's folder, and the losses."""
    data = tiny_vlm.write_conversations(folder / "data")
    tables = tiny_vlm.recipe(data, {}, tune=tune, loop={"steps": steps, "snapshot_every": steps})
    tables["model"] = {"start": str(start)}
    tables["optimizer"]["rate"] = 1e-2
    losses: list[float] = []
    run = train_vlm(
        build_recipe(InstructRecipe, tables, "recipe"),
        folder / "run",
        world=World(),
        cache_dir=folder / "cache",
        watch=lambda step, report: losses.append(report["loss"]),
    )
    return run.model, losses


@torch.no_grad()
def logits_here_and_there(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one prompt with a picture, by the model in `folder`, here and in transformers."""
    seer = load_generator(folder, cache_dir=folder)
    model: Any = seer.model
    token = seer.tokenizer.token_id
    ids = torch.tensor([[5, 6, token(AROUND), token(IMAGE), token(AROUND), 9, 10, 11]])
    side = tiny_vlm.SIDE
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    mine = model.logits(model(ids, model.encode_image(ImageInputs(pixels, (side, side)))))
    theirs, report = transformers.IdeficsForVisionText2Text.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    seen = torch.zeros(1, 8, 1)
    seen[:, 3:] = 1
    return mine, theirs.eval()(ids, pixel_values=pixels[None], image_attention_mask=seen).logits


def test_alignment_trains_what_is_new_and_transformers_opens_the_result(
    start: Path, tmp_path: Path
) -> None:
    folder, losses = trained(start, tmp_path, 16, stage="align")
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    before, after = load_model(start).state_dict(), load_model(folder).state_dict()
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"cross_attention", "resampler", "additional_embedding"}
    here, there = logits_here_and_there(folder)
    assert (here - there).abs().max() <= 1e-4
    assert (here - logits_here_and_there(start)[0]).abs().max() > 0.1


def test_adapters_are_merged_into_what_transformers_opens(start: Path, tmp_path: Path) -> None:
    folder, _ = trained(start, tmp_path, 4, stage="instruct", language_model="lora")
    assert (tmp_path / "run" / "adapters" / "adapter_model.safetensors").is_file()
    before, after = load_model(start).state_dict(), load_model(folder).state_dict()
    adapted = {name.split(".")[-2] for name in before
               if name.startswith("decoder.") and not before[name].equal(after[name])}  # fmt: skip
    assert adapted == {"q", "v"}
    here, there = logits_here_and_there(folder)
    assert (here - there).abs().max() <= 1e-4
