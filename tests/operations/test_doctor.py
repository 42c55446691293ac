"""`examine`: each thing that can be wrong is found, named, and given the command that mends it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chiasm.errors import StoreError
from chiasm.models import catalog
from chiasm.operations import doctor
from chiasm.operations.doctor import Check, Report, examine
from chiasm.retrieval import library
from chiasm.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Everything in a folder of its own; nothing of this machine's user is looked at."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("CHIASM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CHIASM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("CHIASM_EMBEDDER", "./model")
    monkeypatch.setenv("CHIASM_SERVER_PORT", "0")  # any free one
    return Settings.load()


def found(report: Report, name: str) -> Check:
    (check,) = [check for check in report.checks if check.name == name]
    return check


def test_a_good_installation_is_healthy_and_nothing_is_made(
    settings: Settings, tmp_path: Path
) -> None:
    report = examine(settings)
    assert report.healthy, report.checks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_versions_are_the_installed_ones(settings: Settings) -> None:
    detail = found(examine(settings), "packages").detail
    for package in ("torch", "numpy", "lancedb"):
        assert f"{package} {importlib.metadata.version(package)}" in detail


def test_the_report_is_json(settings: Settings) -> None:
    read = json.loads(json.dumps(examine(settings).as_dict()))
    assert read["healthy"] is True
    assert {"name", "status", "detail", "fix"} == set(read["checks"][0])
    assert read["settings"]["embedder"] == {"value": "./model", "origin": "CHIASM_EMBEDDER"}
    assert read["settings"]["offline"] == {"value": False, "origin": "default"}


def test_a_setting_of_the_file_is_shown_with_the_file(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "chiasm.toml").write_text('device = "cpu"\n')
    check = found(examine(Settings.load()), "configuration")
    assert "chiasm.toml" in check.detail
    assert "device = cpu (file)" in check.detail


def test_the_password_of_a_database_is_not_shown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIASM_DATABASE", "postgresql://me:secret@127.0.0.1:9/ledger")
    report = examine(Settings.load())
    assert report.settings["database"].value == "postgresql://me:***@127.0.0.1:9/ledger"
    assert "secret" not in json.dumps(report.as_dict())


def test_missing_and_unfit_packages_are_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = ["no-such-package>=1", "numpy>=999", "torch"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: stated)
    check = found(examine(settings), "packages")
    assert check.status == "problem"
    assert "no-such-package is missing" in check.detail
    assert ">=999" in check.detail
    assert "torch" not in check.detail
    assert check.fix is not None
    assert "pip install" in check.fix


def test_an_extra_that_is_not_installed_is_given_its_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = ["torch", 'no-such-package; extra == "docs"', 'numpy; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: stated)
    check = found(examine(settings), "extras")
    assert check.status == "ok", "an extra is nobody's duty"
    assert 'docs: without no-such-package (pip install "chiasm[docs]")' in check.detail
    assert "dev: installed" in check.detail


def test_a_missing_pip_is_a_warning_with_the_mending_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    check = doctor._pip()
    assert check.status == "warning"
    assert "ensurepip" in str(check.fix)


def test_a_device_that_is_not_there_is_a_problem(settings: Settings) -> None:
    check = found(examine(dataclasses.replace(settings, device="xpu")), "device")
    assert check.status == "problem"
    assert "xpu" in check.detail
    assert check.fix


def test_weights_that_are_not_there_are_a_warning_and_offline_a_problem(
    settings: Settings,
) -> None:
    name = "minilm-l6"
    check = found(examine(dataclasses.replace(settings, embedder=name)), "embedder")
    assert (check.status, check.fix) == ("warning", f"chiasm pull {name}")
    check = found(examine(dataclasses.replace(settings, embedder=name, offline=True)), "embedder")
    assert check.status == "problem"


def test_an_embedder_that_is_unknown_is_a_problem_with_the_nearest_name(
    settings: Settings,
) -> None:
    check = found(examine(dataclasses.replace(settings, embedder="defualt")), "embedder")
    assert check.status == "problem"
    assert "default" in str(check.fix)


def test_shipped_weights_that_are_missing_are_a_problem(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(catalog.find("default"), shipped=tmp_path, needs=())
    monkeypatch.setattr(catalog, "find", lambda *_: entry)
    check = found(examine(dataclasses.replace(settings, embedder="default")), "embedder")
    assert check.status == "problem"
    assert "chiasm" in str(check.fix)


@pytest.mark.weights
def test_weights_that_are_there_are_verified(settings: Settings) -> None:
    there = dataclasses.replace(
        settings, embedder="minilm-l6", cache_dir=Settings.load(environment={}).cache_dir
    )
    check = found(examine(there), "embedder")
    assert check.status == "ok", check
    assert "verified" in check.detail


def test_a_folder_that_cannot_be_written_is_a_problem(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = dataclasses.replace(settings, cache_dir=tmp_path / "file" / "cache")
    check = found(examine(broken), "cache folder")
    assert check.status == "problem"
    assert "CHIASM_CACHE_DIR" in str(check.fix)


def test_a_disk_that_is_nearly_full_is_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 5_000_000})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    check = found(examine(settings), "data folder")
    assert check.status == "warning"
    assert "5 MB free" in check.detail


def test_a_port_in_use_is_a_warning_with_another_port(settings: Settings) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        busy = dataclasses.replace(settings.server, port=port)
        check = found(examine(dataclasses.replace(settings, server=busy)), "port")
    assert check.status == "warning"
    assert f"--port {port + 1}" in str(check.fix)


def test_collections_are_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (settings.data_dir / "collections").mkdir(parents=True)
    assert "none yet" in found(examine(settings), "collections").detail
    info = library.CollectionInfo(
        "pictures", 1200, library.EmbedderInfo("default", "0", 4), "2026-01-01", "u"
    )
    monkeypatch.setattr(library, "list_collections", lambda *_, **__: [info])
    detail = found(examine(settings), "collections").detail
    assert detail == "pictures (1,200 pictures by default)"


def test_a_collection_that_cannot_be_read_is_a_problem_and_the_rest_is_examined(
    settings: Settings,
) -> None:
    folder = settings.data_dir / "collections" / "broken"
    folder.mkdir(parents=True)
    (folder / "collection.json").write_text("not JSON")
    report = examine(settings)
    check = found(report, "collections")
    assert check.status == "problem"
    assert "broken" in check.detail
    assert StoreError.__name__ not in check.detail
    assert not report.healthy
    assert found(report, "port").status == "ok"


def test_torch_that_cannot_be_loaded_is_a_problem(settings: Settings) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from chiasm.operations.doctor import examine\n"
        "from chiasm.settings import Settings\n"
        "(check,) = [c for c in examine(Settings.load()).checks if c.name == 'device']\n"
        "print(check.status, check.fix)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.split() == ["problem", "pip", "install", "--force-reinstall", "torch"]
