"""vLLM behind this server answers as the product's own engine does: `make test-vllm`.

Real processes on both sides: checkpoints that `chiasm export` has written, a vLLM server for each,
and `chiasm serve` in front of it. In float32, greedy answers are the same, token for token.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from chiasm.generation import (
    Completed,
    Event,
    Finished,
    Generator,
    ImagePart,
    Message,
    Request,
    TextDelta,
    TextPart,
    load_generator,
)
from chiasm.media import Image
from chiasm.media.encode import encode_png
from chiasm.settings import EngineSettings, Settings
from tests.generation.tiny_models import picture
from tests.vllm.small_llava import write_small_llava

VLLM_PYTHON = os.environ.get("CHIASM_VLLM_PYTHON", ".venv-vllm/bin/python")
STARTING_SECONDS = 420
TEXT_MODEL = "smollm2-135m-instruct"

RED, BLUE = picture((200, 40, 30), (90, 64)), picture((20, 40, 220), (64, 120))
GREEN = picture((20, 200, 60), (70, 70))


@dataclass(frozen=True)
class Served:
    """One model: by the engine in this process, and by vLLM behind `chiasm serve`."""

    engine: Generator
    url: str
    vllm_url: str


# Processes --------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def process(arguments: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[Any]]:
    with log.open("wb") as output:
        child = subprocess.Popen(
            arguments, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


def vllm_server(folder: Path, port: int, log: Path) -> Any:
    arguments = [
        VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--served-model-name", folder.name, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager",
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    # The whole of its cache is taken from memory at once, in GiB.
    return process(
        arguments, log, VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1"
    )


def wait_for(url: str, child: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        said = log.read_text(errors="replace")[-3000:]
        assert child.poll() is None, f"it ended while it started:\n{said}"
        assert time.monotonic() < deadline, f"it did not start:\n{said}"
        time.sleep(0.5)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def running(home: Path) -> Iterator[dict[str, Served]]:
    """Both models, exported and served. vLLM takes a minute to start, so both start at once."""
    write_small_llava(home / "saved")
    sources = {"small-llava": str(home / "saved"), "smollm2": TEXT_MODEL}
    with contextlib.ExitStack() as stack:
        started = {}
        for name, source in sources.items():
            export = [sys.executable, "-m", "chiasm.cli", "export", source, "--to", "hf"]
            subprocess.run([*export, str(home / name)], check=True)
            port, log = _free_port(), home / f"{name}.vllm.log"
            child = stack.enter_context(vllm_server(home / name, port, log))
            started[name] = (f"http://127.0.0.1:{port}", child, log)
        for url, child, log in started.values():
            wait_for(f"{url}/v1/models", child, log)
        served = {}
        for name, source in sources.items():
            port, log = _free_port(), home / f"{name}.chiasm.log"
            arguments = [
                sys.executable, "-m", "chiasm.cli", "serve", "--port", str(port), "--no-sample",
                "--generator", f"vllm:{started[name][0]}", "--offline",
            ]  # fmt: skip
            child = stack.enter_context(
                process(arguments, log, CHIASM_DATA_DIR=str(home / name / "data"))
            )
            wait_for(f"http://127.0.0.1:{port}/readyz", child, log)
            engine = load_generator(
                dataclasses.replace(
                    Settings.load(), generator=source, engine=EngineSettings(precision="float32")
                )
            )
            stack.callback(engine.close)
            served[name] = Served(engine, f"http://127.0.0.1:{port}", started[name][0])
        yield served


@pytest.fixture(scope="session")
def seer(running: dict[str, Served]) -> Served:
    """A LLaVA of random weights."""
    return running["small-llava"]


@pytest.fixture(scope="session")
def talker(running: dict[str, Served]) -> Served:
    """SmolLM2, as the catalogue has it."""
    return running["smollm2"]


# Asking both ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    text: str
    reason: str
    prompt: tuple[int, int]  # tokens of text and of pictures
    tokens: int
    logprobs: tuple[float, ...] = ()


def _whole(text: str) -> str:
    """Without half a character at its end, where an answer is cut: vLLM leaves it out."""
    return text.rstrip("\ufffd")


def by_engine(engine: Generator, request: Request) -> Answer:
    events: list[Event] = list(engine.run(request))
    (reason,) = (event.reason for event in events if isinstance(event, Finished))
    spent = next(event.usage for event in events if isinstance(event, Completed))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    return Answer(
        text=_whole("".join(event.text for event in deltas)),
        reason=reason,
        prompt=(spent.text_tokens, spent.image_tokens),
        tokens=spent.answer_tokens,
        logprobs=tuple(token.logprob for event in deltas for token in event.tokens),
    )


def _body(request: Request) -> dict[str, Any]:
    """As a client of the API writes it."""

    def part(each: Any) -> dict[str, Any]:
        if not isinstance(each, ImagePart):
            return {"type": "text", "text": each.text}
        data = base64.b64encode(encode_png(each.image)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    return {
        "messages": [
            {"role": message.role, "content": [part(each) for each in message.parts]}
            for message in request.messages
        ],
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stop": list(request.stop) or None,
        "logprobs": request.logprobs is not None,
    }


def by_vllm(served: Served, request: Request) -> Answer:
    said = httpx.post(f"{served.url}/v1/chat/completions", json=_body(request), timeout=300)
    assert said.status_code == 200, said.text
    body = said.json()
    (choice,), spent = body["choices"], body["usage"]
    details = spent["prompt_tokens_details"]
    logprobs = (choice["logprobs"] or {}).get("content", [])
    return Answer(
        text=_whole(choice["message"]["content"]),
        reason=choice["finish_reason"],
        prompt=(details["text_tokens"], details["image_tokens"]),
        tokens=spent["completion_tokens"],
        logprobs=tuple(entry["logprob"] for entry in logprobs),
    )


def question(*parts: str | Image, **options: Any) -> Request:
    return Request((Message.user(*parts),), **{"max_tokens": 24, **options})


SEEN = [
    question(RED, "What is this?"),
    question("Look: ", BLUE, "How many birds?"),
    question(RED, BLUE, "Which is red?"),
    question(BLUE, RED, "Which is red?"),
    question(RED, "and", GREEN, "and", BLUE, "Sure?"),
    Request(
        (
            Message("system", (TextPart("A red bicycle."),)),
            Message.user(GREEN, "What is this?"),
            Message("assistant", (TextPart("A horse."),)),
            Message.user("And this? ", RED),
        ),
        max_tokens=24,
    ),
    question("There is no picture here."),
]
SAID = [
    question("What is the capital of France?"),
    question("Name three colours.", max_tokens=32),
    question("Wie heißt du? 你好，世界。", max_tokens=16),
    question("What is a cat? One sentence.", max_tokens=48),
    question("Count from one to ten.", max_tokens=64, stop=("six", "\n\n")),
    Request(
        (
            Message("system", (TextPart("Answer in one word."),)),
            Message.user("Is the sky blue?"),
            Message("assistant", (TextPart("Yes."),)),
            Message.user("And grass?"),
        ),
        max_tokens=16,
    ),
]


@pytest.mark.parametrize("request_", SEEN, ids=range(len(SEEN)))
def test_greedy_answers_about_pictures(seer: Served, request_: Request) -> None:
    assert by_vllm(seer, request_) == by_engine(seer.engine, request_)


@pytest.mark.parametrize("request_", SAID, ids=range(len(SAID)))
def test_greedy_answers_to_texts(talker: Served, request_: Request) -> None:
    assert by_vllm(talker, request_) == by_engine(talker.engine, request_)


def test_it_knows_the_capital(talker: Served) -> None:
    assert by_vllm(talker, SAID[0]).text == "The capital of France is Paris."


def test_pictures_matter(seer: Served) -> None:
    answers = {by_vllm(seer, request).text for request in SEEN}
    assert len(answers) == len(SEEN)


def test_log_probabilities(talker: Served) -> None:
    asked = question("What is the capital of France?", logprobs=0, max_tokens=6)
    engine, vllm = by_engine(talker.engine, asked), by_vllm(talker, asked)
    assert len(vllm.logprobs) == 6
    assert vllm.logprobs == pytest.approx(engine.logprobs, abs=1e-3)


def test_all_at_once(seer: Served) -> None:
    wanted = [by_engine(seer.engine, request) for request in SEEN]
    with ThreadPoolExecutor(len(SEEN)) as pool:
        assert list(pool.map(lambda request: by_vllm(seer, request), SEEN)) == wanted


def test_a_schema(talker: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "legs": {"type": "integer"}},
        "required": ["name", "legs"],
        "additionalProperties": False,
    }
    body = {
        **_body(question("Describe a cat.", max_tokens=200)),
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }
    said = httpx.post(f"{talker.url}/v1/chat/completions", json=body, timeout=300).json()
    animal = json.loads(said["choices"][0]["message"]["content"])
    assert set(animal) == {"name", "legs"}
    assert isinstance(animal["legs"], int)


def test_seeds(talker: Served) -> None:
    def drawn(**more: Any) -> list[str]:
        body = {**_body(question("Tell me something.")), "temperature": 1.2, "n": 3, **more}
        said = httpx.post(f"{talker.url}/v1/chat/completions", json=body, timeout=300).json()
        return [choice["message"]["content"] for choice in said["choices"]]

    assert drawn(seed=5, top_k=50) == drawn(seed=5, top_k=50)
    assert drawn(seed=5, top_k=50) != drawn(seed=6, top_k=50)
    assert len(set(drawn(seed=5, top_k=50))) == 3
    assert len(set(drawn(seed=5, top_k=1))) == 1


def test_what_it_is(seer: Served, talker: Served) -> None:
    for served, name, vision in ((seer, "small-llava", True), (talker, "smollm2", False)):
        models = httpx.get(f"{served.url}/v1/models", timeout=30).json()["data"]
        (chat,) = (model for model in models if model["kind"] == "chat")
        assert (chat["id"], chat["context"], chat["vision"]) == (name, 2048, vision)


def test_refusals(seer: Served, talker: Served) -> None:
    def refused(served: Served, request: Request) -> tuple[int, str]:
        url = f"{served.url}/v1/chat/completions"
        said = httpx.post(url, json=_body(request), timeout=300)
        return said.status_code, str(said.json()["error"]["code"])

    assert refused(talker, question(RED, "?"))[0] == 400
    assert refused(talker, question("word " * 4000)) == (400, "context_length_exceeded")
    assert refused(seer, question("word " * 4000)) == (400, "context_length_exceeded")


def test_who_goes_away_frees_the_server(talker: Served) -> None:
    body = {**_body(question("Tell me a long story.", max_tokens=1500)), "stream": True}
    body["temperature"], body["seed"] = 1.0, 1
    with httpx.stream(
        "POST", f"{talker.url}/v1/chat/completions", json=body, timeout=300
    ) as response:
        pieces = (line for line in response.iter_lines() if '"content":"' in line)
        for _ in range(4):
            next(pieces)
        assert _running(talker) == 1
    deadline = time.monotonic() + 10
    while _running(talker):
        assert time.monotonic() < deadline, "vLLM goes on though nobody listens"
        time.sleep(0.1)


def _running(served: Served) -> int:
    lines = httpx.get(f"{served.vllm_url}/metrics", timeout=30).text.splitlines()
    (line,) = (each for each in lines if each.startswith("vllm:num_requests_running{"))
    return int(float(line.rsplit(" ", 1)[1]))
