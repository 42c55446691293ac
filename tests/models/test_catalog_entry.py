from __future__ import annotations

from pathlib import Path

import pytest

from chiasm.errors import ConfigurationError, UnknownModel
from chiasm.models import catalog
from tests.models.catalog_servers import write_catalog

DIGEST = "0" * 64


def test_every_shipped_entry_can_be_fetched_and_verified() -> None:
    names = {entry.name for entry in catalog.entries()}
    for entry in catalog.entries():
        assert entry.licence
        assert entry.description
        assert set(entry.needs) <= names
        if entry.shipped:
            assert entry.shipped.is_dir()
        # Whatever is not pinned by a digest here comes from the hub, which states its own.
        assert entry.files or entry.shipped or all(s.scheme == "hf" for s in entry.sources)


def test_the_default_embedder_needs_both_towers() -> None:
    assert catalog.find("default").needs == ("efficientnet-lite0", "minilm-l6")


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog.find("minilm-16")
    assert "minilm-l6" in str(caught.value)


def test_a_repository_without_hf_is_answered_with_the_right_spelling() -> None:
    with pytest.raises(UnknownModel, match="hf:openai/clip-vit-base-patch32"):
        catalog.find("openai/clip-vit-base-patch32")


def test_a_hub_address_needs_no_entry() -> None:
    (source,) = catalog.find("hf:owner/name@v1.0").sources
    assert source.repository() == ("owner/name", "v1.0")


@pytest.mark.parametrize("name", ["hf:", "hf:owner/name/more", "hf:../../etc", "hf:a b"])
def test_a_hub_address_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="owner/name"):
        catalog.find(name)


def test_a_users_catalogue_adds_and_wins(tmp_path: Path) -> None:
    first = write_catalog(tmp_path / "a.toml", {"f": b"1"}, "file:one")
    second = write_catalog(tmp_path / "b.toml", {"f": b"2"}, "file:two")
    missing = tmp_path / "none.toml"
    (source,) = catalog.find("tiny", [first, missing]).sources
    assert source.location == str(tmp_path / "one")  # relative to the catalogue, not to us
    assert catalog.find("tiny", [first, second]).sources[0].location == str(tmp_path / "two")
    assert "tiny" in {entry.name for entry in catalog.entries([first])}
    assert "tiny" not in {entry.name for entry in catalog.entries()}


def test_a_changed_catalogue_is_read_again(tmp_path: Path) -> None:
    path = write_catalog(tmp_path / "a.toml", {"f": b"1"}, "file:one")
    before = catalog.find("tiny", [path]).digest
    write_catalog(path, {"f": b"2"}, "file:one")
    assert catalog.find("tiny", [path]).digest != before


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('kind = "x"', "licence"),
        ('colour = "red"\nneeds = ["a"]', "colour"),
        ("", "names no source"),
        ('sources = [{ from = "ftp:x" }]', "no source"),
        ('sources = [{ from = "pypi:x" }]', "package==version"),
        ('sources = [{ from = "pypi:x==1" }]', "no `files`"),
        ('sources = [{ from = "file:x" }]\n[a.files]\n"f" = { bytes = 1, sha256 = "12" }', "64"),
        (f'needs = ["b"]\n[a.files]\n"../f" = {{ bytes = 1, sha256 = "{DIGEST}" }}', "leads out"),
        (f'needs = ["b"]\n[a.files]\n"/f" = {{ bytes = 1, sha256 = "{DIGEST}" }}', "leads out"),
        (f'needs = ["b"]\n[a.files]\n"C:f" = {{ bytes = 1, sha256 = "{DIGEST}" }}', "leads out"),
        ('sources = [{ from = "hf:a/b", folder = "../x" }]', "leads out"),
        ("needs = [", "not valid TOML"),
    ],
)
def test_a_broken_catalogue_is_named_with_its_fault(tmp_path: Path, body: str, what: str) -> None:
    head = (
        "" if body.startswith("kind") else 'kind = "x"\nlicence = "y"\ndescription = "z"\nbytes=1\n'
    )
    path = tmp_path / "catalog.toml"
    path.write_text(f"[a]\n{head}{body}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=what) as caught:
        catalog.find("a", [path])
    assert str(path) in str(caught.value)
