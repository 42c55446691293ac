"""The command line as a person and as a program meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from chiasm import __version__
from chiasm.cli import app
from chiasm.errors import ChiasmError, CollectionNotFound, InvalidRequest
from chiasm.media import Image, encode_jpeg


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as the shell would start it."""
    return subprocess.run(
        [sys.executable, "-m", "chiasm.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of this test's own; the weights stay in the user's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def folder(home: Path) -> Path:
    """Four pictures, one of them twice, and a file that only claims to be one."""
    folder = home / "pictures"
    folder.mkdir()
    rows, columns = np.mgrid[0:240, 0:320]
    for number, name in enumerate(("one", "two", "three", "four")):
        wave = 128 + 90 * np.sin(rows / (7 + 9 * number)) * np.cos(columns / (31 - 6 * number))
        pixels = np.stack([wave, np.roll(wave, 40 * number), 255 - wave], axis=2).astype(np.uint8)
        (folder / f"{name}.jpg").write_bytes(encode_jpeg(Image(pixels, (320, 240))))
    (folder / "same-as-one.jpg").write_bytes((folder / "one.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes((folder / "two.jpg").read_bytes()[:700])
    (folder / "one.txt").write_text("the first one", encoding="utf-8")
    return folder


def invoke(*arguments: str) -> Result:
    wide = {"COLUMNS": "240"}  # so that no cell of a table is folded
    return CliRunner(env=wide).invoke(app, [*arguments], catch_exceptions=False)


def invoke_json(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# Without weights --------------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    """`--help` must answer at once: nothing that takes a while to import may be imported."""
    code = (
        "import sys\n"
        "from chiasm.cli import main\n"
        "sys.argv = ['chiasm', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lancedb', 'pyarrow', 'numpy', 'PIL', 'fastapi', 'uvicorn', 'pydantic',"
        " 'huggingface_hub', 'tokenizers', 'sqlalchemy', 'alembic', 'chiasm.retrieval.store',"
        " 'chiasm.server.app'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("serve", "pull", "index", "search", "embed", "doctor"):
        assert command in done.stdout


def test_version() -> None:
    assert run("--version").stdout.strip() == f"chiasm {__version__}"


def test_an_error_is_a_sentence_and_an_exit_code(home: Path) -> None:
    done = run("index", str(home / "nowhere"))
    assert done.returncode == InvalidRequest.exit_code
    assert done.stdout == ""
    assert "nowhere is not a folder" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_an_error_in_json_goes_where_the_result_would(home: Path) -> None:
    done = run("embed", "--json")
    assert done.returncode == InvalidRequest.exit_code
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "invalid_request_error"
    assert "nothing to embed" in error["message"]


def test_an_unknown_error_shows_no_stack_trace_unless_asked(tmp_path: Path) -> None:
    """A data folder that is a file is nothing any plane expects."""
    code = (
        "import sys\nfrom chiasm import cli\n"
        "@cli.app.command()\ndef explode() -> None:\n    raise RuntimeError('boom')\n"
        "sys.argv = ['chiasm', 'explode']\ncli.main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "RuntimeError: boom" in done.stderr
    assert "Traceback" not in done.stderr
    environment = os.environ | {"CHIASM_DEBUG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "Traceback" in done.stderr


def test_a_bad_filter_is_named(home: Path) -> None:
    for text, words in (("{kind: 1}", "not valid JSON"), ("[1]", "a JSON object")):
        with pytest.raises(InvalidRequest, match=words):
            invoke("search", "x", "--filter", text)


def test_the_catalogue_can_be_listed() -> None:
    names = [entry["name"] for entry in invoke_json("pull", "--list")]
    assert "default" in names
    assert "default" in invoke("pull", "--list").stdout


def test_collections_without_any(home: Path) -> None:
    assert invoke_json("collections", "list") == []
    with pytest.raises(CollectionNotFound, match="nothing"):
        invoke("collections", "delete", "nothing", "--yes")


def test_doctor_tells_the_truth_about_a_folder_that_cannot_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "data").write_text("in the way", encoding="utf-8")
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    problems = [
        check for check in json.loads(result.stdout)["checks"] if check["status"] == "problem"
    ]
    assert any(str(home / "data") in check["detail"] for check in problems)


# With the default weights -----------------------------------------------------------------------


@pytest.mark.weights
def test_index_search_and_go_on(folder: Path) -> None:
    report = invoke_json("index", str(folder), "-c", "trial")
    assert (report["added"], report["duplicates"]) == (4, 1)
    assert [Path(failure["file"]).name for failure in report["failures"]] == ["broken.jpg"]
    assert "damaged or cut short" in report["failures"][0]["reason"]

    again = invoke("index", str(folder), "-c", "trial")
    assert again.exit_code == 0
    assert "0 added" in again.stdout
    assert "broken.jpg" in again.stdout, "a file that failed is tried and listed again"

    found = invoke_json("search", "-c", "trial", "--image", str(folder / "three.jpg"), "-n", "2")
    assert len(found["data"]) == 2
    assert Path(found["data"][0]["item"]["source"]).name == "three.jpg"
    assert found["data"][0]["score"] > 0.99

    table = invoke("search", "waves", "-c", "trial")
    assert table.exit_code == 0
    assert "the first one" in table.stdout

    [info] = invoke_json("collections", "list")
    assert (info["name"], info["items"]) == ("trial", 4)
    assert invoke("collections", "delete", "trial", "--yes").exit_code == 0
    assert invoke_json("collections", "list") == []


@pytest.mark.weights
def test_recreating_from_a_folder_that_is_not_there_deletes_nothing(folder: Path) -> None:
    invoke("index", str(folder), "-c", "trial")
    for arguments in (
        ["index", str(folder / "typo"), "-c", "trial", "--recreate"],
        ["index", str(folder), "-c", "trial", "--recreate", "--metadata", str(folder / "no.csv")],
    ):
        with pytest.raises(ChiasmError):
            invoke(*arguments)
    assert invoke_json("collections", "list")[0]["items"] == 4


@pytest.mark.weights
def test_embed(folder: Path) -> None:
    out = folder / "vectors.npy"
    picture = str(folder / "one.jpg")
    answer = invoke_json("embed", "a wave", "a wave", "--image", picture, "--out", str(out))
    vectors = np.array([row["embedding"] for row in answer["data"]])
    assert vectors.shape == (3, answer["dimension"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(np.load(out), vectors, atol=1e-7)
    assert "1.000" in invoke("embed", "a wave", "--image", picture).stdout


@pytest.mark.weights
def test_doctor_finds_a_working_installation_healthy(home: Path) -> None:
    report = invoke_json("doctor")
    assert all(check["status"] != "problem" for check in report["checks"]), report
