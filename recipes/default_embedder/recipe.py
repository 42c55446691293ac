"""The recipe's settings, and where its pictures and towers come from."""

from __future__ import annotations

import json
import multiprocessing
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import phrases
import pictures as sources
import torch
from pictures import Picture
from torch import Tensor
from wordnet import Nouns

from chiasm.models.bert import BERT
from chiasm.models.catalog import pull
from chiasm.models.checkpoint import load_model
from chiasm.models.efficientnet_lite import EfficientNetLite, load_published
from chiasm.models.tokenizer import Tokenizer
from chiasm.settings import Settings

HERE = Path(__file__).parent


def load() -> dict[str, Any]:
    """recipe.toml; the work folder is relative to the repository."""
    settings = tomllib.loads((HERE / "recipe.toml").read_text(encoding="utf-8"))
    settings["work"] = str(HERE.parents[1] / settings["work"])
    return settings


def pictures(settings: dict[str, Any]) -> list[Picture]:
    """Every picture with its part in the split; kept in the work folder once made."""
    work = Path(settings["work"])
    kept = work / "pictures.json"
    if kept.exists():
        found = [_from_json(row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    else:
        fetched, rules = work / "fetched", settings["pictures"]
        names = fetched / "emojibase-data/en/data.json"
        noto = fetched / "emoji-datasource-google/img/google/64"
        found = [
            *sources.stamps(fetched / "usr/share/tuxpaint/stamps", rules["glyphs"]),
            *sources.openclipart(
                fetched / "usr/share/openclipart/png",
                fetched / "usr/share/openclipart/svg",
                rules["leave_out"],
            ),
            *sources.emoji(names, noto, "noto"),
            *sources.emoji(names, fetched / "fluent-emoji-3d/assets", "fluent"),
        ]
        with multiprocessing.Pool(2) as pool:
            found = pool.map(sources.with_hash, found, chunksize=32)
        kept.write_text(json.dumps([_to_json(picture) for picture in found]), encoding="utf-8")
    return split(found, settings)


def split(found: list[Picture], settings: dict[str, Any], salt: str | None = None) -> list[Picture]:
    """The recipe's split, or another one by another salt."""
    rules = settings["split"]
    return sources.split(
        found,
        salt=salt or rules["salt"],
        held_out=rules["held_out_stamps"],
        validation=rules["validation_stamps"],
        near_duplicate_bits=settings["pictures"]["near_duplicate_bits"],
    )


def imagenet(settings: dict[str, Any]) -> Path:
    """Where the names of the ImageNet classes lie."""
    return Path(settings["work"]) / "fetched/timm/data/_info"


def class_kinds(settings: dict[str, Any]) -> list[list[phrases.Phrase]]:
    """For each ImageNet class what it is, by WordNet."""
    nouns = Nouns(Path(settings["work"]) / "fetched/usr/share/wordnet")
    return phrases.imagenet_kinds(imagenet(settings), nouns)


def views_of(picture: Picture, settings: dict[str, Any]) -> int:
    """How many composites are made of a picture."""
    kind = picture.source if picture.source in ("stamp", "openclipart") else "emoji"
    count: int = settings["views"][kind]
    return count


def towers() -> tuple[EfficientNetLite, BERT, Tokenizer]:
    """The locked towers from the user's cache, ready for inference."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    cache = Settings.load().cache_dir
    tower = load_published(next(pull("efficientnet-lite0", cache_dir=cache).glob("*.pth")))
    folder = pull("minilm-l6", cache_dir=cache)
    text = load_model(folder)
    assert isinstance(text, BERT)
    tower.fold_batch_norms().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tower, text.eval(), Tokenizer.from_folder(folder, max_length=128)


@torch.no_grad()
def encode_texts(text: BERT, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Mean over the tokens, unit length: [texts, 384]."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = torch.empty(len(texts), 384)
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        batch = tokenizer([texts[i] for i in chosen])
        tokens = text(batch.ids, batch.mask)  # [batch, tokens, 384]
        mask = batch.mask[..., None]
        rows[chosen] = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.nn.functional.normalize(rows, dim=-1)


def _to_json(picture: Picture) -> dict[str, Any]:
    return asdict(picture) | {"path": str(picture.path), "objects": sorted(picture.objects)}


def _from_json(row: dict[str, Any]) -> Picture:
    lists = {"keywords": tuple(row["keywords"]), "objects": frozenset(row["objects"])}
    return Picture(**(row | lists | {"path": Path(row["path"])}))
