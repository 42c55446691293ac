"""WebDataset shards, written by Python's tarfile and read by us."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from captioned import caption, picture, sample, tar_bytes, write_shards, write_tar

from chiasm.errors import UnusableData
from chiasm.media.limits import Limits
from chiasm.training.data_recipe import Columns, DataRecipe
from chiasm.training.fields import Fields
from chiasm.training.samples import Damage, Sample
from chiasm.training.shards import Shards
from chiasm.training.sources import open_source


def read(path: Path | str, start: int = 0, **options: Any) -> list[Sample | Damage]:
    """All of one shard."""
    return list(open_source(DataRecipe(source=str(path), **options)).read(0, start))


def reasons(found: list[Sample | Damage]) -> list[str]:
    return [each.reason if isinstance(each, Damage) else "ok" for each in found]


# Archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_with_short_and_long_names(tmp_path: Path, form: int) -> None:
    long = "/".join(["folder-with-a-long-name"] * (5 if form == tarfile.USTAR_FORMAT else 12))
    accents = "ä" * 30 if form != tarfile.USTAR_FORMAT else "a"
    samples = [
        {"0.jpg": picture(0), "0.txt": b"zero"},
        {f"{long}/1.jpg": picture(1), f"{long}/1.txt": b"one"},
        {f"{accents}/2.jpg": picture(2), f"{accents}/2.txt": "zwei ü".encode()},
    ]
    found = read(write_tar(tmp_path / "a.tar", samples, format=form))
    assert [each.key for each in found] == ["0", f"{long}/1", f"{accents}/2"]
    assert [each.picture for each in found] == [picture(n) for n in range(3)]
    assert [each.captions for each in found] == [("zero",), ("one",), ("zwei ü",)]


def test_what_tarfile_reads_is_what_we_read(tmp_path: Path) -> None:
    """Many members of random sizes, folders and links among them."""
    chance = random.Random(3)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(200):
            data = chance.randbytes(chance.choice([0, 1, 511, 512, 513, 5000]))
            if number % 9 == 0:
                folder = tarfile.TarInfo(f"folder{number}")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
                link = tarfile.TarInfo(f"{number:03d}.link")
                link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
                archive.addfile(link)
            for name, content in ((f"{number:03d}.jpg", data), (f"{number:03d}.txt", b"x" * 9)):
                extra = "é" * 150 + "/" if number % 4 == 0 else ""
                entry = tarfile.TarInfo(extra + name)
                entry.size = len(content)
                import io

                archive.addfile(entry, io.BytesIO(content))
    expected = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                file = archive.extractfile(member)
                assert file is not None
                expected.append((member.name.removesuffix(".jpg"), file.read()))
    assert [(each.key, each.picture) for each in read(path)] == expected


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_compressed(tmp_path: Path, name: str, mode: str) -> None:
    found = read(write_tar(tmp_path / name, [sample(n) for n in range(5)], mode=mode))
    assert [each.captions for each in found] == [(caption(n),) for n in range(5)]
    assert [each.key for each in read(tmp_path / name, 3)] == ["00003", "00004"]


def test_reading_from_a_sample_on_gives_the_rest(tmp_path: Path) -> None:
    samples = [sample(n) for n in range(6)]
    del samples[2]["00002.jpg"]
    path = write_tar(tmp_path / "a.tar", samples)
    whole = read(path)
    assert [each.position for each in whole] == list(range(6))
    for start in range(7):
        assert read(path, start) == whole[start:]


# Fields -----------------------------------------------------------------------------------------


def test_json_fields(tmp_path: Path) -> None:
    fields = {"sku": 7, "label": "shoe", "hard_negatives": ["a boot", ""], "duplicate_of": "x"}
    fields |= {"contaminated_by": "y.png", "caption": ["one", "two"], "width": 3}
    [found] = read(write_tar(tmp_path / "a.tar", [sample(1, **fields)]))
    assert found == Sample(
        "00001", 0, 0, picture(1), ("one", "two"), ("a boot",), "7", "shoe", "x", "y.png"
    )


def test_named_fields_win_over_guesses(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [sample(1, sku="s", product="p", alt="words", wrong="no")])
    columns = Columns(captions=("alt",), group="product", hard_negatives="wrong")
    [found] = read(path, columns=columns)
    assert (found.captions, found.group, found.hard_negatives) == (("words",), "p", ("no",))


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "PNG"])
def test_kinds_of_picture(tmp_path: Path, suffix: str) -> None:
    data = picture(3, kind={"jpeg": "JPEG", "webp": "WEBP"}.get(suffix, "PNG"))
    files = {f"3.{suffix}": data, "3.txt": b"three", "3.cls": b"1", "3.npy": b"?"}
    [found] = read(write_tar(tmp_path / "a.tar", [files]))
    assert (found.picture, found.captions) == (data, ("three",))


# Names ------------------------------------------------------------------------------------------


def test_braces_globs_lists_and_folders_name_the_same_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [1] * 12)
    (tmp_path / "s" / "00000.parquet").write_bytes(b"img2dataset's")
    (tmp_path / "s" / "00000_stats.json").write_text('{"successes": 1}')
    expected = [str(tmp_path / "s" / f"{n:05d}.tar") for n in range(12)]
    for source in (
        str(tmp_path / "s"),
        str(tmp_path / "s" / "*.tar"),
        str(tmp_path / "s" / "{00000..00011}.tar"),
        str(tmp_path / "s" / "000{00..09}.tar") + "|" + str(tmp_path / "s" / "000{10,11}.tar"),
    ):
        parts = source.split("|")
        named = parts[0] if len(parts) == 1 else tuple(parts)
        found = open_source(DataRecipe(source=named))
        assert isinstance(found, Shards)
        assert found.names == expected


def test_fsspec_storage(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for shard in range(3):
        data = tar_bytes(sample(n) for n in range(shard * 4, shard * 4 + 4))
        memory.pipe_file(f"/bucket/{shard:02d}.tar", data)
    manifest = {"shards": [{"name": f"{n:02d}.tar", "samples": 4} for n in range(3)]}
    memory.pipe_file("/bucket/shards.json", json.dumps(manifest).encode())
    try:
        for pattern in ("{00..02}.tar", "*.tar", ""):
            source = open_source(DataRecipe(source=f"memory://bucket/{pattern}"))
            keys = [each.key for unit in range(source.units) for each in source.read(unit)]
            assert keys == [f"{n:05d}" for n in range(12)]
            assert source.samples == 12
    finally:
        memory.rm("/bucket", recursive=True)
    assert read((tmp_path / "gone.tar").as_uri())[0].reason == "shard missing"
    write_shards(tmp_path, [2])
    assert len(read((tmp_path / "00000.tar").as_uri())) == 2


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_text("?")
    for source in ("*.tar", "notes.pdf"):
        with pytest.raises(UnusableData):
            open_source(DataRecipe(source=str(tmp_path / source)))
    with pytest.raises(UnusableData, match="no samples"):
        open_source(DataRecipe(source=str(tmp_path)))


def test_samples_are_counted_by_statistics_manifest_or_headers(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 5])
    recipe = DataRecipe(source=str(tmp_path))
    assert open_source(recipe).samples is None
    assert open_source(recipe, count=True).samples == 8
    for shard, count in enumerate([3, 5]):
        statistics = json.dumps({"count": 10, "successes": count})
        (tmp_path / f"{shard:05d}_stats.json").write_text(statistics)
    assert open_source(recipe).samples == 8


# Damage -----------------------------------------------------------------------------------------


def test_each_kind_of_damage_has_its_reason(tmp_path: Path) -> None:
    odd: list[dict[str, bytes]] = [sample(n) for n in range(8)]
    del odd[1]["00001.jpg"]
    del odd[2]["00002.json"], odd[2]["00002.txt"]
    odd[3]["00003.json"] = b'{"caption": '
    odd[4]["00004.json"] = b"[1]"
    odd[5] = {"00005.jpg": picture(5), "00005.txt": b" \n"}
    odd[6]["00006.jpg"] = bytes(5000)
    found = read(write_tar(tmp_path / "a.tar", odd), limits=Limits(max_bytes=4000))
    assert reasons(found) == [
        "ok", "no picture", "no caption", "unreadable JSON", "unreadable JSON", "empty caption",
        "too large", "ok",
    ]  # fmt: skip


def test_a_shard_cut_anywhere_yields_what_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [sample(n) for n in range(4)])
    data, whole = path.read_bytes(), read(path)
    # Where each sample's last file ends. Of the first, nobody can know that a .txt was to follow.
    last = {"00000.json", *(f"{n:05d}.txt" for n in range(1, 4))}
    with tarfile.open(path) as archive:
        files = {each.name: each.offset_data + each.size for each in archive}
    ends = [end for name, end in files.items() if name in last]
    quiet = [0, files["00000.txt"], *ends]  # a cut here, or in the padding, looks like an end
    for cut in [*range(0, len(data) - 1024, 97), *ends]:
        path.write_bytes(data[:cut])
        found = read(path)
        complete = sum(end <= cut for end in ends)
        assert [each for each in found if isinstance(each, Sample)] == whole[:complete], cut
        between = any(end <= cut <= (end + 511) // 512 * 512 for end in quiet)
        assert between or complete == 4 or len(found) == complete + 1, (
            "what is lost must be counted"
        )


def test_a_manifest_tells_how_much_a_cut_shard_lost(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [sample(n) for n in range(10)])
    manifest = {"shards": [{"name": "a.tar", "samples": 10}]}
    (tmp_path / "shards.json").write_text(json.dumps(manifest))
    with tarfile.open(path) as archive:
        between = archive.getmember("00006.jpg").offset
    data = path.read_bytes()
    for cut in (len(data) // 2 + 300, between):
        path.write_bytes(data[:cut])
        found = read(path)
        last = found[-1]
        assert isinstance(last, Damage)
        assert len(found) - 1 + last.count == 10


def test_a_damaged_header_ends_the_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [sample(n) for n in range(4)])
    with tarfile.open(path) as archive:
        offset = archive.getmember("00002.jpg").offset
    data = bytearray(path.read_bytes())
    data[offset + 5] ^= 0xFF
    path.write_bytes(data)
    assert reasons(read(path)) == ["ok", "ok", "shard cut short"]


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_compressed_shard_cut_short(tmp_path: Path, cut: float) -> None:
    path = write_tar(tmp_path / "a.tar.gz", [sample(n) for n in range(20)], mode="w:gz")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    found = reasons(read(path))
    assert found[-1] == "shard cut short"
    assert found.count("ok") == len(found) - 1
    assert 0 < len(found) < 20


def test_a_read_that_fails_is_tried_again_where_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, [6])
    source = open_source(DataRecipe(source=str(tmp_path)))
    assert isinstance(source, Shards)
    whole, tries = list(source.read(0)), []
    original = Shards._samples

    def failing(self: Shards, stream: Any, unit: int, start: int) -> Any:
        tries.append(start)
        for found in original(self, stream, unit, start):
            if found.position == 4 and len(tries) == 1:
                raise ConnectionResetError
            yield found

    monkeypatch.setattr(Shards, "_samples", failing)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert list(source.read(0)) == whole
    assert tries == [0, 4]


def test_fields_guess_one_kind_of_caption(tmp_path: Path) -> None:
    """A title beside captions is not a caption."""
    found = read(write_tar(tmp_path / "a.tar", [sample(1, title="a title", caption_2="more")]))
    assert found[0].captions == (caption(1), "more")
    assert Fields.of(Columns()).captions is None
