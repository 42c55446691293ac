"""`per_group`: pictures of one group meet in a batch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from captioned import picture, preprocessor, take, tokenizer

from chiasm.training.data_recipe import DataRecipe
from chiasm.training.loader import Loader, open_loader


def table(folder: Path, groups: int, views: int) -> Path:
    """`groups` things, each in `views` pictures, whose captions differ in length."""
    rows = []
    for number in range(groups * views):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        words = " ".join(["w1"] * (1 + number % 5))
        rows.append({"file": f"{number}.jpg", "text": words, "sku": f"sku {number // views}"})
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def loader(path: Path, per_group: int) -> Loader:
    return open_loader(
        DataRecipe(source=str(path), per_group=per_group, shuffle_buffer=60, bucket_batches=3),
        preprocessor=preprocessor(),
        tokenizer=tokenizer(),
        batch_size=10,
    )


def met(batches: list) -> float:
    """Share of the pictures that have another of their group in their batch."""
    counts = [Counter(_sku(key) for key in batch.keys) for batch in batches]
    together = sum(n for count in counts for n in count.values() if n > 1)
    return together / sum(len(batch.keys) for batch in batches)


def _sku(key: str) -> int:
    return int(Path(key).stem) // 2


def test_pictures_of_a_group_come_in_pairs(tmp_path: Path) -> None:
    path = table(tmp_path, groups=30, views=2)
    pairs = take(loader(path, 2), 6)
    assert met(pairs) == 1.0
    assert met(take(loader(path, 1), 6)) < 0.6
    assert sorted(key for batch in pairs for key in batch.keys) == sorted(
        {key for batch in take(loader(path, 1), 6) for key in batch.keys}
    )


def test_an_odd_view_is_not_lost(tmp_path: Path) -> None:
    path = table(tmp_path, groups=12, views=5)
    batches = take(loader(path, 2), 6)
    assert len({key for batch in batches for key in batch.keys}) == 60


def test_going_on_is_exact(tmp_path: Path) -> None:
    path = table(tmp_path, groups=13, views=5)  # 65 pictures: some go over into the next epoch
    whole = take(loader(path, 2), 16)
    first = loader(path, 2)
    take(first, 9)
    second = loader(path, 2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for one, other in zip(take(second, 7), whole[9:], strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.ids, other.ids)
