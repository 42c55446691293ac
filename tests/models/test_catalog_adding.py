"""The user's own catalogue: folders entered into it, used where they stand, found by every road."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from chiasm.cli import app
from chiasm.errors import (
    ChiasmError,
    ConfigurationError,
    DigestMismatch,
    DownloadFailed,
    InvalidRequest,
    UnknownModel,
)
from chiasm.models import catalog, checkpoint, clip
from chiasm.models.configuration import read_config
from chiasm.models.preprocess import preprocessor_from_config
from chiasm.models.tokenizer_training import train_clip_tokenizer
from chiasm.operations.doctor import _model
from chiasm.retrieval import load_embedder
from chiasm.settings import Settings
from tests.models.catalog_servers import sha256, write_catalog


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    flags = {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache", "offline": True}
    return Settings.load(flags, environment={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with files in two levels and one that is hidden."""
    folder = tmp_path / "runs" / "my model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "sub" / "more.bin").write_bytes(b"more")
    (folder / ".weights.partial").write_bytes(b"half")
    return folder


def add(settings: Settings, folder: Path, name: str = "shoes") -> catalog.Entry:
    return catalog.add_entry(settings.catalog, name, folder, description='Shoes, "fine-tuned".')


def pull(settings: Settings, name: str = "shoes", **more: Any) -> Path:
    return catalog.pull(name, cache_dir=settings.cache_dir, catalogs=[settings.catalog], **more)


# Entering ---------------------------------------------------------------------------------------


def test_an_entry_states_size_and_digest_of_every_file(settings: Settings, folder: Path) -> None:
    entry = add(settings, folder)
    expected = {
        "weights.bin": catalog.File(7, sha256(b"weights")),
        "sub/more.bin": catalog.File(4, sha256(b"more")),
    }
    assert entry.files == expected
    assert catalog.find("shoes", [settings.catalog]) == entry
    assert entry.description == 'Shoes, "fine-tuned".'
    assert [path.name for path in settings.data_dir.iterdir() if path.suffix == ".toml"] == [
        "catalog.toml"
    ]


@pytest.mark.parametrize("name", ["shoes", "shoes.v2", "0-shoes_3"])
def test_entering_again_replaces_and_leaves_the_rest_alone(
    settings: Settings, folder: Path, name: str
) -> None:
    settings.catalog.parent.mkdir()
    mine = (
        "# mine, by hand\n[other]  # a comment\nkind = 'k'\nlicence = 'l'\ndescription = 'd'\n"
        "bytes = 1\nsources = [{ from = 'hf:a/b' }]\n"
    )
    settings.catalog.write_text(mine)
    first = add(settings, folder, name)
    add(settings, folder, "shoes-too")
    (folder / "weights.bin").write_bytes(b"trained longer")
    second = add(settings, folder, name)
    assert first.files["weights.bin"] != second.files["weights.bin"]
    assert settings.catalog.read_text().startswith(mine)
    assert set(tomllib.loads(settings.catalog.read_text())) == {"other", name, "shoes-too"}
    assert pull(settings, name) == folder


def test_an_entry_written_by_hand_is_replaced_with_its_sources_and_files(
    settings: Settings, folder: Path
) -> None:
    settings.catalog.parent.mkdir()
    write_catalog(settings.catalog, {"f": b"x"}, "file:nowhere")
    text = settings.catalog.read_text()
    last = text.replace("tiny", "last")
    settings.catalog.write_text(f"{text}\n\n# about the last\n{last}\n")
    before = catalog.find("last", [settings.catalog])
    add(settings, folder, "tiny")
    assert catalog.find("last", [settings.catalog]) == before
    assert "# about the last\n[last]" in settings.catalog.read_text()
    assert pull(settings, "tiny") == folder


def test_what_cannot_be_replaced_safely_is_left_as_it_is(settings: Settings, folder: Path) -> None:
    settings.catalog.parent.mkdir()
    dotted = (
        "shoes.kind = 'k'\nshoes.licence = 'l'\nshoes.description = 'd'\nshoes.bytes = 1\n"
        "shoes.sources = [{ from = 'hf:a/b' }]\n"
    )
    settings.catalog.write_text(dotted)
    with pytest.raises(ConfigurationError, match="Delete it from the file"):
        add(settings, folder)
    assert settings.catalog.read_text() == dotted


def test_a_catalogue_that_is_damaged_is_not_written_over(settings: Settings, folder: Path) -> None:
    settings.catalog.parent.mkdir()
    settings.catalog.write_text("[half")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        add(settings, folder)
    assert settings.catalog.read_text() == "[half"


@pytest.mark.parametrize("name", ["hf:a/b", "a b", "", "../x", ".x"])
def test_names_that_mean_something_else_are_refused(
    settings: Settings, folder: Path, name: str
) -> None:
    with pytest.raises(InvalidRequest, match="is no name"):
        add(settings, folder, name)
    assert not settings.catalog.exists()


def test_an_empty_or_missing_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no folder with files"):
        add(settings, tmp_path / "nowhere")


def test_parts_that_a_model_stands_on_are_needed(settings: Settings, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"needs": ["minilm-l6"]}))
    assert add(settings, folder).needs == ("minilm-l6",)
    with pytest.raises(InvalidRequest, match="another name"):
        add(settings, folder, "minilm-l6")


def _enter(arguments: tuple[Path, Path, int]) -> None:
    file, folder, number = arguments
    catalog.add_entry(file, f"model-{number}", folder, description=f"number {number}")


def test_entries_of_several_processes_all_arrive(settings: Settings, folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_enter, [(settings.catalog, folder, number) for number in range(12)])
    assert len(tomllib.loads(settings.catalog.read_text())) == 12


def test_a_catalogue_that_cannot_be_written_does_not_lose_the_model(
    settings: Settings, folder: Path
) -> None:
    settings.data_dir.write_text("a file where a folder should be")
    with pytest.raises(ChiasmError, match="used by its path"):
        add(settings, folder)


# In place ---------------------------------------------------------------------------------------


def test_a_folder_is_used_where_it_stands_and_hashed_once(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(settings, folder)
    assert pull(settings, offline=True) == folder
    assert not any(path.is_dir() for path in (settings.cache_dir / "models").iterdir())

    def hashed(*_: object) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(catalog.cache, "digest_of", hashed)
    assert pull(settings, offline=True) == folder
    with pytest.raises(AssertionError, match="hashed again"):
        pull(settings, verify=True)


def test_a_changed_file_is_named_with_its_digests(settings: Settings, folder: Path) -> None:
    add(settings, folder)
    pull(settings)
    (folder / "weights.bin").write_bytes(b"changed")
    with pytest.raises(DigestMismatch) as caught:
        pull(settings)
    for part in ("weights.bin was changed", sha256(b"weights"), sha256(b"changed"), str(folder)):
        assert part in str(caught.value)
    assert (folder / "weights.bin").read_bytes() == b"changed"


def test_a_moved_folder_and_a_lost_file_are_told_apart(settings: Settings, folder: Path) -> None:
    add(settings, folder)
    (folder / "sub" / "more.bin").unlink()
    with pytest.raises(DownloadFailed, match=r"more\.bin, a file of shoes, is missing"):
        pull(settings)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(DownloadFailed, match="If it was moved, put it back"):
        pull(settings)


def test_another_source_is_taken_where_the_folder_is_gone(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    add(settings, folder)
    shutil.copytree(folder, tmp_path / "copy")
    text = settings.catalog.read_text()
    other = f'in_place = true }}, {{ from = "file:{tmp_path / "copy"}" }}]'
    settings.catalog.write_text(text.replace("in_place = true }]", other))
    shutil.rmtree(folder)
    assert (pull(settings) / "weights.bin").read_bytes() == b"weights"


def test_only_folders_are_used_in_place(settings: Settings) -> None:
    settings.catalog.parent.mkdir()
    settings.catalog.write_text(
        "[x]\nkind = 'k'\nlicence = 'l'\ndescription = 'd'\nbytes = 1\n"
        "sources = [{ from = 'hf:a/b', in_place = true }]\n"
    )
    with pytest.raises(ConfigurationError, match="for file: alone"):
        catalog.entries([settings.catalog])


# Every road leads to it -------------------------------------------------------------------------


def save_tiny_clip(folder: Path) -> None:
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    tokenizer = train_clip_tokenizer(["a red shoe", "a blue shoe"], vocabulary=600, max_length=12)
    text = tower | {"vocab_size": tokenizer.vocabulary, "max_position_embeddings": 12}
    vision = tower | {"image_size": 16, "patch_size": 8}
    entries = {
        "model_type": "clip",
        "projection_dim": 8,
        "text_config": text,
        "vision_config": vision,
    }
    torch.manual_seed(0)
    model = clip.CLIP(read_config(clip.CLIPConfig, entries))
    kind = {"image_processor_type": "CLIPImageProcessor", "crop_size": 16, "size": 16}
    checkpoint.save_checkpoint(folder, model, preprocessor_from_config(kind), tokenizer)


@pytest.fixture
def named(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A tiny CLIP in the user's catalogue, and the environment pointing there."""
    save_tiny_clip(tmp_path / "clip")
    add(settings, tmp_path / "clip")
    monkeypatch.setenv("CHIASM_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("CHIASM_CACHE_DIR", str(settings.cache_dir))
    monkeypatch.setenv("CHIASM_OFFLINE", "1")
    return Settings.load({"embedder": "shoes", "device": "cpu"})


def test_the_catalogue_lies_beside_the_collections(settings: Settings) -> None:
    assert settings.catalog == settings.data_dir / "catalog.toml"


def test_embedders_load_by_the_users_name(named: Settings, tmp_path: Path) -> None:
    by_path = checkpoint.load_dual_encoder(tmp_path / "clip", cache_dir=named.cache_dir)
    embedder = load_embedder(named)
    assert (embedder.name, embedder.digest) == ("shoes", by_path.digest)
    found = checkpoint.locate("shoes", cache_dir=named.cache_dir, catalogs=[named.catalog])
    assert found == tmp_path / "clip"
    with pytest.raises(UnknownModel):
        checkpoint.locate("shoes", cache_dir=named.cache_dir)


def test_the_users_entry_wins_over_the_shipped(
    named: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(named, tmp_path / "clip", "default")
    monkeypatch.setattr(torch, "load", None)  # the shipped one is not even looked at
    loaded = checkpoint.load_dual_encoder(
        "default", cache_dir=named.cache_dir, catalogs=[named.catalog]
    )
    assert loaded.digest == checkpoint.digest(tmp_path / "clip")


def test_commands_know_the_users_models(named: Settings, tmp_path: Path) -> None:
    run = CliRunner()
    listed = json.loads(run.invoke(app, ["pull", "--list", "--json"]).stdout)
    assert {"shoes", "default"} <= {entry["name"] for entry in listed}
    pulled = run.invoke(app, ["pull", "shoes", "--json"])
    assert json.loads(pulled.stdout)[0]["folder"] == str(tmp_path / "clip")
    embedded = run.invoke(app, ["embed", "a shoe", "--embedder", "shoes", "--json"])
    assert json.loads(embedded.stdout)["embedder"]["name"] == "shoes"


def test_the_doctor_looks_at_the_users_model(named: Settings, tmp_path: Path) -> None:
    found = _model("embedder", named.embedder, named)
    assert found.status == "ok"
    assert str(tmp_path / "clip") in found.detail
    (tmp_path / "clip" / "config.json").write_text("{}")
    found = _model("embedder", named.embedder, named)
    assert found.status == "problem"
    assert "config.json was changed" in found.detail
    assert found.fix is not None
    assert str(tmp_path / "clip") in found.fix
