"""A tiny contrastive run over pictures of flat colours that their captions name."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 60, 220),
    "yellow": (230, 220, 40),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}


def write_pictures(folder: Path, count: int = 48) -> Path:
    """A table of pictures with captions, and the path of it."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    rows = []
    for number in range(count):
        name = list(COLOURS)[number % len(COLOURS)]
        noise = chance.integers(-15, 16, (20, 20, 3))
        pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
        words = ("a {} square", "something {} here", "{}")[number // len(COLOURS) % 3]
        rows.append((f"{number}.png", words.format(name), name))
    table = folder / "pictures.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "caption", "label"), *rows])
    return table


def write_prompts(path: Path) -> Path:
    """The classes of these pictures, asked for in words that are no caption."""
    classes = ", ".join(f'"{name}"' for name in COLOURS)
    path.write_text(f'classes = [{classes}]\ntemplates = ["this is {{}}"]\n', encoding="utf-8")
    return path


def recipe(table: Path, **sections: Any) -> dict[str, Any]:
    """The run as nested tables. sections: values to put in the place of these."""
    tables: dict[str, Any] = {
        "data": {"source": str(table), "threads": 1, "augment": {"flip": 0.5}},
        "model": {
            "vocabulary": 600,
            "patch_dropout": 0.25,
            "new": {
                "model_type": "clip",
                "projection_dim": 16,
                "vision_config": {
                    "image_size": 16,
                    "patch_size": 8,
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                },
                "text_config": {
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "max_position_embeddings": 12,
                },
            },
        },
        "batch": {"size": 12},
        "optimizer": {"rate": 3e-3, "warmup_steps": 3},
        "loop": {"steps": 12, "snapshot_every": 5, "report_every": 1},
    }
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return tables
