"""`chiasm shards build`: what is in the shards, what is marked, and what a kill leaves behind."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from captioned import numbers_of, picture, preprocessor, take, tokenizer
from typer.testing import CliRunner

from chiasm.cli import app
from chiasm.errors import ConfigurationError, InvalidRequest, NoSpace, UnusableData
from chiasm.media import Image
from chiasm.training import shard_files
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.loader import open_loader
from chiasm.training.near_duplicates import MAX_DISTANCE, Look, Looks
from chiasm.training.shard_report import ShardRecipe, ShardReport
from chiasm.training.shard_writer import build_shards

WRITER = Path(__file__).with_name("killed_shard_writer.py")


def scene(seed: int, side: int = 160) -> PIL.Image.Image:
    """A picture with structure, unlike that of any other seed."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((side, side * 3 // 4), PIL.Image.Resampling.BICUBIC)


def encoded(image: PIL.Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_table(folder: Path, pictures: dict[str, bytes], **columns: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, data) in enumerate(pictures.items()):
        (folder / name).write_bytes(data)
        more = {column: values[number] for column, values in columns.items()}
        rows.append(json.dumps({"file": name, "caption": f"picture {name}"} | more))
    (folder / "table.jsonl").write_text("\n".join(rows))
    return folder / "table.jsonl"


def build(source: Path, out: Path, **options: Any) -> ShardReport:
    return build_shards(DataRecipe(source=str(source), threads=2), out, ShardRecipe(**options))


def contents(out: Path) -> dict[str, dict[str, bytes]]:
    """key → suffix → bytes, by Python's own tar reader."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[suffix] = file.read()
    return found


def described(out: Path) -> list[dict[str, Any]]:
    return [json.loads(files["json"]) for files in contents(out).values()]


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What is written --------------------------------------------------------------------------------


def test_bytes_captions_and_fields_arrive_unchanged(tmp_path: Path) -> None:
    pictures = {
        "a.jpg": encoded(scene(1)),
        "b.jpg": encoded(scene(2), "PNG"),  # told by its bytes, not by its name
        "c.c.webp": encoded(scene(3), "WEBP"),
    }
    table = write_table(
        tmp_path / "in",
        pictures,
        sku=[1, "x", None],
        hard_negatives=[["no"], [], None],
        label=[None, "ball", None],
    )
    report = build(table, tmp_path / "out")
    assert (report.samples, report.shards, report.skipped) == (3, 1, {})
    found = contents(tmp_path / "out")
    assert list(found) == ["000000000", "000000001", "000000002"]
    assert [sorted(files) for files in found.values()] == [
        ["jpg", "json", "txt"],
        ["json", "png", "txt"],
        ["json", "txt", "webp"],
    ]
    assert found["000000001"]["png"] == pictures["b.jpg"]
    assert found["000000000"]["txt"] == b"picture a.jpg"
    assert described(tmp_path / "out")[0] == {
        "key": "000000000",
        "source": "a.jpg",
        "caption": "picture a.jpg",
        "group": "1",
        "hard_negatives": ["no"],
        "width": 160,
        "height": 120,
    }


def test_the_manifest_tells_what_there_is(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", {f"{n}.jpg": encoded(scene(n)) for n in range(10)})
    report = build(table, tmp_path / "out", samples_per_shard=4)
    manifest = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert (manifest["samples"], report.shards) == (10, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.tar", "00001.tar", "00002.tar", "shards.json",
    ]  # fmt: skip
    total = 0
    for entry, samples in zip(manifest["shards"], (4, 4, 2), strict=True):
        path = tmp_path / "out" / entry["name"]
        total += path.stat().st_size
        assert entry == {
            "name": path.name,
            "samples": samples,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    assert report.bytes == total


def test_a_bound_on_bytes_closes_shards(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", {f"{n}.jpg": encoded(scene(n)) for n in range(12)})
    report = build(table, tmp_path / "out", shard_bytes=15_000)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert report.shards == len(sizes) >= 3
    assert all(15_000 <= size <= 31_000 for size in sizes[:-1])


def test_pictures_are_written_anew_when_asked(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x010E] = "a secret place"
    pictures = {
        "large.jpg": encoded(scene(1, 400), exif=exif),
        "small.png": encoded(scene(2, 80), "PNG"),
    }
    table = write_table(tmp_path / "in", pictures)
    build(table, tmp_path / "out", longest_side=100, quality=70)
    found = contents(tmp_path / "out")
    sizes = [PIL.Image.open(io.BytesIO(files["jpg"])).size for files in found.values()]
    assert sizes == [(100, 75), (80, 60)]
    assert [(each["width"], each["height"]) for each in described(tmp_path / "out")] == sizes
    assert b"secret" not in found["000000000"]["jpg"]
    expected = np.asarray(scene(1, 400).resize((100, 75)), dtype=float)
    written = PIL.Image.open(io.BytesIO(found["000000000"]["jpg"]))
    assert np.abs(np.asarray(written, dtype=float) - expected).mean() < 4


def test_the_loader_reads_what_was_written(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", {f"{n}.png": picture(n, kind="PNG") for n in range(12)})
    build(table, tmp_path / "out", samples_per_shard=5, near_duplicates="keep")
    stream = open_loader(
        DataRecipe(source=str(tmp_path / "out")),
        preprocessor=preprocessor(),
        tokenizer=tokenizer(),
        batch_size=4,
    )
    assert stream.samples == 12
    batches = take(stream, 3)
    assert sorted(number for batch in batches for number in numbers_of(batch.pixels)) == list(
        range(12)
    )
    for batch in batches:
        assert [int(key) for key in batch.keys] == numbers_of(batch.pixels)


def test_what_cannot_be_used_is_skipped_counted_and_named(tmp_path: Path) -> None:
    pictures = {
        "a.jpg": encoded(scene(1)),
        "b.jpg": encoded(scene(2))[:600],
        "c.jpg": b"?",
        "d.jpg": b"",
        "e.jpg": encoded(scene(5)),
    }
    table = write_table(tmp_path / "in", pictures)
    with table.open("a") as file:
        file.write('\n{"file": "f.jpg", "caption": "gone"}\n{"file": "a2.jpg", "caption": ""}\n{')
    report = build(table, tmp_path / "out")
    assert report.samples == 2
    assert report.skipped == {
        "broken image": 1,
        "not a picture": 1,
        "picture cannot be opened": 2,
        "empty caption": 1,
        "unreadable JSON": 1,
    }
    assert ("b.jpg", "broken image") in report.failures
    # Numbers are those of the source, so nothing that is mended later renumbers the rest.
    assert list(contents(tmp_path / "out")) == ["000000000", "000000004"]


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", {"a.jpg": b"?", "b.jpg": b"?"})
    with pytest.raises(UnusableData, match=r"Not one sample.*2 not a picture"):
        build(table, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar*"))


# Near duplicates and contamination --------------------------------------------------------------


def variants(image: PIL.Image.Image) -> list[bytes]:
    """The same picture to an eye."""
    brighter = PIL.Image.fromarray((np.asarray(image) * 0.98 + 4).astype(np.uint8))
    return [
        encoded(image, quality=30),
        encoded(image.resize((80, 60)), "PNG"),
        encoded(brighter, "WEBP"),
    ]


def test_near_duplicates_are_marked_with_the_first(tmp_path: Path) -> None:
    pictures = {f"{n}.jpg": encoded(scene(n)) for n in range(8)}
    for number, data in enumerate(variants(scene(3))):
        pictures[f"again{number}.jpg"] = data
    table = write_table(tmp_path / "in", pictures)
    report = build(table, tmp_path / "out", samples_per_shard=4)
    assert (report.samples, report.near_duplicates) == (11, 3)
    marks = [each.get("duplicate_of") for each in described(tmp_path / "out")]
    assert marks == [None] * 8 + ["000000003"] * 3
    report = build(table, tmp_path / "skipped", near_duplicates="skip")
    assert (report.samples, report.near_duplicates) == (8, 3)
    report = build(table, tmp_path / "kept", near_duplicates="keep")
    assert (report.samples, report.near_duplicates) == (11, 0)


def test_flat_pictures_of_different_colours_are_not_duplicates(tmp_path: Path) -> None:
    """Their perceptual hashes are all 0."""
    pictures = {
        f"{n}.png": encoded(PIL.Image.new("RGB", (64, 64), (n * 30, 90, 200 - n * 30)), "PNG")
        for n in range(5)
    }
    table = write_table(tmp_path / "in", pictures)
    assert build(table, tmp_path / "out").near_duplicates == 0


def test_looking_up_is_what_comparing_one_by_one_is() -> None:
    """Against a plain loop over all pictures seen so far."""
    chance = random.Random(5)
    looks = Looks()
    seen: list[tuple[str, int, bytes]] = []
    smalls = [bytes(chance.randrange(256) for _ in range(192)) for _ in range(3)]
    for number in range(3000):
        value = chance.getrandbits(64)
        if seen and chance.random() < 0.5:
            value = chance.choice(seen)[1]
            for bit in chance.sample(range(64), chance.randrange(MAX_DISTANCE + 4)):
                value ^= 1 << bit
        look = Look(value, chance.choice(smalls))
        expected = next(
            (
                name
                for name, known, small in seen
                if (known ^ value).bit_count() <= MAX_DISTANCE and small == look.small
            ),
            None,
        )
        assert looks.first_like(look) == expected
        looks.add(str(number), look)
        seen.append((str(number), value, look.small))


def test_a_small_look_survives_the_scale_of_decoding() -> None:
    image = scene(4, 640)
    large = Look.of(Image(np.asarray(image), original_size=image.size))
    half = image.reduce(4)
    small = Look.of(Image(np.asarray(half), original_size=image.size))
    looks = Looks()
    looks.add("large", large)
    assert looks.first_like(small) == "large"


@pytest.mark.parametrize("kind", ["folder", "table", "shards"])
def test_contamination_is_marked_or_dropped(tmp_path: Path, kind: str) -> None:
    pictures = {f"{n}.jpg": encoded(scene(n)) for n in range(6)}
    table = write_table(tmp_path / "in", pictures)
    held_out = tmp_path / "eval"
    (held_out / "sub").mkdir(parents=True)
    first, second, _ = variants(scene(2))
    (held_out / "x.jpg").write_bytes(first)
    (held_out / "sub" / "y.png").write_bytes(encoded(scene(50), "PNG"))
    names = ["x.jpg", "sub/y.png"]
    evaluation = held_out
    if kind == "table":
        evaluation = held_out / "pictures.csv"  # no captions in it
        evaluation.write_text("image,answer\nx.jpg,1\nsub/y.png,2\n")
    if kind == "shards":
        inside = write_table(tmp_path / "e", {"x.png": second, "y.png": encoded(scene(50), "PNG")})
        build(inside, tmp_path / "e" / "shards")
        evaluation, names = tmp_path / "e" / "shards", ["000000000"]
    report = build(table, tmp_path / "out", contamination=str(evaluation))
    assert (report.samples, report.contaminated) == (6, 1)
    marks = [each.get("contaminated_by") for each in described(tmp_path / "out")]
    assert marks == [None, None, names[0], None, None, None]
    report = build(
        table, tmp_path / "dropped", contamination=str(evaluation), drop_contaminated=True
    )
    assert (report.samples, report.contaminated) == (5, 1)
    assert "2.jpg" not in [each["source"] for each in described(tmp_path / "dropped")]


# Going on, full disks, other folders ------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_run_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    pictures = {f"{n:03d}.jpg": encoded(scene(n % 40)) for n in range(60)}
    pictures["013.jpg"] = b"?"
    table = write_table(tmp_path / "in", pictures)
    command = [sys.executable, str(WRITER), str(table)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    out = tmp_path / "out"
    kept = 0
    for stop_at in (9, 30, 31, 55):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= stop_at:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = sorted(out.glob("*.tar"))
        assert len(finished) >= kept
        kept = len(finished)
        whole = files_of(tmp_path / "whole")
        assert all(files_of(out)[path.name] == whole[path.name] for path in finished)
    assert kept >= 7
    subprocess.run([*command, str(out)], check=True, stdout=subprocess.DEVNULL)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_an_interrupted_build_says_so_and_goes_on(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", {f"{n}.jpg": encoded(scene(n)) for n in range(10)})
    data, recipe = DataRecipe(source=str(table), threads=1), ShardRecipe(samples_per_shard=3)
    stop = threading.Event()

    def progress(done: int, total: int | None) -> None:
        assert total == 10
        if done == 5:
            stop.set()

    report = build_shards(data, tmp_path / "out", recipe, on_progress=progress, stop=stop)
    assert report.interrupted
    assert (report.samples, report.shards) == (3, 1)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert not (tmp_path / "out" / "shards.json").exists()
    report = build_shards(data, tmp_path / "out", recipe)
    assert (report.samples, report.shards, report.kept_shards) == (10, 4, 1)
    again = build_shards(data, tmp_path / "out", recipe)
    assert (again.samples, again.shards, again.kept_shards) == (10, 4, 4)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "in", {f"{n}.jpg": encoded(scene(n)) for n in range(9)})
    written = 0
    original = shard_files._Digesting.write

    def write(self: Any, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 25_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(shard_files._Digesting, "write", write)
        with pytest.raises(NoSpace, match="Finished shards are kept"):
            build(table, tmp_path / "out", samples_per_shard=3)
    finished = [path.name for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert finished == ["00000.tar"]
    build(table, tmp_path / "out", samples_per_shard=3)
    build(table, tmp_path / "whole", samples_per_shard=3)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in", {"0.jpg": encoded(scene(1))})
    other = write_table(tmp_path / "other", {"1.jpg": encoded(scene(1))})
    with pytest.raises(ConfigurationError, match="not empty"):
        build(table, tmp_path / "in")
    build(table, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="other data or with other settings"):
        build(other, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="other data or with other settings"):
        build(table, tmp_path / "out", quality=50)


# The command ------------------------------------------------------------------------------------


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, [*arguments], catch_exceptions=False)


def test_the_command_builds_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "in", {"a.jpg": encoded(scene(1)), "b.jpg": b"?"})
    arguments = ["shards", "build", str(tmp_path / "in"), "--out", "out"]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["samples"], report["skipped"]) == (1, {"not a picture": 1})
    assert report["failures"] == [{"sample": "b.jpg", "reason": "not a picture"}]
    shown = invoke(*arguments)
    assert shown.exit_code == 0
    assert "1 samples in 1 shards" in shown.stdout
    assert "not a picture" in shown.stdout


def test_the_command_passes_its_flags_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for number in range(4):
        (tmp_path / "p" / f"{number}.jpg").write_bytes(encoded(scene(number % 3, 200)))
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "e.jpg").write_bytes(encoded(scene(1, 100)))
    rows = "".join(f"{n}.jpg,words {n},g{n}\n" for n in range(4))
    (tmp_path / "t.csv").write_text("bild,worte,artikel\n" + rows)
    result = invoke(
        "shards", "build", "t.csv", "--out", "out", "--root", "p", "--image-column", "bild",
        "--caption-column", "worte", "--group-column", "artikel", "--samples-per-shard", "2",
        "--longest-side", "50", "--quality", "60", "--near-duplicates", "skip",
        "--contamination", "held", "--drop-contaminated", "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert (report["samples"], report["near_duplicates"], report["contaminated"]) == (2, 1, 1)
    found = described(tmp_path / "out")
    assert [(each["group"], each["width"]) for each in found] == [("g0", 50), ("g2", 50)]


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--drop-contaminated"):
        invoke("shards", "build", str(tmp_path), "--out", "o", "--drop-contaminated")
    with pytest.raises(UnusableData, match="no samples"):
        invoke("shards", "build", str(tmp_path), "--out", str(tmp_path / "o"))


def test_writing_shards_starts_without_torch() -> None:
    """Importing it takes longer than many a build."""
    code = "import sys, chiasm.training.shard_writer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
