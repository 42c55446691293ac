"""Between the two runs: what the first one showed to be missing.

    python recipes/default_vlm/sharpen.py MODEL FOLDER [--strangers]

Adds to the model in MODEL and writes FOLDER:

- to the namer, a linear map from the summary that tells the training concepts apart, fitted by the
  likelihood of accepted names and then shrunk to three tenths: more of it names familiar things no
  better and strange things worse (README.md). `--strangers` leaves the folds aside that the
  regression does not know either, for a model that is going to be trained on.
- first values for the token that counts, by regression on the composed pictures' features.
- more slots for words.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from borrowed import embedder, load_cache
from naming import add_direct, measure
from questions import NUMBERS
from split import fold, load, nouns, split
from torch import Tensor, nn

from chiasm.models import small_vlm
from chiasm.models.small_vlm import SmallVLM
from chiasm.settings import Settings
from chiasm.training.picture_features import FeatureCache, picture_key, tower_identity

WHOLE, QUARTER = 12, 5


def main() -> None:
    """Read, add, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strangers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = load()
    found = split(settings, nouns(settings))
    cache = load_cache(embedder.load())
    opened = small_vlm.load(cache_dir=Settings.load().cache_dir, shipped=arguments.model)
    model: Any = opened.model
    measure(model, cache, found, "before")
    rules = settings["namer"]
    chosen = [i for i in found.parts["train"] if not arguments.strangers
              or fold(found.concepts[i].key, rules["folds"]) not in rules["aside"]]  # fmt: skip
    add_direct(model, cache, found, chosen)
    measure(model, cache, found, "after")
    if model.config.projector.whole != WHOLE:
        more_slots(model)
        kept = FeatureCache(
            Path(settings["work"]) / "features", tower_identity(model.image_tower, opened.images)
        )
        begin_count(model, kept, Path(settings["work"]))
    small_vlm.save(arguments.folder, model, name="sharpened")


def more_slots(model: SmallVLM) -> None:
    """Widen the places of words; new ones begin as they are without training."""
    old, projector = model.config.projector, model.projector
    new = replace(old, whole=WHOLE, quarter=QUARTER)
    places = torch.zeros(new.tokens, projector.places.shape[1])
    places[:3] = projector.places[:3]
    begins = [(3, 3, old.whole)]
    begins += [(3 + old.whole + k * old.quarter, 3 + new.whole + k * new.quarter, old.quarter)
               for k in range(4)]  # fmt: skip
    for theirs, ours, count in begins:
        places[ours : ours + count] = projector.places[theirs : theirs + count]
    projector.places = nn.Parameter(places, requires_grad=False)
    projector.config = new
    model.config = replace(model.config, projector=new)


def begin_count(model: SmallVLM, kept: FeatureCache, work: Path) -> None:
    """How many objects a picture has, from the directions of its five looks."""
    namer, projector = model.namer, model.projector
    inputs, wanted = [], []
    for path in sorted(work.glob("train-*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            address = line["messages"][0]["content"][0]["image_url"]["url"]
            features = kept.get(picture_key(work / address))
            if line["objects"] and features is not None:
                standard = ((features[:, 0].float() - namer.mean) / namer.deviation).clamp(-6, 6)
                inputs.append((standard @ namer.reduce.T).flatten())
                wanted.append(len(line["objects"]))
    rows, targets = torch.stack(inputs), torch.tensor(wanted)
    fit, test = torch.arange(len(rows)) % 5 != 0, torch.arange(len(rows)) % 5 == 0
    torch.manual_seed(0)
    layer = nn.Linear(rows.shape[1], len(NUMBERS))
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=2e-3, weight_decay=0.3)
    for step in range(241):
        drawn = F.dropout(rows[fit], 0.5)
        loss = F.cross_entropy(layer(drawn), targets[fit])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 0:
            right = accuracy(layer, rows[test], targets[test])
            print(f"count, step {step}: {loss.item():.3f}, others {right:.3f} right", flush=True)
    with torch.no_grad():
        projector.count.weight.copy_(layer.weight)
        projector.count.bias.copy_(layer.bias)


def accuracy(layer: nn.Linear, rows: Tensor, targets: Tensor) -> float:
    """Share of right answers."""
    return float((layer(rows).argmax(dim=1) == targets).float().mean())


if __name__ == "__main__":
    main()
