"""Downloads: resumed, cut, refused, damaged, and with no room on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chiasm.errors import DigestMismatch, DownloadFailed, NoSpace, WeightsError
from chiasm.models.catalog.download import Transport, fetch
from tests.models.catalog_servers import CONTENT, HALF, FileServer, Recorder, sha256


def get(server: FileServer, tmp_path: Path, **options: object) -> Path:
    arguments = {
        "cache_dir": tmp_path,
        "transport": Transport(timeout=5),
        "sha256": sha256(CONTENT),
        "label": "f",
        "progress": Recorder(),
        "sleep": lambda _: None,
    } | options
    return fetch(f"{server.url}/f", tmp_path / "f", **arguments)  # type: ignore[arg-type]


def test_a_file_comes_whole_and_says_how_far_it_is(tmp_path: Path) -> None:
    progress = Recorder()
    with FileServer({"/f": CONTENT}) as server:
        assert get(server, tmp_path, progress=progress).read_bytes() == CONTENT
    assert progress.files == [["f", len(CONTENT), len(CONTENT), True]]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_cut_connection_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    progress = Recorder()
    with FileServer({"/f": CONTENT}, cuts=[HALF, 1000]) as server:
        assert get(server, tmp_path, progress=progress).read_bytes() == CONTENT
    assert [seen.range for seen in server.asked("/f")] == [
        None,
        f"bytes={HALF}-",
        f"bytes={HALF + 1000}-",
    ]
    assert progress.files == [["f", len(CONTENT), len(CONTENT), True]]


def test_a_server_without_ranges_sends_it_from_the_start(tmp_path: Path) -> None:
    progress = Recorder()
    with FileServer({"/f": CONTENT}, cuts=[HALF], ranges=False) as server:
        assert get(server, tmp_path, progress=progress).read_bytes() == CONTENT
    assert progress.files == [["f", len(CONTENT), len(CONTENT), True]]


def test_a_leftover_of_another_file_does_not_spoil_the_download(tmp_path: Path) -> None:
    (tmp_path / "f.partial").write_bytes(b"x" * 1000)
    with FileServer({"/f": CONTENT}) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert [seen.range for seen in server.asked("/f")] == ["bytes=1000-", None]


def test_a_leftover_that_is_too_long_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "f.partial").write_bytes(CONTENT + b"more")
    with FileServer({"/f": CONTENT}) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_digest_names_file_expected_and_got_and_leaves_nothing(tmp_path: Path) -> None:
    with FileServer({"/f": b"other"}) as server, pytest.raises(DigestMismatch) as caught:
        get(server, tmp_path)
    for part in ("f:", sha256(CONTENT), sha256(b"other")):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_keeps_breaking_off_is_given_up_and_the_bytes_are_kept(
    tmp_path: Path,
) -> None:
    with FileServer({"/f": CONTENT}, cuts=[HALF, *([0] * 20)]) as server:
        with pytest.raises(DownloadFailed, match="too early"):
            get(server, tmp_path)
        assert (tmp_path / "f.partial").stat().st_size == HALF
        server.cuts.clear()
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked("/f")[-1].range == f"bytes={HALF}-"


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with FileServer({"/f": CONTENT}, statuses=[503, 429]) as server:
        assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked("/f")) == 3


def test_a_server_that_stalls_is_left_after_the_time_out_and_asked_for_the_rest(
    tmp_path: Path,
) -> None:
    with FileServer({"/f": CONTENT}, hold=HALF) as server:

        def let_go(_: float) -> None:
            server.release.set()

        path = get(server, tmp_path, transport=Transport(timeout=0.5), sleep=let_go)
        assert path.read_bytes() == CONTENT
    assert [seen.range for seen in server.asked("/f")] == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize(("status", "words"), [(404, "no such file"), (403, "refuses to hand")])
def test_a_refusal_is_said_once_and_plainly(tmp_path: Path, status: int, words: str) -> None:
    with FileServer({"/f": CONTENT}, statuses=[status]) as server:
        with pytest.raises(DownloadFailed, match=words) as caught:
            get(server, tmp_path)
        assert server.netloc in str(caught.value)
    assert len(server.asked("/f")) == 1


def test_no_network_is_said_without_waiting(tmp_path: Path) -> None:
    with FileServer({}) as server:
        pass  # its port is closed again
    waits: list[float] = []
    with pytest.raises(DownloadFailed, match="refuses the connection"):
        get(server, tmp_path, sleep=waits.append)
    assert waits == []


def test_an_unknown_host_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"host\.invalid cannot be found"):
        Transport(timeout=5).open("http://user:secret@host.invalid/f", {})


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/f"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(DownloadFailed, match="not at an http"):
        Transport().open(url, {})


def test_a_full_disk_is_found_before_the_download(tmp_path: Path) -> None:
    room = shutil.disk_usage(tmp_path).free
    with FileServer({"/f": CONTENT}) as server, pytest.raises(NoSpace, match="MB are free"):
        get(server, tmp_path, room=room)
    assert not (tmp_path / "f").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_disk_that_fills_up_during_the_download_is_said_to_be_full(tmp_path: Path) -> None:
    (tmp_path / "f.partial").symlink_to("/dev/full")
    with FileServer({"/f": CONTENT}) as server, pytest.raises(NoSpace) as caught:
        get(server, tmp_path, sha256=None)  # the device could be read for ever
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint is not None


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs to mount a disk"
)
def test_a_really_small_disk_is_said_to_be_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount here")
    try:
        # Without a stated length nothing warns: the disk itself says that it is full.
        with FileServer({"/f": CONTENT}, state_length=False) as server, pytest.raises(NoSpace):
            get(server, disk)
        assert not (disk / "f").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with FileServer({"/f": CONTENT}) as server, pytest.raises(WeightsError, match="CHIASM_CACHE"):
        fetch(
            f"{server.url}/f",
            tmp_path / "file" / "f",
            cache_dir=tmp_path / "file",
            transport=Transport(),
            sha256=None,
            label="f",
            progress=Recorder(),
        )


def test_a_password_in_the_address_is_sent_and_never_shown(tmp_path: Path) -> None:
    with FileServer({"/f": CONTENT}, login=("me", "p@ss")) as server:
        address = f"http://me:p%40ss@{server.netloc}/f"
        assert Transport().open(address, {}).read() == CONTENT
        with pytest.raises(DownloadFailed, match="user name and a password") as caught:
            Transport().open(f"http://me:wrong@{server.netloc}/f", {})
    assert "wrong" not in str(caught.value)


def test_a_password_in_netrc_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    with FileServer({"/f": CONTENT}, login=("me", "secret")) as server:
        assert Transport().open(f"{server.url}/f", {}).read() == CONTENT
