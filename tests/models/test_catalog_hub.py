"""Checkpoints from the hub: `huggingface_hub` against a small server that speaks its endpoints."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chiasm.errors import DigestMismatch, DownloadFailed, NoSpace, Offline, UnknownModel
from chiasm.models import catalog
from chiasm.models.catalog import hub
from tests.models.catalog_servers import CONTENT, HALF, FileServer, Recorder, sha256, write_catalog

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "clip"}',
    "tokenizer.json": b"{}",
    "model.safetensors": CONTENT,
}
UNWANTED = {
    "README.md": b"# a card",
    "pytorch_model.bin": b"pickle",
    "flax_model.msgpack": b"flax",
    "tokenizer.model": b"sentencepiece",
    "onnx/model.onnx": b"onnx",
}


@pytest.fixture(autouse=True)
def no_hub_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def hub_of(files: dict[str, bytes], repo: str = "owner/name", commit: str = COMMIT) -> FileServer:
    """A hub with one repository; files over 1 KB are kept as the hub keeps large files."""
    listing = []
    served, headers = {}, {}
    for path, content in files.items():
        file: dict[str, object] = {"rfilename": path, "size": len(content)}
        file["blobId"] = git_blob(content)
        etag = git_blob(content)
        if len(content) > 1000:
            etag = sha256(content)
            file["lfs"] = {"sha256": etag, "size": len(content), "pointerSize": 134}
        listing.append(file)
        address = f"/{repo}/resolve/{commit}/{path}"
        served[address] = content
        headers[address] = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
    info = json.dumps({"id": repo, "sha": commit, "siblings": listing}).encode()
    for address in (f"/api/models/{repo}", f"/api/models/{repo}/revision/v1"):
        served[address] = info
        headers[address] = {"Content-Type": "application/json"}
    return FileServer(served, headers=headers)


def fetch(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: object
) -> Path:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return catalog.fetch_hf("owner/name", cache_dir=tmp_path / "cache", **more)  # type: ignore[arg-type]


def test_a_checkpoint_comes_with_what_it_needs_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    with hub_of(FILES | UNWANTED) as server:
        folder = fetch(server, tmp_path, monkeypatch, progress=progress)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert folder.is_relative_to(tmp_path / "cache")
    assert ["owner/name: model.safetensors", len(CONTENT), len(CONTENT), True] in progress.files


def test_what_was_fetched_once_is_opened_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(FILES) as server:
        folder = fetch(server, tmp_path, monkeypatch)
    code = (
        "import sys; from pathlib import Path; from chiasm.models.catalog import pull; "
        "print(pull('hf:owner/name', cache_dir=Path(sys.argv[1]), offline=True)); "
        "assert not {'huggingface_hub', 'torch'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    assert Path(subprocess.check_output(command, text=True).strip()) == folder


def test_a_revision_is_asked_for_and_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(FILES) as server:
        fetch(server, tmp_path, monkeypatch, revision="v1")
        assert server.asked("/api/models/owner/name/revision/v1")
        with pytest.raises(Offline, match="chiasm pull hf:owner/name"):
            fetch(server, tmp_path, monkeypatch, offline=True)
        fetch(server, tmp_path, monkeypatch, revision="v1", offline=True)


def test_a_branch_stays_at_the_commit_it_had_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(FILES) as server:
        first = fetch(server, tmp_path, monkeypatch)
    with hub_of(FILES | {"config.json": b"{}"}, commit="b" * 40) as server:
        assert fetch(server, tmp_path, monkeypatch) == first


def test_a_cache_that_was_moved_is_still_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(FILES) as server:
        fetch(server, tmp_path, monkeypatch)
    (tmp_path / "cache").rename(tmp_path / "moved")
    moved = catalog.fetch_hf("owner/name", cache_dir=tmp_path / "moved", offline=True)
    assert (moved / "model.safetensors").read_bytes() == CONTENT


def test_shards_and_a_sentencepiece_tokenizer_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "config.json": b"{}",
        "spiece.model": b"sentencepiece",
        "model.safetensors.index.json": b"{}",
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "1_Pooling/config.json": b"{}",
    }
    with hub_of(files | {"open_clip_model.safetensors": b"other"}) as server:
        folder = fetch(server, tmp_path, monkeypatch)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == set(files)


def test_the_default_embedder_fine_tuned_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of({"config.json": b"{}", "heads.safetensors": b"heads"}) as server:
        folder = fetch(server, tmp_path, monkeypatch)
    assert (folder / "heads.safetensors").read_bytes() == b"heads"


def test_a_repository_without_safetensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of({"config.json": b"{}", "pytorch_model.bin": b"a pickle"}) as server:
        with pytest.raises(DownloadFailed, match="no weights as safetensors"):
            fetch(server, tmp_path, monkeypatch)
        assert not server.asked(f"/owner/name/resolve/{COMMIT}/config.json")


@pytest.mark.parametrize("change", ["cut", "forged"])
def test_a_damaged_file_is_noticed_and_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with hub_of(FILES) as server:
        folder = fetch(server, tmp_path, monkeypatch)
        weights = folder / "model.safetensors"
        before = weights.stat()
        with weights.open("r+b") as file:
            file.truncate(10) if change == "cut" else file.write(b"XXXX")
        if change == "forged":
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        mended = fetch(server, tmp_path, monkeypatch, verify=change == "forged")
        assert mended == folder
        assert weights.read_bytes() == CONTENT


def test_what_is_not_what_the_hub_promised_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub_of(FILES)
    address = f"/owner/name/resolve/{COMMIT}/model.safetensors"
    server.files[address] = bytes(len(CONTENT))
    with server, pytest.raises(DigestMismatch) as caught:
        fetch(server, tmp_path, monkeypatch)
    for part in ("model.safetensors", sha256(CONTENT), sha256(bytes(len(CONTENT)))):
        assert part in str(caught.value)
    blobs = {p.read_bytes() for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert bytes(len(CONTENT)) not in blobs


def test_a_cut_connection_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Recorder()
    large, chunk = CONTENT * 24, 10 * 2**20  # the hub's library keeps whole chunks of 10 MiB
    with hub_of({"config.json": b"{}", "model.safetensors": large}) as server:
        server.cuts = [100_000, 2, chunk + HALF]  # the listing, config.json, the weights
        folder = fetch(server, tmp_path, monkeypatch, progress=progress)
        asked = server.asked(f"/owner/name/resolve/{COMMIT}/model.safetensors")
    assert (folder / "model.safetensors").read_bytes() == large
    assert [seen.range for seen in asked] == [None, f"bytes={chunk}-"]
    assert progress.files[-1][2:] == [len(large), True]


def test_the_hubs_own_cache_is_shared_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's library reads its variables when it is imported: a process of its own.
    with hub_of(FILES) as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        code = (
            "import sys; from pathlib import Path; from chiasm.models.catalog import fetch_hf; "
            "print(fetch_hf('owner/name', cache_dir=Path(sys.argv[1])))"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "cache")]
        folder = subprocess.check_output(command, text=True, env=environment).strip()
    assert Path(folder).is_relative_to(tmp_path / "hf" / "hub")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "knows no repository owner/name"),
        (401, None, "does not let this account read owner/name"),
        (403, "GatedRepo", "HF_TOKEN"),
        (401, "GatedRepo", "gated"),
        (404, "RevisionNotFound", "no revision"),
        (500, None, "status 500"),
    ],
)
def test_what_the_hub_refuses_is_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str | None, words: str
) -> None:
    server = hub_of(FILES)
    headers = {"X-Error-Code": code} if code else {}
    server.refusals["/api/models/owner/name"] = (status, headers)
    with server, pytest.raises(DownloadFailed, match=words):
        fetch(server, tmp_path, monkeypatch)


def test_a_gated_file_of_a_listed_repository_is_said_to_be_gated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub_of(FILES)
    for address in list(server.files):
        if "/resolve/" in address:
            server.refusals[address] = (401, {"X-Error-Code": "GatedRepo"})
    with server, pytest.raises(DownloadFailed, match="gated"):
        fetch(server, tmp_path, monkeypatch)


def test_a_token_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_of(FILES) as server:
        fetch(server, tmp_path, monkeypatch)
        (asked,) = server.asked("/api/models/owner/name")
    assert asked.headers["Authorization"] == "Bearer hf_secret"


def test_no_network_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of(FILES) as server:
        pass  # its port is closed again
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        fetch(server, tmp_path, monkeypatch)


def test_an_answer_that_is_no_hubs_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub_of(FILES)
    server.files["/api/models/owner/name"] = b"<html>a proxy's page</html>"
    with server, pytest.raises(DownloadFailed, match="does not answer as a hub does"):
        fetch(server, tmp_path, monkeypatch)


def test_the_hubs_own_offline_switch_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from pathlib import Path; from chiasm.errors import Offline; "
        "from chiasm.models.catalog import fetch_hf\n"
        "try: fetch_hf('owner/name', cache_dir=Path(sys.argv[1]))\n"
        "except Offline as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE" in subprocess.check_output(command, text=True, env=environment)


def test_a_full_disk_is_found_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub_of(FILES)
    listing = json.loads(server.files["/api/models/owner/name"])
    for file in listing["siblings"]:
        file["size"] = 10**15
    server.files["/api/models/owner/name"] = json.dumps(listing).encode()
    with server:
        with pytest.raises(NoSpace, match="MB are free"):
            fetch(server, tmp_path, monkeypatch)
        assert not [seen for seen in server.seen if "/resolve/" in seen.path]


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        catalog.fetch_hf("not a name", cache_dir=tmp_path)


def test_an_entry_with_digests_can_come_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": FILES["config.json"], "model.safetensors": CONTENT}
    catalogs = [write_catalog(tmp_path / "hub.toml", files, "hf:owner/name@v1", folder="text")]
    stored = {f"text/{path}": content for path, content in files.items()}
    server = hub_of(stored)
    for path in stored:  # the revision, and not the commit, is in the address here
        by_commit, by_name = (f"/owner/name/resolve/{r}/{path}" for r in (COMMIT, "v1"))
        server.files[by_name] = server.files[by_commit]
        server.headers[by_name] = server.headers[by_commit]
    options = {"cache_dir": tmp_path / "cache", "catalogs": catalogs}
    with server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.cuts = [22, 1000]  # config.json whole, the weights cut,
        server.statuses = [200, 200, 500]  # and then an answer that ends the pull
        with pytest.raises(DownloadFailed):
            catalog.pull("tiny", **options)
        server.cuts.clear()
        folder = catalog.pull("tiny", **options)
    assert {path: (folder / path).read_bytes() for path in files} == files
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_every_hub_entry_of_the_catalogue_is_fetched_by_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(hub, "fetch_hf", lambda repo, **_: asked.append(repo) or tmp_path)
    entries = [entry for entry in catalog.entries() if entry.sources and not entry.files]
    for entry in entries:
        assert catalog.pull(entry.name, cache_dir=tmp_path) == tmp_path
    assert len(asked) == 7
    assert "google/siglip2-base-patch16-224" in asked
