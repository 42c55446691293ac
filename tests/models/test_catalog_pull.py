"""`pull`, from a name to a folder: whole or absent, whatever is killed, full or tampered with."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from chiasm.errors import (
    DigestMismatch,
    DownloadFailed,
    NoSpace,
    Offline,
    UnknownModel,
    WeightsError,
)
from chiasm.models import catalog
from chiasm.models.catalog import cache
from chiasm.models.catalog.unpack import copy_verified
from tests.models.catalog_servers import (
    CONTENT,
    HALF,
    Recorder,
    make_wheel,
    serve_index,
    sha256,
    wait_until,
    write_catalog,
)

FILES = {"weights.bin": CONTENT, "sub/config.json": b"{}"}
PYPI = "pypi:tiny-weights==1.0"


@pytest.fixture(autouse=True)
def only_this_pip_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    members = {f"tiny_weights/{path}": content for path, content in FILES.items()}
    return make_wheel(tmp_path / "wheels", members)


@pytest.fixture
def tiny(tmp_path: Path) -> list[Path]:
    """A catalogue whose entry comes out of that wheel."""
    return [write_catalog(tmp_path / "pypi.toml", FILES, PYPI, folder="tiny_weights")]


@pytest.fixture
def local(tmp_path: Path) -> list[Path]:
    """A catalogue whose entry comes from a folder beside it."""
    for path, content in FILES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    return [write_catalog(tmp_path / "local.toml", FILES, "file:folder")]


def holds(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in FILES}


def child(cache_dir: Path, catalogs: list[Path]) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from chiasm.models.catalog import pull; "
        "print(pull('tiny', cache_dir=Path(sys.argv[1]), catalogs=[Path(sys.argv[2])]))"
    )
    command = [sys.executable, "-c", code, str(cache_dir), str(catalogs[0])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complete_folders(cache_dir: Path) -> list[Path]:
    return [path for path in (cache_dir / "models").glob("*") if not path.name.startswith(".")]


# Sources ----------------------------------------------------------------------------------------


def test_a_wheels_files_are_unpacked_and_the_wheel_is_not_kept(
    cache_dir: Path, wheel: Path, tiny: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    with serve_index(wheel) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny, progress=progress)
        assert holds(folder) == FILES
        asked = len(server.seen)
        assert catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny) == folder
        assert len(server.seen) == asked
    assert progress.files[0][3] is True
    assert list((cache_dir / "downloads").iterdir()) == []


@pytest.mark.parametrize("source", ["file:folder", "file:folder.zip"])
def test_a_folder_or_an_archive_of_the_users_is_copied_even_offline(
    tmp_path: Path, cache_dir: Path, local: list[Path], source: str
) -> None:
    with zipfile.ZipFile(tmp_path / "folder.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in FILES.items():
            archive.writestr(path, content)
    catalogs = [write_catalog(tmp_path / "other.toml", FILES, source)]
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=catalogs, offline=True)
    assert holds(folder) == FILES
    assert (tmp_path / "folder").is_dir()
    assert (tmp_path / "folder.zip").is_file()


def test_the_next_source_is_taken_where_the_first_fails(
    tmp_path: Path, cache_dir: Path, local: list[Path]
) -> None:
    catalogs = [write_catalog(tmp_path / "two.toml", FILES, "file:nowhere", "file:folder")]
    assert holds(catalog.pull("tiny", cache_dir=cache_dir, catalogs=catalogs)) == FILES


def test_when_every_source_fails_each_reason_is_told(tmp_path: Path, cache_dir: Path) -> None:
    catalogs = [write_catalog(tmp_path / "two.toml", FILES, "file:nowhere", PYPI)]
    with pytest.raises(DownloadFailed) as caught:
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=catalogs)
    assert "nowhere" in str(caught.value)
    assert "127.0.0.1:9 refuses the connection" in str(caught.value)
    assert complete_folders(cache_dir) == []


def test_what_an_entry_needs_comes_with_it(
    tmp_path: Path, cache_dir: Path, local: list[Path]
) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "whole.toml"
    path.write_text(
        '[whole]\nkind = "k"\nlicence = "l"\ndescription = "d"\nbytes = 0\n'
        'needs = ["tiny"]\nshipped = "mine"\n'
    )
    found = catalog.pull("whole", cache_dir=cache_dir, catalogs=[*local, path])
    assert found == tmp_path / "mine"
    assert len(complete_folders(cache_dir)) == 1


def test_a_model_by_name_is_made_ready_and_a_folder_of_the_users_is_left_alone(
    tmp_path: Path, cache_dir: Path, local: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    catalog.ensure("folder", cache_dir=cache_dir, catalogs=local)
    assert not cache_dir.exists()
    (tmp_path / "tiny").mkdir()  # the catalogue's name wins
    catalog.ensure("tiny", cache_dir=cache_dir, catalogs=local)
    assert len(complete_folders(cache_dir)) == 1
    with pytest.raises(UnknownModel):
        catalog.ensure("no such thing", cache_dir=cache_dir)


# Clear errors -----------------------------------------------------------------------------------


def test_offline_names_the_command_to_run_online(cache_dir: Path, tiny: list[Path]) -> None:
    with pytest.raises(Offline, match="chiasm pull tiny"):
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny, offline=True)


def test_offline_with_a_damaged_cache_says_so(
    tmp_path: Path, cache_dir: Path, wheel: Path, tiny: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny)
    (folder / "weights.bin").write_bytes(b"")
    with pytest.raises(Offline, match="damaged"):
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny, offline=True)


def test_a_wrong_digest_names_file_expected_and_got(
    tmp_path: Path, cache_dir: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = FILES | {"sub/config.json": b"[]"}
    catalogs = [write_catalog(tmp_path / "wrong.toml", wrong, PYPI, folder="tiny_weights")]
    with serve_index(wheel) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(DigestMismatch) as caught:
            catalog.pull("tiny", cache_dir=cache_dir, catalogs=catalogs)
    for part in ("sub/config.json", sha256(b"[]"), sha256(b"{}")):
        assert part in str(caught.value)
    assert complete_folders(cache_dir) == []
    assert list((cache_dir / "downloads").iterdir()) == []


def test_a_users_own_file_with_a_wrong_digest_is_not_removed(
    tmp_path: Path, cache_dir: Path, local: list[Path]
) -> None:
    (tmp_path / "folder" / "weights.bin").write_bytes(b"changed")
    with pytest.raises(DigestMismatch) as caught:
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    assert "removed" not in str(caught.value)
    assert (tmp_path / "folder" / "weights.bin").read_bytes() == b"changed"


def test_an_archive_that_unpacks_to_more_than_stated_is_stopped(tmp_path: Path) -> None:
    stated = catalog.File(1000, sha256(b"\0" * 1000))
    got = copy_verified(io.BytesIO(b"\0" * 50_000_000), tmp_path / "f", stated)
    assert got != stated.sha256
    assert (tmp_path / "f").stat().st_size == 1001


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a\\..\\evil", "C:evil"])
def test_an_archive_whose_names_lead_out_is_refused(
    tmp_path: Path, cache_dir: Path, name: str
) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("f", b"good")
        archive.writestr(name, b"evil")
    catalogs = [write_catalog(tmp_path / "evil.toml", {"f": b"good"}, "file:evil.zip")]
    with pytest.raises(WeightsError, match="leads out"):
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=catalogs)
    assert complete_folders(cache_dir) == []
    assert not list(tmp_path.rglob("*evil"))


def test_a_cut_archive_is_said_to_be_damaged(tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    catalogs = [write_catalog(tmp_path / "cut.toml", {"f": b"x"}, "file:cut.zip")]
    with pytest.raises(DownloadFailed, match="damaged"):
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=catalogs)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_disk_that_fills_up_while_unpacking_is_said_to_be_full(
    cache_dir: Path, local: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *rest: object, **more: object):  # type: ignore[no-untyped-def]
        if self.name == "weights.bin" and mode == "wb":
            self = Path("/dev/full")
        return real(self, mode, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(NoSpace):
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    assert [path.name for path in (cache_dir / "models").glob("*") if path.is_dir()] == []


# Killed, and at the same time -------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX's")
def test_a_killed_download_leaves_nothing_in_use_and_is_resumed(
    cache_dir: Path, wheel: Path, tiny: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wheel.read_bytes()
    index = serve_index(wheel)
    index.hold = HALF
    with index as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        process = child(cache_dir, tiny)

        def arrived() -> list[int]:
            return [p.stat().st_size for p in (cache_dir / "downloads").rglob("*.partial")]

        wait_until(lambda: arrived() == [HALF])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert complete_folders(cache_dir) == []
        server.release.set()
        progress = Recorder()
        folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny, progress=progress)
        assert holds(folder) == FILES
        asked = server.asked(f"/files/{wheel.name}")
    assert [seen.range for seen in asked] == [None, f"bytes={HALF}-"]
    assert progress.files == [["tiny-weights", len(content), len(content), True]]


def test_a_wheel_that_a_killed_process_left_is_not_downloaded_again(
    cache_dir: Path, wheel: Path, tiny: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with serve_index(wheel) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with monkeypatch.context() as patch:
            patch.setattr("chiasm.models.catalog.unpack.unpack", killed)
            with pytest.raises(KeyboardInterrupt):
                catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny)
        assert holds(catalog.pull("tiny", cache_dir=cache_dir, catalogs=tiny)) == FILES
        assert len(server.asked(f"/files/{wheel.name}")) == 1


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX's")
def test_a_killed_unpacking_leaves_nothing_in_use_and_is_begun_again(
    tmp_path: Path, cache_dir: Path, local: list[Path]
) -> None:
    slow = tmp_path / "folder" / "sub" / "config.json"
    slow.unlink()
    os.mkfifo(slow)  # reading it waits for a writer that never comes
    process = child(cache_dir, local)
    staged = f".{cache.entry_folder(cache_dir, catalog.find('tiny', local)).name}.partial"
    wait_until(lambda: (cache_dir / "models" / staged / "weights.bin").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert complete_folders(cache_dir) == []
    slow.unlink()
    slow.write_bytes(FILES["sub/config.json"])
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    assert holds(folder) == FILES
    assert not (cache_dir / "models" / staged).exists()


def test_processes_that_pull_at_once_all_succeed_and_download_once(
    cache_dir: Path, wheel: Path, tiny: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = serve_index(wheel)
    index.hold = HALF
    with index as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        processes = [child(cache_dir, tiny) for _ in range(3)]
        wait_until(lambda: bool(server.asked(f"/files/{wheel.name}")))
        # One of them downloads and stalls; a fourth, here, is told that it has to wait.
        progress = Recorder()
        found: list[Path] = []
        options = {"cache_dir": cache_dir, "catalogs": tiny, "progress": progress}
        waiting = threading.Thread(target=lambda: found.append(catalog.pull("tiny", **options)))
        waiting.start()
        wait_until(lambda: bool(progress.files))
        assert "another process" in str(progress.files[0][0])
        server.release.set()
        waiting.join(30)
        outcomes = [process.communicate(timeout=30) for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outcomes
        assert {Path(out.strip()) for out, _ in outcomes} == set(found)
        assert len(server.asked(f"/files/{wheel.name}")) == 1
    assert holds(found[0]) == FILES


# The cache --------------------------------------------------------------------------------------


def test_a_cut_file_in_the_cache_is_noticed_and_mended(cache_dir: Path, local: list[Path]) -> None:
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(100)
    assert holds(catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)) == FILES


def test_a_changed_byte_is_noticed_by_its_time_and_mended(
    cache_dir: Path, local: list[Path]
) -> None:
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    time.sleep(0.02)
    with (folder / "weights.bin").open("r+b") as file:
        file.write(b"X")
    assert holds(catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)) == FILES


def test_a_changed_byte_behind_a_forged_time_is_noticed_by_verify(
    cache_dir: Path, local: list[Path]
) -> None:
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    before = (folder / "weights.bin").stat()
    with (folder / "weights.bin").open("r+b") as file:
        file.write(b"X")
    os.utime(folder / "weights.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert holds(catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)) != FILES
    mended = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local, verify=True)
    assert holds(mended) == FILES


def test_a_cache_copied_elsewhere_is_hashed_and_kept(
    tmp_path: Path, cache_dir: Path, local: list[Path]
) -> None:
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    os.utime(folder / "weights.bin", ns=(1, 1))  # as a copy or a container image would
    (tmp_path / "folder" / "weights.bin").unlink()  # so that it could not be fetched again
    assert holds(catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)) == FILES


@pytest.mark.parametrize("manifest", [b"", b"[]", b'{"weights.bin": 3}'])
def test_a_damaged_manifest_is_written_anew(
    cache_dir: Path, local: list[Path], manifest: bytes
) -> None:
    folder = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    good = (folder / cache.MANIFEST).read_bytes()
    (folder / cache.MANIFEST).write_bytes(manifest)
    catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    assert (folder / cache.MANIFEST).read_bytes() == good


def test_new_digests_in_the_catalogue_are_another_folder(
    tmp_path: Path, cache_dir: Path, local: list[Path]
) -> None:
    before = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    (tmp_path / "folder" / "sub" / "config.json").write_bytes(b"[]")
    write_catalog(local[0], FILES | {"sub/config.json": b"[]"}, "file:folder")
    after = catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    assert after != before
    assert holds(before) == FILES


def test_opening_what_is_cached_is_quick_and_loads_nothing_heavy(
    cache_dir: Path, local: list[Path]
) -> None:
    catalog.pull("tiny", cache_dir=cache_dir, catalogs=local)
    code = """
import sys, time
from pathlib import Path
from chiasm.models.catalog import pull
seconds = []
for _ in range(30):
    start = time.perf_counter()
    pull("tiny", cache_dir=Path(sys.argv[1]), catalogs=[Path(sys.argv[2])])
    seconds.append(time.perf_counter() - start)
heavy = {"torch", "huggingface_hub", "numpy", "PIL", "filelock", "ssl", "subprocess"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(sorted(seconds)[15])
"""
    command = [sys.executable, "-c", code, str(cache_dir), str(local[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.002
