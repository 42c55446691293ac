"""The loader: what is in its batches, in which order, and how it goes on."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from captioned import (
    caption,
    numbers_of,
    photograph,
    picture,
    preprocessor,
    sample,
    take,
    tokenizer,
    write_shards,
    write_tar,
)

from chiasm.errors import ConfigurationError, UnusableData
from chiasm.media import Image, open_image
from chiasm.media.limits import Limits
from chiasm.models.patches import PatchBatch
from chiasm.models.preprocess import NaFlexPreprocessor
from chiasm.training import decoding
from chiasm.training.ahead import Ahead
from chiasm.training.augment import Augmentation, apply, draw
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.loader import Loader, open_loader
from chiasm.training.samples import Batch

INTERRUPTED = Path(__file__).with_name("interrupted_loader.py")
SMALL = {"shuffle_buffer": 16, "bucket_batches": 2, "threads": 2}


def loader(source: Path, *, batch_size: int = 4, **options: Any) -> Loader:
    """Open with small blocks. options: of the recipe, or of `open_loader`."""
    names = ("rank", "world_size", "seed", "epochs")
    outer = {name: options.pop(name) for name in names if name in options}
    return open_loader(
        DataRecipe(source=str(source), **{**SMALL, **options}),
        preprocessor=options.get("preprocessor", preprocessor()),
        tokenizer=tokenizer(),
        batch_size=batch_size,
        **outer,
    )


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def same(one: Batch, other: Batch) -> bool:
    """Bit for bit."""
    names = ("pixels", "ids", "mask", "image_groups", "text_groups")
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    return tensors and one.keys == other.keys


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of 60 samples in all, of unequal sizes."""
    folder = tmp_path_factory.mktemp("shards")
    assert write_shards(folder, [10, 12, 9, 13, 7, 9]) == 60
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 pictures."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for number in range(60):
        (folder / f"{number:05d}.jpg").write_bytes(picture(number))
        rows.append(json.dumps({"file": f"{number:05d}.jpg", "caption": caption(number)}))
    (folder / "table.jsonl").write_text("\n".join(rows))
    return folder / "table.jsonl"


@pytest.fixture(params=["shards", "table"])
def source(request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


# What is in a batch -----------------------------------------------------------------------------


def test_pictures_texts_and_names_belong_together(source: Path) -> None:
    for batch in take(loader(source), 20):
        numbers = numbers_of(batch.pixels)
        assert [int(key[:5]) for key in batch.keys] == numbers
        assert batch.pixels.shape == (4, 3, 8, 8)
        assert (batch.pixels.dtype, batch.ids.dtype) == (torch.float32, torch.int64)
        rows = zip(batch.ids, batch.mask, numbers, strict=True)
        for ids, mask, number in rows:
            assert ids[mask].tolist() == [int(word[1:]) + 2 for word in caption(number).split()]
        assert batch.image_groups.tolist() == batch.text_groups.tolist()
        assert len(set(batch.image_groups.tolist())) == 4


def test_padding_reaches_to_the_longest_text_only(source: Path) -> None:
    lengths = [batch.mask.sum(dim=1) for batch in take(loader(source), 15)]
    for batch, length in zip(take(loader(source), 15), lengths, strict=True):
        assert batch.ids.shape[1] == length.max()


def test_bucketing_pads_less_and_loses_nothing(source: Path) -> None:
    def padding(bucket_batches: int) -> float:
        batches = take(loader(source, bucket_batches=bucket_batches, shuffle_buffer=60), 15)
        assert len(set(keys(batches))) == 60
        return sum(int((~batch.mask).sum()) for batch in batches)

    # Sorted as a whole, 15 batches of 4 with 7 lengths have at most one mixed batch a length.
    assert padding(15) <= 6 * 3 * 6
    assert padding(15) < padding(1) / 3


def test_batches_of_a_bucket_come_in_a_random_order(shards: Path) -> None:
    batches = take(loader(shards, bucket_batches=15, shuffle_buffer=60), 15)
    widths = [batch.ids.shape[1] for batch in batches]
    assert widths != sorted(widths)
    assert widths != sorted(widths, reverse=True)


def test_a_tokenizer_of_fixed_length_decides_itself(shards: Path) -> None:
    """SigLIP's: every text is as long as the model's table of positions, padding is looked at."""
    fixed = tokenizer(fixed_length=True, max_length=9)
    stream = open_loader(
        DataRecipe(source=str(shards)), preprocessor=preprocessor(), tokenizer=fixed, batch_size=4
    )
    [batch] = take(stream, 1)
    texts = [caption(number) for number in numbers_of(batch.pixels)]
    assert torch.equal(batch.ids, fixed(texts).ids)
    assert batch.mask.all()


def test_naflex_pictures_become_patches(shards: Path) -> None:
    naflex = NaFlexPreprocessor(4, 16, "bilinear", 1 / 255, (0, 0, 0), (1, 1, 1))
    stream = open_loader(
        DataRecipe(source=str(shards)), preprocessor=naflex, tokenizer=tokenizer(), batch_size=4
    )
    [batch] = take(stream, 1)
    assert isinstance(batch.pixels, PatchBatch)
    images = [open_image(picture(int(key)), shortest_side=24) for key in batch.keys]
    assert torch.equal(batch.pixels.patches, naflex(images).patches)


# Captions, groups, hard negatives ---------------------------------------------------------------


def make(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_tar(path / "a.tar", [sample(n, **row) for n, row in enumerate(rows)])


def test_one_caption_an_epoch_is_drawn_from_several(tmp_path: Path) -> None:
    path = make(tmp_path, [{"caption": [f"w{10 * n + k}" for k in range(3)]} for n in range(4)])
    drawn = Counter()
    for batch in take(loader(path), 30):
        assert len(batch.ids) == 4
        for key, ids in zip(batch.keys, batch.ids[:, 0].tolist(), strict=True):
            assert (ids - 2) // 10 == int(key)
            drawn[ids] += 1
    assert len(drawn) == 12
    assert min(drawn.values()) >= 2


def test_all_captions_share_their_pictures_group(tmp_path: Path) -> None:
    rows = [{"caption": ["w1", "w2", "w3"]}, {"caption": ["w4"]}, {"caption": ["w5", "W3 "]}]
    [batch] = take(loader(make(tmp_path, rows), batch_size=3, captions="all", shuffle=False), 1)
    assert batch.keys == ("00000", "00001", "00002")
    assert batch.ids[:, 0].tolist() == [3, 4, 5, 6, 7, 1]
    first, second, third = batch.image_groups.tolist()
    assert batch.text_groups.tolist() == [first] * 3 + [second] + [third] * 2
    assert first == third, "they share the caption w3"
    assert first != second


def test_equal_captions_skus_and_duplicates_are_positives(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"caption": "w1  w2"},
        {"caption": "W1 w2"},
        {"caption": "w3", "sku": 5},
        {"caption": "w4", "sku": "5"},
        {"caption": "w5"},
        {"caption": "w6", "duplicate_of": "00004"},
        {"caption": "w7"},
        {"caption": "5", "sku": "6"},
    ]
    [batch] = take(loader(make(tmp_path, rows), batch_size=8, shuffle=False), 1)
    groups = batch.image_groups.tolist()
    assert batch.text_groups.tolist() == groups
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert groups[4] == groups[5]
    assert len(set(groups)) == 5
    assert all(0 <= group < 2**63 for group in groups)


def test_groups_are_the_same_in_every_batch_and_rank(tmp_path: Path) -> None:
    path = make(tmp_path, [{"caption": f"w{n // 2}", "sku": None} for n in range(8)])
    seen: dict[str, set[int]] = {}
    for rank in range(2):
        for batch in take(loader(path, batch_size=2, rank=rank, world_size=2), 8):
            for key, group in zip(batch.keys, batch.image_groups.tolist(), strict=True):
                seen.setdefault(key, set()).add(group)
    assert all(len(groups) == 1 for groups in seen.values())
    assert all(seen[f"{n:05d}"] == seen[f"{n + 1:05d}"] for n in range(0, 8, 2))


def test_hard_negatives_are_texts_of_no_picture(tmp_path: Path) -> None:
    rows = [
        {"caption": "w1", "hard_negatives": ["w11", "w12"]},
        {"caption": "w2", "hard_negatives": ["w1", "w11"]},
        {"caption": "w3"},
    ]
    path = make(tmp_path, rows)
    [batch] = take(loader(path, batch_size=3, hard_negatives=9, shuffle=False), 1)
    # Another picture's caption is a negative already, and a text stands there once.
    assert batch.ids[:, 0].tolist() == [3, 4, 5, 13, 14]
    assert batch.text_groups[:3].tolist() == batch.image_groups.tolist()
    assert len(set(batch.text_groups.tolist())) == 5
    assert len(take(loader(path, batch_size=3, hard_negatives=0), 1)[0].ids) == 3
    drawn = Counter()
    for batch in take(loader(path, batch_size=3, hard_negatives=1), 20):
        drawn.update(batch.ids[3:, 0].tolist())
    assert set(drawn) == {13, 14}


def test_marked_samples_are_left_out_when_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{} for _ in range(8)]
    rows[2] = {"contaminated_by": "test/1.png"}
    rows[5] = {"duplicate_of": "00001"}
    path = make(tmp_path, rows)
    assert len(set(keys(take(loader(path, batch_size=2), 4)))) == 8
    stream = loader(path, batch_size=2, leave_out=("contaminated", "duplicates"))
    assert sorted(keys(take(stream, 3))) == [f"{n:05d}" for n in (0, 1, 3, 4, 6, 7)]
    assert stream.left_out == {"contaminated": 1, "duplicates": 1}


# Order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_sample_once_an_epoch(source: Path, workers: int) -> None:
    """60 samples over 2 ranks and their workers: 15 batches of 2 each, five epochs over."""
    lanes = 2 * max(1, workers)
    streams = [
        loader(source, rank=rank, world_size=2, batch_size=2, workers=workers, epochs=2)
        for rank in range(2)
    ]
    assert all(stream.samples == 60 and stream.batches_per_epoch == 15 for stream in streams)
    batches = [list(stream) for stream in streams]
    assert [len(each) for each in batches] == [30, 30]
    if 60 % (lanes * 2) == 0:
        first = keys(batches[0][:15]) + keys(batches[1][:15])
        assert len(set(first)) == 60
    assert set(Counter(keys(batches[0] + batches[1])).values()) == {2}


def test_without_counts_every_sample_is_still_seen_once(shards: Path) -> None:
    """Four lanes, six shards: four whole ones, two that all read in stripes."""
    seen: Counter[str] = Counter()
    for rank in range(4):
        stream = loader(shards, rank=rank, world_size=4, batch_size=1)
        assert stream.samples is None
        for batch in stream:
            if stream.epoch:
                break
            seen.update(batch.keys)
    assert len(seen) == 60
    assert set(seen.values()) == {1}


def test_epochs_need_a_number_of_samples(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/data/0.tar", (shards / "00000.tar").read_bytes())
    try:
        with pytest.raises(ConfigurationError, match="not known"):
            open_loader(
                DataRecipe(source="memory://data/0.tar"),
                preprocessor=preprocessor(),
                tokenizer=tokenizer(),
                batch_size=2,
                epochs=1,
            )
    finally:
        memory.rm("/data", recursive=True)


def test_order_follows_seed_and_epoch_alone(source: Path) -> None:
    one = take(loader(source, threads=1, prefetch=1), 30)
    other = take(loader(source, threads=4, prefetch=5), 30)
    assert all(map(same, one, other))
    worker = take(loader(source, workers=1), 30)
    assert all(map(same, one, worker))
    assert keys(one[:15]) != keys(one[15:])
    assert sorted(keys(one[:15])) == sorted(keys(one[15:]))
    assert keys(one) != keys(take(loader(source, seed=1), 30))
    assert keys(one[:15]) != sorted(keys(one[:15]))


def test_without_shuffling_samples_come_as_they_lie(source: Path) -> None:
    found = keys(take(loader(source, shuffle=False), 30))
    assert [int(key[:5]) for key in found] == [*range(60), *range(60)]


def test_a_small_memory_bound_changes_blocks_not_samples(shards: Path) -> None:
    stream = open_loader(
        DataRecipe(source=str(shards), shuffle_megabytes=1),
        preprocessor=preprocessor(),
        tokenizer=tokenizer(),
        batch_size=4,
    )
    assert len(set(keys(take(stream, 15)))) == 60


# Going on ---------------------------------------------------------------------------------------


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(state))
    return copy


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [3, 7])
def test_going_on_is_exact_from_every_batch(source: Path, workers: int, batch_size: int) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    options["augment"] = Augmentation(crop_area=0.3, flip=0.5, brightness=0.2)
    whole = loader(source, **options)
    batches, states = [], [whole.state_dict()]
    for batch in whole:
        batches.append(batch)
        states.append(through_json(whole.state_dict()))
        if len(batches) == 24:
            break
    for done in range(0, 21) if workers == 0 else (0, 1, 5, 8):
        again = loader(source, **options)
        again.load_state_dict(states[done])
        for number, batch in enumerate(take(again, 3), start=done):
            assert same(batch, batches[number]), (done, number)
        assert again.state_dict() == states[done + 3]


def test_a_second_iterator_goes_on_where_the_first_stopped(shards: Path) -> None:
    expected = keys(take(loader(shards), 9))
    stream = loader(shards)
    assert keys(take(stream, 4)) + keys(take(stream, 5)) == expected


def test_going_on_decodes_nothing_that_was_delivered(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = loader(shards, threads=1, prefetch=1, shuffle_buffer=60, bucket_batches=15)
    delivered = keys(take(stream, 10))
    again = loader(shards, threads=1, prefetch=1, shuffle_buffer=60, bucket_batches=15)
    again.load_state_dict(stream.state_dict())
    opened: list[str] = []

    def watched(source: Any, **options: Any) -> Any:
        opened.append(options["name"])
        return open_image(source, **options)

    monkeypatch.setattr(decoding, "open_image", watched)
    following = keys(take(again, 3))
    assert set(following) <= set(opened)
    assert not set(opened) & set(delivered)


def damaged_shards(folder: Path) -> Path:
    """Of 60 samples in 5 shards, eleven are damaged, some before and some after decoding."""
    for shard in range(5):
        samples = [sample(n) for n in range(shard * 12, shard * 12 + 12)]
        samples[3][f"{shard * 12 + 3:05d}.jpg"] = picture(9)[:-200]
        samples[shard + 4][f"{shard * 13 + 4:05d}.json"] = b"{"
        write_tar(folder / f"{shard}.tar", samples)
    path = folder / "2.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    return folder


def test_going_on_is_exact_with_damaged_samples(tmp_path: Path) -> None:
    folder = damaged_shards(tmp_path)
    options: dict[str, Any] = {"max_damaged_share": 0.5, "batch_size": 5}
    whole = loader(folder, **options)
    batches, states = [], [whole.state_dict()]
    for batch in whole:
        batches.append(batch)
        states.append(through_json(whole.state_dict()))
        if len(batches) == 28:
            break
    assert all(len(batch.keys) == 5 for batch in batches)
    for done in range(26):
        again = loader(folder, **options)
        again.load_state_dict(states[done])
        [batch, _] = take(again, 2)
        assert same(batch, batches[done])
        assert again.state_dict() == states[done + 2]
    assert whole.skipped["broken image"] >= 8
    assert whole.skipped["unreadable JSON"] >= 8
    assert whole.skipped["shard cut short"] >= 1


@pytest.mark.parametrize("change", [{"world_size": 3, "workers": 0}, {"workers": 2}])
def test_going_on_with_other_ranks_or_workers(source: Path, change: dict[str, int]) -> None:
    """Nothing fails, what was read by all is not read again, and the next epoch is whole."""
    before = loader(source, world_size=2, batch_size=2, epochs=9)
    seen = set(keys(take(before, 10)))
    other = loader(source, **{"world_size": 2, "batch_size": 2, "epochs": 9, **change})
    other.load_state_dict(through_json(before.state_dict()))
    following = []
    for batch in other:
        if other.epoch:
            break
        following += batch.keys
    assert len(following) < 60 / (change.get("world_size") or 2)
    again = set(following) & seen
    assert len(again) <= 16 + 13, "at most a block and a shard"


def test_a_position_in_other_data_is_refused(shards: Path, table: Path) -> None:
    state = loader(shards).state_dict()
    with pytest.raises(ConfigurationError, match="other data"):
        loader(table).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="another seed"):
        loader(shards, seed=3).load_state_dict(state)


# Damage -----------------------------------------------------------------------------------------


def test_damaged_pictures_are_replaced_and_counted(tmp_path: Path) -> None:
    samples = [sample(n) for n in range(40)]
    samples[3]["00003.jpg"] = picture(3)[:300]
    samples[11]["00011.jpg"] = b"no picture at all"
    samples[20]["00020.jpg"] = picture(20, side=200)
    path = write_tar(tmp_path / "a.tar", samples)
    stream = loader(path, limits=Limits(max_pixels=10_000))
    batches = take(stream, 18)
    found = Counter(keys(batches[:9]))
    assert set(found.values()) == {1}
    assert len(found) == 36
    assert not {"00003", "00011", "00020"} & set(found)
    assert all(len(batch.keys) == 4 for batch in batches)
    assert stream.skipped == {"broken image": 2, "not a picture": 2, "too large": 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_too_much_damage_stops_with_the_reasons(tmp_path: Path, workers: int) -> None:
    samples = [sample(n) for n in range(40)]
    for number in (0, 1, 6, 7, 12, 13, 22, 23, 30, 31):  # as many in each of two stripes
        samples[number][f"{number:05d}.jpg"] = b"no picture at all"
    path = write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(UnusableData, match=r"of \d+ samples.*not a picture \(as in 000"):
        take(loader(path, workers=workers), 40)
    with pytest.raises(UnusableData, match="could not be read"):
        list(loader(path, workers=workers, epochs=1, max_damaged_share=0.2, batch_size=10))
    stream = loader(path, workers=workers, max_damaged_share=0.3)
    assert len(take(stream, 40)) == 40
    gc.collect()


def test_too_much_damage_stops_long_before_the_end(tmp_path: Path) -> None:
    one = sample(1)
    good = [{f"{n}.jpg": one["00001.jpg"], f"{n}.txt": b"w1"} for n in range(1000)]
    bad = [{f"{n}.jpg": one["00001.jpg"]} for n in range(1000, 3000)]
    path = write_tar(tmp_path / "a.tar", [*good, *bad])
    stream = loader(path, shuffle=False, batch_size=50)
    with pytest.raises(UnusableData, match=r"no caption \(as in .*a\.tar: 1000\)"):
        take(stream, 61)


@pytest.mark.parametrize("kind", ["pictures", "captions", "missing", "left out"])
def test_nothing_readable_is_an_error_not_a_loop(tmp_path: Path, kind: str) -> None:
    samples = [sample(n, duplicate_of="x") for n in range(6)]
    path = tmp_path / "a.tar"
    for number, files in enumerate(samples):
        if kind == "pictures":
            files[f"{number:05d}.jpg"] = b"?"
        if kind == "captions":
            del files[f"{number:05d}.json"], files[f"{number:05d}.txt"]
    if kind != "missing":
        write_tar(path, samples)
    options: dict[str, Any] = {"max_damaged_share": 1.0}
    if kind == "left out":
        options["leave_out"] = ("duplicates",)
    with pytest.raises(UnusableData, match="Not one sample"):
        take(loader(path, **options), 1)


def test_fewer_samples_than_a_batch_still_train(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [sample(n) for n in range(3)])
    batches = take(loader(path, batch_size=8), 3)
    assert all(len(batch.keys) == 8 for batch in batches)
    assert set(Counter(keys(batches)).values()) == {8}


def test_more_readers_than_samples_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [sample(n) for n in range(2)])
    with pytest.raises(UnusableData, match="Not one sample"):
        take(loader(path, rank=3, world_size=4), 1)


# Pictures ---------------------------------------------------------------------------------------


def test_augmentation_depends_on_seed_epoch_and_sample_alone(shards: Path) -> None:
    augment = Augmentation(crop_area=0.2, flip=0.5, brightness=0.4, contrast=0.3, saturation=0.3)

    def pictures(**options: Any) -> dict[str, Any]:
        stream = loader(shards, augment=augment, **options)
        batches = take(stream, 60 // stream.batch_size)
        return {
            key: pixels
            for batch in batches
            for key, pixels in zip(batch.keys, batch.pixels, strict=True)
        }

    one, other = pictures(batch_size=4), pictures(batch_size=10, shuffle_buffer=33)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    changed = pictures(seed=1)
    assert sum(not torch.equal(one[key], changed[key]) for key in one) > 50


def test_crops_and_mirrors_are_parts_of_the_picture() -> None:
    """A gradient shows which part was kept, and which way round it is."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3)).copy()
    image = Image(ramp, original_size=(200, 100))
    augmentation = Augmentation(crop_area=0.25, crop_aspect=1.5, flip=0.5)
    mirrored, spans = 0, []
    for number in range(200):
        change = draw(augmentation, random.Random(number))
        row = apply(image, change, preprocessor(16)).astype(float)[8, :, 0]
        rising = row[-1] > row[0]
        mirrored += not rising
        # Outermost of 16 samples are half a sample, a thirty-second of the crop, from its edges.
        span = abs(row[-1] - row[0]) * 16 / 15
        assert span == pytest.approx(change.width * 200, abs=4)
        left = min(row[0], row[-1]) - span / 32
        assert left == pytest.approx(change.across * (1 - change.width) * 200, abs=4)
        assert change.width * change.height * 1.001 >= 0.25 / 1.5
        spans.append(change.width)
    assert 60 < mirrored < 140
    assert min(spans) < 0.55
    assert max(spans) == 1.0
    assert draw(Augmentation(), random.Random(1)).width == 1.0


def test_a_crop_is_letterboxed_as_the_whole_picture_would_be() -> None:
    image = Image(np.full((100, 200, 3), 90, np.uint8), original_size=(200, 100))
    boxed = replace(preprocessor(16), letterbox=(255, 255, 255))
    change = replace(draw(Augmentation(), random.Random(0)), width=1.0, height=0.5)
    pixels = apply(image, change, boxed)
    inside = (pixels == 90).all(axis=2)
    assert inside.sum(axis=0).tolist() == [4] * 16  # 200 × 50 in 16 × 16
    assert (pixels[~inside] == 255).all()


def test_decoding_small_is_close_to_decoding_in_full(tmp_path: Path) -> None:
    data = photograph(1200, 900)
    path = write_tar(tmp_path / "a.tar", [{"0.jpg": data, "0.txt": b"w1"}])
    found = {}
    for slack in (0.0, 1.5):
        stream = open_loader(
            DataRecipe(source=str(path), decode_slack=slack),
            preprocessor=preprocessor(224),
            tokenizer=tokenizer(),
            batch_size=1,
        )
        found[slack] = take(stream, 1)[0].pixels
    difference = (found[0.0] - found[1.5]).abs().mean() * 255
    assert 0 < difference < 1.5, "decoded at another scale, seen the same"


# Threads and processes --------------------------------------------------------------------------


def test_a_dropped_iterator_leaves_no_thread_behind(shards: Path) -> None:
    before = set(threading.enumerate())
    stream = loader(shards)
    iterator = iter(stream)
    next(iterator)
    assert set(threading.enumerate()) > before
    del iterator
    gc.collect()
    assert set(threading.enumerate()) <= before
    iterator = iter(stream)
    next(iterator)
    stream.close()
    assert set(threading.enumerate()) <= before
    del iterator


def test_workers_leave_torchs_random_numbers_alone(shards: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    take(loader(shards, workers=2), 3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unexpected_error_reaches_the_caller(
    shards: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(decoding, "open_image", fail)
    with pytest.raises(Exception, match="boom"):
        take(loader(shards, workers=workers), 1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_ends_the_process_at_once(shards: Path, workers: int) -> None:
    """Ctrl-C goes to all processes of a terminal's group."""
    process = subprocess.Popen(
        [sys.executable, str(INTERRUPTED), str(shards), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (1, -signal.SIGINT)
    assert "KeyboardInterrupt" in said


def test_keys_that_repeat_across_shards_join_nothing(tmp_path: Path) -> None:
    """Unless a duplicate names one, a key says nothing about what a picture is of."""
    for shard in range(2):
        files = {"0.jpg": picture(shard), "0.txt": caption(shard).encode()}
        write_tar(tmp_path / f"{shard}.tar", [files])
    [batch] = take(loader(tmp_path, batch_size=2), 1)
    assert batch.keys == ("0", "0")
    assert len(set(batch.image_groups.tolist())) == 2


def test_reading_ahead_stops_at_its_bound() -> None:
    """No more is begun than there is room for: a block of shards can be half a gigabyte."""
    begun: list[int] = []

    def items() -> Any:
        for number in range(100):
            begun.append(number)
            yield number

    ahead = Ahead(items(), 2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(begun) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # more would come now, if it did
    assert begun == [0, 1, 2]
    assert list(ahead) == list(range(1, 100))
    ahead.close()
