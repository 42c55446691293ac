"""llama.cpp decoding, for `serving.py`; run by a Python that has `llama-cpp-python`.

    python llama.py FILE.gguf TOKENS THREADS < prompts, one JSON text a line

Says one line of JSON for each prompt: the seconds between its tokens.
"""

import itertools
import json
import sys
import time

from llama_cpp import Llama

file, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = Llama(file, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
for line in sys.stdin:
    ids = model.tokenize(json.loads(line).encode(), add_bos=False, special=True)
    stamps = []
    for _token in model.generate(ids, temp=0.0):
        stamps.append(time.perf_counter())
        if len(stamps) == count:
            break
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    print(json.dumps(gaps), flush=True)
