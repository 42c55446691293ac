"""The thread around an engine: failures, endings, and those who ask at the wrong time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chiasm.errors import ConfigurationError, NotReady
from chiasm.generation import Completed, Message, NativeGenerator, Request
from chiasm.generation.engine.engine import Engine
from chiasm.generation.engine.kernels.passes import KernelPasses
from chiasm.generation.engine.native import load_native_generator
from chiasm.generation.engine.prompt import build_prompt
from chiasm.models.decoder import Decoder
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.settings import Settings
from tests.generation.driving import Heard
from tests.generation.tiny_models import picture, save

ENDLESS = {"type": "string", "minLength": 1000}


@pytest.fixture
def generator(llava: GeneratorCheckpoint) -> Iterator[NativeGenerator]:
    made = NativeGenerator(llava)
    yield made
    made.close()


def asked(text: str, **more: Any) -> Request:
    return Request((Message.user(text),), **{"max_tokens": 6, **more})


def test_a_pass_that_fails_ends_those_questions_and_no_others(
    generator: NativeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = KernelPasses.run
    broken = True

    def failing(self: KernelPasses, pieces: Any) -> Any:
        if broken:
            raise RuntimeError("a processor has melted")
        return run(self, pieces)

    monkeypatch.setattr(KernelPasses, "run", failing)
    with pytest.raises(RuntimeError, match="melted"):
        list(generator.run(asked("Hello")))
    broken = False
    events = list(generator.run(asked("Hello")))
    assert isinstance(events[-1], Completed)
    engine = generator._engine
    assert isinstance(engine, Engine)
    assert engine.blocks.available == engine.blocks.count


def test_a_warm_up_before_and_between_questions(generator: NativeGenerator) -> None:
    generator.warm_up()
    first = Heard(list(generator.run(asked("What is this?")))).text
    generator.warm_up()
    assert Heard(list(generator.run(asked("What is this?")))).text == first
    assert 4 <= generator.running <= 16


def test_a_warm_up_that_fails_is_heard_of(
    generator: NativeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: KernelPasses) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(KernelPasses, "warm_up", failing)
    with pytest.raises(RuntimeError, match="no compiler"):
        generator.warm_up()
    assert list(generator.run(asked("Hello")))


def test_closing_while_many_are_answered(llava: GeneratorCheckpoint) -> None:
    generator = NativeGenerator(llava, running=3)
    ended: list[BaseException] = []
    begun = threading.Semaphore(0)

    def ask(number: int) -> None:
        try:
            for _ in generator.run(asked(f"{number}", max_tokens=1500, schema=ENDLESS)):
                begun.release()
        except NotReady as error:
            ended.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        assert begun.acquire(timeout=60)
    generator.close()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 6
    for call in (lambda: list(generator.run(asked("Hello"))), generator.warm_up):
        with pytest.raises(NotReady):
            call()


def test_a_question_that_was_read_while_the_door_closed_hears_of_it(
    llava: GeneratorCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = NativeGenerator(llava)
    read = Engine.read

    def slow(self: Engine, *args: Any, **more: Any) -> Any:
        question = read(self, *args, **more)
        generator.close()
        return question

    monkeypatch.setattr(Engine, "read", slow)
    with pytest.raises(NotReady):
        list(generator.run(asked("Hello")))


LEFT_OPEN = """
import sys
from chiasm.generation import Message, NativeGenerator, Request
from chiasm.models.generator import load_generator
checkpoint = load_generator(sys.argv[1], cache_dir=sys.argv[1])
generator = NativeGenerator(checkpoint, precision="bfloat16")
endless = {"type": "string", "minLength": 5000}
asked = [
    generator.run(Request((Message.user(f"{n}"),), max_tokens=1500, schema=endless))
    for n in range(8)
]
for each in asked:
    next(each)
print("one token is there")
"""


def test_a_process_that_ends_in_the_middle_of_an_answer(
    llava: GeneratorCheckpoint, tmp_path: Path
) -> None:
    save(llava, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, str(tmp_path)], capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "one token is there\n"


def test_the_context_is_what_the_memory_holds(llava: GeneratorCheckpoint) -> None:
    generator = NativeGenerator(llava, pool_bytes=0)
    assert generator.context == 64 < llava.context
    generator.close()


def test_what_the_kernels_cannot_run_is_answered_by_torch_and_together(
    llava: GeneratorCheckpoint,
) -> None:
    config = dataclasses.replace(llava.config, head_dim=12)
    torch.manual_seed(3)
    odd = Decoder(config).eval().requires_grad_(False)
    checkpoint = GeneratorCheckpoint(odd, None, llava.tokenizer, "odd", "9" * 64)
    request = asked("Hello")
    ids = list(build_prompt(request.messages, checkpoint).ids)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(odd.logits(odd(odd.embed(torch.tensor([ids]))))[0, -1].argmax()))
    generator = NativeGenerator(checkpoint, precision="auto", pool_bytes=2**20)
    assert generator.running > 1
    said = Heard(list(generator.run(request))).text
    assert said == checkpoint.tokenizer.decode(ids[-6:])
    generator.close()


def test_a_precision_that_cannot_be_had(llava: GeneratorCheckpoint) -> None:
    odd = Decoder(dataclasses.replace(llava.config, head_dim=12)).requires_grad_(False)
    checkpoint = GeneratorCheckpoint(odd, None, llava.tokenizer, "odd", "9" * 64)
    with pytest.raises(ConfigurationError, match="int8"):
        NativeGenerator(checkpoint, precision="int8")


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_the_settings_say_how_weights_are_held(
    llava: GeneratorCheckpoint, tmp_path: Path, precision: str
) -> None:
    save(llava, tmp_path)
    flags = {"generator": str(tmp_path), "device": "cpu", "engine.precision": precision}
    generator = load_native_generator(Settings.load(flags, environment={}))
    model: Any = generator.checkpoint.model
    held = {parameter.dtype for parameter in model.parameters()}
    assert held == {torch.bfloat16 if precision == "bfloat16" else torch.float32}
    request = Request((Message.user(picture(), "What is this?"),), max_tokens=6)
    assert Heard(list(generator.run(request))).usage.answer_tokens
    generator.close()
