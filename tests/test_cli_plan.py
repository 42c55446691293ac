"""`chiasm plan` as a person and as a program meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from typer.testing import CliRunner, Result

from chiasm.cli import app
from chiasm.errors import InvalidRequest, NotAnImage, UnknownModel
from chiasm.operations.database import open_database
from chiasm.operations.ledger import Ledger
from tests.operations.entries import NOON, entry


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CHIASM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    picture = PIL.Image.effect_noise((1092, 1092), 50)
    picture.save("noise.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.new("RGB", (400, 200)).save("turned.jpg", exif=exif)
    # All that is read is the header: what stands after it may be missing.
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:5000])
    return tmp_path


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


def plan_json(*arguments: str) -> Any:
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_table_of_many_models(photos: Path) -> None:
    result = plan("noise.png", "--prompt", "What is this?")
    assert result.exit_code == 0
    assert "1092×1092" in result.stdout
    for said in ("anthropic/claude-haiku-4-5", "openai/gpt-4o", "SmolVLM-256M-Instruct", "1,521"):
        assert said in result.stdout
    assert "rule" not in result.stdout.splitlines()[1]


def test_one_document_of_json(photos: Path) -> None:
    found = plan_json("noise.png", "--models", "claude-haiku-4-5", "--answer-tokens", "0")
    assert found["pictures"] == [{"name": "noise.png", "width": 1092, "height": 1092}]
    (row,) = found["data"]
    assert row["image_tokens"] == 1521  # Anthropic's own example
    assert row["cost"] == pytest.approx((1521 + row["text_tokens"]) * 1e-6)


def test_only_headers_are_read_and_turned_pictures_stand(photos: Path) -> None:
    found = plan_json("cut.png", "turned.jpg", "--models", "gpt-4o")
    assert [(each["width"], each["height"]) for each in found["pictures"]] == [
        (1092, 1092),
        (200, 400),
    ]


def test_sizes_without_pictures_and_a_budget(photos: Path) -> None:
    found = plan_json("--size", "4000x3000", "--models", "claude-haiku-4-5", "--fit", "tokens=800")
    (row,) = found["data"]
    assert row["image_tokens"] <= 800
    assert row["images"][0]["sent"][0] < 4000
    cheap = plan_json("--size", "4000x3000", "--models", "claude-haiku-4-5", "--fit", "cost=0.002")
    assert cheap["data"][0]["cost"] <= 0.002


def test_the_same_picture_twice(photos: Path) -> None:
    found = plan_json("noise.png", "turned.jpg", "noise.png", "--models", "gpt-4o")
    assert found["repeats"] == [{"picture": 2, "first": 0}]
    result = plan("noise.png", "noise.png", "--models", "gpt-4o")
    assert "Picture 2 is picture 1 again" in result.stderr


def test_where_each_number_is_from(photos: Path) -> None:
    said = plan("noise.png", "--models", "gpt-4o", "--verbose").stdout
    assert "genai-prices" in said
    assert "2026" in said


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ([], InvalidRequest, "nothing to plan"),
        (["--size", "10"], InvalidRequest, "1920x1080"),
        (["--size", "0x10"], InvalidRequest, "1920x1080"),
        (["--size", "9x9", "--fit", "tokens=none"], InvalidRequest, "tokens=800"),
        (["--size", "9x9", "--fit", "cost=-1"], InvalidRequest, "tokens=800"),
        (["--size", "9x9", "--models", "gpt-4oo"], UnknownModel, "gpt-4o"),
        (["plan.txt"], NotAnImage, "plan.txt"),
    ],
)
def test_what_cannot_be_planned(
    photos: Path, arguments: list[str], error: type[Exception], words: str
) -> None:
    (photos / "plan.txt").write_text("no picture")
    with pytest.raises(error, match=words):
        plan(*arguments)


def test_it_imports_neither_torch_nor_sqlalchemy(photos: Path) -> None:
    script = (
        "import sys\nsys.argv = ['chiasm', 'plan', '--size', '640x480', '--json']\n"
        "from chiasm.cli import main\nmain()\n"
        "print(sorted({'torch', 'sqlalchemy', 'transformers', 'fastapi'} & set(sys.modules)),"
        " file=sys.stderr)\n"
    )
    script = script.replace("main()\n", "try:\n    main()\nexcept SystemExit:\n    pass\n", 1)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True
    )
    assert ran.stderr.strip().endswith("[]")
    assert json.loads(ran.stdout)["object"] == "plan"


# Bills against plans ----------------------------------------------------------------------------


def bills(folder: Path, ratios: list[float]) -> None:
    with closing(open_database("", folder / "data")) as database, closing(Ledger(database)) as rows:
        for number, ratio in enumerate(ratios):
            rows.put(
                entry(
                    time=NOON + timedelta(minutes=number),
                    request_id=f"req_{number}",
                    status=200,
                    images=1,
                    planned_text_tokens=20,
                    planned_image_tokens=1000 + number,
                    text_tokens=20,
                    image_tokens=round((1000 + number) * ratio),
                )
            )
        assert rows.flush()


def test_no_bills_yet(photos: Path) -> None:
    result = plan("--check")
    assert result.exit_code == 0
    assert "no bills" in result.stderr


def test_a_model_that_bills_as_planned(photos: Path) -> None:
    bills(photos, [1.0] * 30)
    result = plan("--check")
    assert result.exit_code == 0
    assert "openai/gpt-5-mini" in result.stdout
    assert "1.000" in result.stdout


def test_a_vendors_silent_change_is_noticed(photos: Path) -> None:
    bills(photos, [1.0] * 30 + [1.2] * 30)
    result = plan("--check")
    assert result.exit_code == 1
    assert "drifts" in result.stdout
    assert "2026-11-25 12:30" in result.stdout
    result = plan("--check", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)
    assert found["drifts"] is True
    assert found["ratio"] == pytest.approx(1.196, abs=0.01)
    assert plan("--check", "--models", "openai/gpt-4o").exit_code == 0
