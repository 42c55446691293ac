"""A tiny vision-language run: pictures of flat colours, and questions that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_run import COLOURS, write_pictures

from chiasm.models.checkpoint import save_checkpoint
from chiasm.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from chiasm.models.preprocess import preprocessor_from_config
from tests.generation.tiny_models import tiny_language_model

SIDE = 16


def write_parts(folder: Path) -> dict[str, str]:
    """An image tower and a language model of random weights, as `model.new` names them."""
    torch.manual_seed(1)
    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **tiny)
    config = CLIPConfig(text_config=CLIPTextConfig(**tiny), vision_config=vision)
    square = {"height": SIDE, "width": SIDE}
    preprocessor = preprocessor_from_config(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": square,
        }
    )
    save_checkpoint(folder / "tower", CLIP(config).eval(), preprocessor)
    language = tiny_language_model(folder / "language")
    save_checkpoint(folder / "language", language.decoder)
    return {"image_tower": str(folder / "tower"), "language_model": str(folder / "language")}


def write_conversations(folder: Path, count: int = 48) -> Path:
    """LLaVA's JSON about `write_pictures`' pictures: one or two, asked about once or twice."""
    write_pictures(folder, count)
    names = list(COLOURS)
    records = []
    for number in range(count):
        colour, other = names[number % len(names)], names[(number + 1) % len(names)]
        turns = [
            {"from": "human", "value": "<image>\nWhat is in this picture?"},
            {"from": "gpt", "value": f"A {colour} wall."},
        ]
        images = [f"{number}.png"]
        if number % 3 == 0:
            turns += [
                {"from": "human", "value": "And here? <image>"},
                {"from": "gpt", "value": f"A {other} wall, and it is not {colour}."},
            ]
            images.append(f"{(number + 1) % count}.png")
        records.append({"id": number, "image": images, "conversations": turns})
    path = folder / "conversations.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def recipe(data: Path, parts: dict[str, Any], /, **sections: Any) -> dict[str, Any]:
    """The run as nested tables. sections: values to put in the place of these."""
    tables: dict[str, Any] = {
        "data": {"source": str(data), "threads": 1, "bucket_batches": 3, "max_tokens": 256},
        "model": {"new": {"feature_layer": -2, **parts}},
        "tune": {"stage": "instruct", "language_model": "lora"},
        "lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "dropout": 0.1},
        "batch": {"size": 8},
        "optimizer": {"rate": 3e-3, "warmup_steps": 3},
        "loop": {"steps": 8, "snapshot_every": 5, "report_every": 1},
    }
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return tables
