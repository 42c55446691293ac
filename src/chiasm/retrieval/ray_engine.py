"""The pictures of a folder opened and embedded by the workers of a Ray cluster, through Ray Data.

This process decides what has to be opened and writes what comes back: it alone touches the
collection, so a kill, a duplicate or an interrupt mean the same as without Ray. A worker
(`ray_worker`) gets the files' paths, so it must see them, and gives back what the collection keeps
of each picture: digests, a thumbnail, a vector. Pixels never travel.

Batches come back in the order of the paths, so of two equal pictures it is the first that stays.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

import chiasm
from chiasm.errors import ChiasmError, ConfigurationError
from chiasm.retrieval.embedder import Embedder, load_embedder
from chiasm.retrieval.opening import UNOPENED, reason_of
from chiasm.retrieval.prepared import Prepared
from chiasm.retrieval.ray_worker import Found, Worker, packed
from chiasm.retrieval.store import Vectors
from chiasm.settings import Settings

if TYPE_CHECKING:
    from chiasm.retrieval.indexing import Indexing, Wanted

_POLL = 0.2  # seconds between looks at whether to stop
_PATIENCE = 10.0  # seconds for a batch that is under way when all others are given up
_GPU_READERS = 4  # threads that decode for one worker on a GPU
_OBJECT_STORE_BYTES = 512 * 1024 * 1024  # of a Ray of our own: some batches of thumbnails
_WORDS = 300  # letters of a foreign error that are shown
_ERROR = re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception): .+)$", re.MULTILINE)

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Data makes Ray's core warn about an actor that Ray Data itself has made.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # What the cluster has to tell would be printed amid the report, or the JSON.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # Else a thread of Ray Data's that outlives our Ray would start another one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}

Loader = Callable[[Settings], Embedder]


class RayEngine:
    """A connection to Ray, for `index_folder`, inside a `with`.

    address: of a cluster; without one RAY_ADDRESS, or else a Ray on this machine that ends with
        the `with`. One that this process has joined already is used and left alone.
    workers: how many load the embedder; 0 for one on each CPU, or as many as there are GPUs for.
    gpus: that each worker takes, 0.5 for half a GPU; None for 1 where the cluster has any.
    load: makes the embedder in a worker; it must give the vectors of the collection's own.

    Enter it before the first collection is opened: Ray starts processes by forking, which the
    store does not like. Raises ConfigurationError if Ray is not installed, and on entering if there
    is no cluster to join.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int = 0,
        gpus: float | None = None,
        load: Loader = load_embedder,
    ) -> None:
        if find_spec("ray") is None or find_spec("pandas") is None:
            raise ConfigurationError(
                "Ray is not installed.", hint='Install it: pip install "chiasm[ray]"'
            )
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._workers, self._gpus, self._load = workers, gpus, load
        self._ours = False

    def __enter__(self) -> RayEngine:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return self
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            options |= {
                "num_cpus": max(self._workers, os.cpu_count() or 1),
                "object_store_memory": _OBJECT_STORE_BYTES,
                "include_dashboard": False,
            }
        try:
            if self._address is not None:
                _knock(self._address)
            with _silent():
                ray.init(self._address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if self._address is None:
                raise ConfigurationError(
                    f"Ray could not be started here: {_short(error)}",
                    hint="Ray's logs say more: /tmp/ray/session_latest/logs.",
                ) from error
            raise ConfigurationError(
                f"The Ray cluster at {self._address} could not be joined: {_short(error)}",
                hint="Give the address of one that runs, with the same versions of Python and Ray "
                "(--ray-address or RAY_ADDRESS), and its token if it asks for one.",
            ) from error
        self._ours = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False

    def run(self, work: Indexing, paths: list[Path]) -> None:
        """What `Indexing.run` does here, done by the workers."""
        wanted = [one for path in paths if (one := work.wanted(path)) is not None]
        if not wanted or work.stop.is_set():
            return
        host = socket.gethostname()
        for batch in self._batches(work, wanted, host):
            received = [_received(work, wanted[found.number], found) for found in batch]
            taken = [one for one in received if one is not None]
            if taken:
                prepared, vectors = zip(*taken, strict=True)
                work.write((list(prepared), np.stack(vectors)))  # [taken, dimension]

    def _batches(self, work: Indexing, wanted: list[Wanted], host: str) -> Iterator[list[Found]]:
        """What the workers make of the files, in the order of the files."""
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        size = work.settings.indexing.batch_size
        batches = -(-len(wanted) // size)
        workers, gpus = self._shares(ray.cluster_resources(), batches, work.settings)
        dataset = ray.data.from_items(
            [
                {"file": packed(number, one.path, one.size, one.mtime_ns, _digest_of(one))}
                for number, one in enumerate(wanted)
            ],
            override_num_blocks=batches,
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        settings = work.settings if gpus else replace(work.settings, device="cpu")
        found = dataset.map_batches(
            Worker,
            fn_constructor_args=(
                partial(self._load, settings),
                work.collection.embedder.digest,
                settings.media,
                settings.indexing.decode_threads or (_GPU_READERS if gpus else 1),
                host,
                chiasm.__version__,
            ),
            batch_size=None,  # a block, as they were cut above
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        stream = iter(found.iter_batches(batch_size=None, batch_format="pyarrow"))
        for table in _while_wanted(stream, work.stop):
            yield [pickle.loads(row) for row in table["found"].to_pylist()]

    def _shares(
        self, cluster: Mapping[str, float], batches: int, settings: Settings
    ) -> tuple[int, float]:
        """How many workers there are to be, and how much of a GPU each has."""
        there = cluster.get("GPU", 0.0)
        gpus = self._gpus
        if gpus is None:
            gpus = 1.0 if there and settings.device in ("auto", "cuda") else 0.0
        if gpus > there:
            raise ConfigurationError(
                f"A worker was to have {gpus:g} GPU, and Ray knows of {there:g}.",
                hint="Leave --ray-gpus out, or join a cluster that has GPUs.",
            )
        fit = there / gpus if gpus else cluster.get("CPU", 1.0)
        return max(1, min(self._workers or int(fit), batches)), gpus


def _received(work: Indexing, wanted: Wanted, found: Found) -> tuple[Prepared, Vectors] | None:
    """What is to be written of a file, if anything."""
    if found.trouble is not None:
        message, hint = found.trouble
        raise ChiasmError(message, hint=hint)
    if found.reason is not None:
        work.fail(wanted.path, found.reason)
        return None
    try:
        is_new, replaces = work.place(wanted, found.digest)
        if is_new and found.prepared is not None and found.vector is not None:
            return work.worded(found.prepared, wanted, replaces), found.vector
    except UNOPENED as error:
        work.fail(wanted.path, reason_of(error))
    return None


def _digest_of(wanted: Wanted) -> str:
    return wanted.known.digest if wanted.known else ""


def _while_wanted(stream: Generator[Any, None, None], stop: Event) -> Iterator[Any]:
    """What comes from Ray, until there is no more or it is to stop.

    A thread waits for it: a batch can take its time, and Ctrl-C must not. ChiasmError for Ray's
    own errors.
    """
    pool = ThreadPoolExecutor(1, "chiasm-ray")
    try:
        while not stop.is_set():
            coming = pool.submit(next, stream, None)
            while not wait([coming], timeout=_POLL).done:
                if stop.is_set():
                    return
            table = coming.result()
            if table is None:
                return
            yield table
    except (ChiasmError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:
        raise ChiasmError(
            f"Ray could not go on: {_short(error)}",
            hint="What was written stays, and the same command goes on from there. Every node "
            "needs this version of chiasm; Ray's logs say more (/tmp/ray/session_latest/logs).",
        ) from error
    finally:
        # Ray Data ends its own threads before Ray itself goes; they must not wait for ever, though.
        wait([pool.submit(stream.close)], timeout=_PATIENCE)
        pool.shutdown(wait=False, cancel_futures=True)


def _knock(address: str) -> None:
    """ConnectionError where nobody listens, which Ray itself takes minutes to notice."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise ConnectionError(error.strerror or "nobody answers") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Ray's core writes how it is set up to file descriptor 2, past everything of Python's."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _short(error: BaseException) -> str:
    """The innermost error in what Ray tells, which is whole stack traces."""
    text = str(error).strip()
    inner = [line for line in _ERROR.findall(text) if not line.startswith("ray.")]
    words: str = inner[-1] if inner else f"{type(error).__name__}: {text.partition(chr(10))[0]}"
    return words[:_WORDS]
