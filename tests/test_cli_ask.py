"""`chiasm ask` as a person and as a program meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chiasm.cli import app
from chiasm.errors import (
    ChiasmError,
    ContextExceeded,
    GeneratorUnreachable,
    InvalidRequest,
    NotAnImage,
    ProviderKeyRefused,
    UnknownModel,
)
from chiasm.media import encode_jpeg
from tests.generation.providers.fake_openai import FakeOpenAI
from tests.generation.providers.fake_vllm import FakeVLLM, answering
from tests.generation.tiny_models import picture, save, tiny_language_model, tiny_llava


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folders: `seer` reads pictures, `talker` does not."""
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llava(folder / "a", context=256), folder / "seer")
    save(tiny_language_model(folder / "b"), folder / "talker")
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    for name, colour in (("cat", (200, 40, 30)), ("dog", (20, 40, 220))):
        (tmp_path / f"{name}.jpg").write_bytes(encode_jpeg(picture(colour)))
    return tmp_path


def ask(*arguments: str, model: Path) -> Result:
    return CliRunner().invoke(app, ["ask", *arguments, "-g", str(model)], catch_exceptions=False)


def ask_json(*arguments: str, model: Path) -> Any:
    result = ask(*arguments, "--json", "--max-tokens", "12", model=model)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_answer_alone_goes_to_standard_output(photos: Path, models: Path) -> None:
    result = ask("cat.jpg", "What is this?", "--max-tokens", "8", model=models / "seer")
    assert result.exit_code == 0
    expected = ask_json("cat.jpg", "What is this?", model=models / "seer")["answer"]
    assert expected.startswith(result.stdout.removesuffix("\n")[:4])
    for said in ("16 image tokens", "text tokens", "first token after", "tokens/s"):
        assert said in " ".join(result.stderr.split())
    assert "cut at --max-tokens" in " ".join(result.stderr.split())


def test_pictures_are_read_in_their_order(photos: Path, models: Path) -> None:
    one = ask_json("cat.jpg", "What is this?", model=models / "seer")
    two = ask_json("cat.jpg", "dog.jpg", "What is this?", model=models / "seer")
    turned = ask_json("dog.jpg", "cat.jpg", "What is this?", model=models / "seer")
    assert len({one["answer"], two["answer"], turned["answer"]}) == 3
    assert [a["usage"]["images"] for a in (one, two)] == [1, 2]
    assert two["usage"]["image_tokens"] == 32
    assert two["usage"]["vision_flops"] == 2 * one["usage"]["vision_flops"] > 0


def test_seeds_and_instructions_change_the_answer(photos: Path, models: Path) -> None:
    def draw(*more: str) -> str:
        arguments = ("cat.jpg", "What?", "--temperature", "1.5", *more)
        return str(ask_json(*arguments, model=models / "seer")["answer"])

    assert draw("--seed", "1") == draw("--seed", "1")
    assert draw("--seed", "1") != draw("--seed", "2")
    assert draw("--seed", "1", "--system", "Be brief.") != draw("--seed", "1")


def test_a_schema_in_a_file(photos: Path, models: Path) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    schema["additionalProperties"] = False
    Path("schema.json").write_text(json.dumps(schema))
    answer = ask_json("cat.jpg", "Sure?", "--schema", "schema.json", model=models / "seer")
    assert json.loads(answer["answer"])["sure"] in (True, False)
    assert answer["finish_reason"] == "stop"


def test_text_alone(photos: Path, models: Path) -> None:
    answer = ask_json("--text", "What is this?", model=models / "talker")
    assert answer["usage"]["image_tokens"] == 0
    assert answer["answer"]


@pytest.mark.parametrize(
    ("arguments", "model", "kind", "said"),
    [
        ((), "seer", InvalidRequest, "no question after the pictures"),
        (("cat.jpg",), "seer", InvalidRequest, "no question after the pictures"),
        (("cat.jpg", "dog.jpg"), "seer", InvalidRequest, "no question after the pictures"),
        (("What is this?",), "seer", InvalidRequest, "no picture to ask about"),
        (("cat.jpg", "What?"), "talker", InvalidRequest, "reads text alone"),
        (("cat.jpg", "What?"), "nowhere", UnknownModel, "nowhere"),
        (("notes.txt", "What?"), "seer", NotAnImage, "notes.txt"),
        (("gone.jpg", "What?"), "seer", ChiasmError, "gone.jpg"),
        (("cat.jpg", "What is this? " * 200), "seer", ContextExceeded, "reads 256"),
        (("cat.jpg",) * 20 + ("What?",), "seer", ContextExceeded, "320 of them for 20 pictures"),
        (("cat.jpg", "What?", "--schema", "notes.txt"), "seer", InvalidRequest, "no JSON object"),
    ],
)
def test_bad_input(
    photos: Path,
    models: Path,
    arguments: tuple[str, ...],
    model: str,
    kind: type[ChiasmError],
    said: str,
) -> None:
    Path("notes.txt").write_text("plain text")
    with pytest.raises(kind, match=said):
        ask(*arguments, "--offline", model=models / model)


def test_a_model_that_runs_elsewhere(photos: Path) -> None:
    with FakeVLLM() as server:
        server.script = lambda body: answering("A cat.", prompt=38, images=16)
        arguments = ["ask", "cat.jpg", "What is this?", "-g", f"vllm:{server.url}"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.stdout == "A cat.\n"
    said = " ".join(result.stderr.split())
    assert "16 image tokens · 22 text tokens · first token after" in said
    assert "GFLOP" not in said  # nobody knows
    with pytest.raises(GeneratorUnreachable, match=f"{server.url} cannot be reached"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_vendors_model(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not asked for is the vendor's to decide: some of its models take no temperature."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with FakeOpenAI() as server:
        arguments = ["ask", "cat.jpg", "What is this?", "-g", f"openai:{server.url}#gpt-5-mini"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        (asked,) = server.asked
    assert result.stdout == "A cat sleeps.\n"
    assert set(asked.body) == {"model", "messages", "stream", "stream_options"}
    assert asked.headers["authorization"] == "Bearer sk-test"
    monkeypatch.delenv("OPENAI_API_KEY")
    arguments[-1] = "openai:gpt-5-mini"
    with pytest.raises(ProviderKeyRefused, match="OPENAI_API_KEY"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
