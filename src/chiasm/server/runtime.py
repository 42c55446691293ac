"""What the routes work with, loaded in the background while the server already answers.

Importing torch and the vector store and reading the weights take seconds. They happen in a thread
that starts with the server: `/healthz` answers meanwhile, `/readyz` tells the truth, and every
other route waits a moment before it says `not_ready`. The embedder comes first: it answers before
the vector store is there. The generator comes last, in a thread of its own: searches need not wait
for it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from chiasm import collector
from chiasm.errors import (
    ChiasmError,
    GeneratorUnreachable,
    NoSpace,
    NotReady,
    StoreError,
    UnknownModel,
    WeightsError,
)
from chiasm.evaluation.results import Measurements
from chiasm.generation.providers.address import is_remote
from chiasm.generation.providers.loading import Providers
from chiasm.generation.router import Router
from chiasm.generation.targets import Route, Routes, Target, unknown
from chiasm.media.address import read_hosts
from chiasm.media.fetch import Fetcher
from chiasm.server.addresses import fetch_pictures
from chiasm.server.admission import Admission
from chiasm.server.batching import BatchingEmbedder
from chiasm.server.books import Books
from chiasm.server.errors import INTERNAL, log_unexpected
from chiasm.server.local import ask_local
from chiasm.server.pictures import PictureOpener

if TYPE_CHECKING:
    from chiasm.generation import Generator
    from chiasm.retrieval import Embedder, Library
    from chiasm.server.accounts import Accounts
    from chiasm.server.callers import Caller
    from chiasm.settings import Settings

log = logging.getLogger("chiasm.server")

PATIENCE_SECONDS = 10.0
"""How long a request waits for a server that has just started."""

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 2.0, 60.0
_LAST_WORDS_SECONDS = 5.0  # an import cannot be interrupted, but waited for
_THREADS = 32

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Planes:
    """What is there once loading has ended well."""

    embedder: BatchingEmbedder
    library: Library


class LoadingProgress:
    """Hears of downloads and remembers the last word of it, for `/readyz`.

    doing: what is going on while nothing is downloaded.
    """

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self._label = ""
        self._done = 0
        self._total: int | None = None

    def start(self, label: str, total: int | None) -> None:
        """A file of `total` bytes begins."""
        self._label, self._done, self._total = label, 0, total

    def advance(self, n: int) -> None:
        """`n` more bytes are there."""
        self._done += n

    def finish(self) -> None:
        """The file is whole."""
        self._label = ""

    def __str__(self) -> str:
        if not self._label:
            return self.doing
        of = f" of {self._total / 1e6:.0f}" if self._total else ""
        return f"fetching {self._label}: {self._done / 1e6:.0f}{of} MB"


class Runtime:
    """Loads the planes, waits for them, and runs blocking work in bounded threads."""

    def __init__(
        self,
        settings: Settings,
        *,
        embedder: Embedder | None = None,
        generator: Generator | None = None,
        sample: bool = False,
    ) -> None:
        self.settings = settings
        self.progress = LoadingProgress("loading the embedder")
        self.pictures = PictureOpener(settings.media)
        self.fetcher = Fetcher(
            read_hosts(settings.fetch.hosts),
            settings.media,
            max_seconds=settings.fetch.max_seconds,
        )
        self.routes = Routes(settings.providers, settings.models)
        self.providers = Providers(settings.providers, limits=settings.media)
        self.measurements = Measurements(settings.data_dir)
        self.router = Router(
            self.providers,
            functools.partial(ask_local, self),
            price=lambda target, request: self.books.price(target, request),
            accuracy=lambda evaluation, target: self.measurements.accuracy(evaluation, target.name),
            fit=lambda target, request: self.books.fit(target, request),
        )
        self._accounts: Accounts | None = None
        self._books: Books | None = None
        self._accounts_failure: ChiasmError | None = None
        self._accounts_progress = LoadingProgress("opening the ledger")
        self.started_at = int(time.time())
        self._given = embedder
        self._sample = sample
        self._embedder: BatchingEmbedder | None = None
        self._planes: Planes | None = None
        self._failure: ChiasmError | None = None
        self._generator = generator
        self._generator_failure: ChiasmError | None = None
        self._generator_progress = LoadingProgress("loading the generator")
        self._admission: Admission | None = None
        self._stop = threading.Event()
        self._draining = False
        self._short = anyio.CapacityLimiter(_THREADS)
        self._long = anyio.CapacityLimiter(_THREADS)
        self._reading = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))
        self._loader = threading.Thread(target=self._load, name="loading", daemon=True)
        self._generator_loader = threading.Thread(
            target=self._load_generator, name="loading the generator", daemon=True
        )
        self._accounts_loader = threading.Thread(
            target=self._load_accounts, name="opening the ledger", daemon=True
        )

    def start(self) -> None:
        """Begin to load."""
        self._accounts_loader.start()
        self._loader.start()

    def close(self) -> None:
        """Refuse what comes and finish what is under way. Blocks."""
        self._stop.set()
        for loader in (self._accounts_loader, self._loader, self._generator_loader):
            if loader.is_alive():
                loader.join(_LAST_WORDS_SECONDS)
        if self._generator is not None:
            self._generator.close()
        self.providers.close()
        if self._accounts is not None:
            self._accounts.close()
        if self._embedder is not None:
            self._embedder.close()
        if self._planes is not None:
            self._planes.library.close()

    def drain(self) -> None:
        """Refuse what comes, and go on with what is under way."""
        self._draining = True

    @property
    def stopping(self) -> bool:
        """Whether the server has been told to stop."""
        return self._draining or self._stop.is_set()

    def admission(self, generator: Generator) -> Admission:
        """Who may ask the generator now."""
        if self._admission is None:
            self._admission = Admission(generator.places, self.settings.server.max_waiting)
        return self._admission

    @property
    def queue(self) -> tuple[int, int]:
        """Questions that are being answered, and that wait."""
        admission = self._admission
        return (0, 0) if admission is None else (admission.taken, admission.waiting)

    @property
    def generator_state(self) -> Literal["ready", "starting", "failed", "off"]:
        """How the generator is; "off" where the settings name none."""
        if self._generator is not None:
            return "ready"
        if not self.settings.generator:
            return "off"
        return "failed" if self._generator_failure is not None else "starting"

    @property
    def failure(self) -> ChiasmError | None:
        """Why loading has failed, while it has; it may be tried again."""
        return self._failure

    def check(self) -> Planes:
        """The planes, or `NotReady` with the error that loading ended with."""
        return self._loaded(self._planes, self._failure, self.progress)

    def _loaded(
        self, part: Part | None, failure: ChiasmError | None, progress: LoadingProgress
    ) -> Part:
        """`part`, or why it is not there."""
        if self.stopping:
            raise NotReady("The server is stopping.")
        if part is not None:
            return part
        if failure is not None:
            # Whatever it is, it is not the caller's fault: never a 400 or a 404.
            unready = NotReady(failure.message, hint=failure.hint)
            if isinstance(failure, GeneratorUnreachable):
                # Where the model's servers stand is for whoever runs this one: the log has it.
                unready = NotReady("No server that answers questions can be reached.")
            unready.code = failure.code or "internal_error"
            raise unready
        raise NotReady(f"The server is still starting: {progress}.", hint="Try again in a moment.")

    def check_all(self) -> Planes:
        """As `check`, and the sample is there, too, where one was wanted."""
        planes = self.check()
        if self._loader.is_alive():
            raise NotReady("The sample collection is being made.", hint="Try again in a moment.")
        self._check_remote()
        return planes

    def _check_remote(self) -> None:
        """Raise if the model that answers is run elsewhere, and nobody is there to be asked."""
        from chiasm.generation import Remote

        generator = self._generator
        if is_remote(self.settings.generator):
            failure, progress = self._generator_failure, self._generator_progress
            generator = self._loaded(generator, failure, progress)
        if isinstance(generator, Remote):
            generator.check()

    async def planes(self) -> Planes:
        """The planes; waits a few seconds for them while they load."""
        await self._await(lambda: self._planes is not None or self._failure is not None)
        return self.check()

    async def embedder(self) -> BatchingEmbedder:
        """The embedder alone, which is there sooner; waits as `planes` does."""
        await self._await(lambda: self._embedder is not None or self._failure is not None)
        return self._loaded(self._embedder, self._failure, self.progress)

    async def generator(self) -> Generator:
        """The model that answers questions; waits as `planes` does.

        Raises UnknownModel where the settings name none.
        """
        if self._generator is None and not self.settings.generator:
            raise UnknownModel(
                "This server answers no questions: its setting `generator` is empty.",
                hint="Start it with --generator default-vlm.",
                param="model",
            )
        await self._await(
            lambda: self._generator is not None or self._generator_failure is not None
        )
        failure = self._generator_failure or self._failure
        return self._loaded(self._generator, failure, self._generator_progress)

    async def accounts(self) -> Accounts:
        """Keys, budgets and the ledger; waits as `planes` does."""
        if self._accounts is None:
            await self._await(
                lambda: self._accounts is not None or self._accounts_failure is not None
            )
        return self._loaded(self._accounts, self._accounts_failure, self._accounts_progress)

    @property
    def books(self) -> Books:
        """Plans and bills; there as soon as `accounts` are."""
        assert self._books is not None
        return self._books

    def _planned_name(self, target: Target) -> str:
        """What the planner calls a target: the model of this server by its own name."""
        return target.name if target.provider else self.settings.generator or target.name

    def _is_free(self, target: Target) -> bool:
        """Whether a target costs no money: it runs here, or on the operator's own vLLM servers."""
        setting = self.settings.generator
        return not target.provider and (not is_remote(setting) or setting.startswith("vllm:"))

    @property
    def generator_if_loaded(self) -> Generator | None:
        """The generator, where it is there already."""
        return self._generator

    @property
    def generator_names(self) -> list[str]:
        """Names that mean the generator of this server, its own first.

        An address of servers is no name: it is for whoever runs this one.
        """
        generator, setting = self._generator, self.settings.generator
        own = [] if generator is None else [generator.name]
        return list(dict.fromkeys(own if is_remote(setting) or not setting else [*own, setting]))

    async def route(self, name: str | None, caller: Caller) -> Route:
        """Who answers to a name; None, and `default` unless a route has that name, is the
        generator of this server.

        Raises UnknownModel with the nearest names of those that the caller may use.
        """
        may = caller.may_use_model
        found = self.routes.find(name or "default", may)
        if found is not None:
            return found
        if not self.settings.generator and self._generator is None and self.routes.names:
            raise unknown(name or "default", self.routes.names, may)
        generator = await self.generator()
        if name is None:
            return self.routes.local(generator.name)
        if name not in (*self.generator_names, "default"):
            raise unknown(name, [*self.generator_names, "default", *self.routes.names], may)
        return self.routes.local(name)

    def digest_of(self, route: Route) -> str:
        """The weights' digest of a model of this server; of others one of the route's name."""
        generator = self._generator
        if generator is not None and not route.targets[0].provider:
            return generator.digest
        names = " ".join(each.name for each in route.targets)
        return hashlib.sha256(f"chiasm-route-1 {names}".encode()).hexdigest()

    async def fetch(self, body: object, where: str = "messages") -> Mapping[str, bytes]:
        """What is found at the addresses of a body's pictures, by address.

        where: the argument that `body` is. Raises what `fetch_pictures` raises.
        """
        limit = self.settings.server.max_request_bytes
        return await fetch_pictures(self.fetcher, body, where=where, max_bytes=limit)

    async def _await(self, settled: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        # The loader is a thread and may try several times: no event of the loop's to wait for.
        while not settled() and not self._stop.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110
            await anyio.sleep(0.02)

    async def run(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """`work(*args, **kwargs)` in a thread, so that it never holds up the event loop."""
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._short)

    async def read(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """As `run`, for bodies with pictures: threads beyond the cores would only hold memory."""
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._reading)

    async def embed(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """As `run`, for work that waits for its turn at the embedder.

        In threads of its own: a gallery does not wait for those who wait.
        """
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._long)

    def _load(self) -> None:
        def load() -> None:
            with collector.paused():
                self._planes = self._load_once()
            self._failure = None
            if self._generator is None and self.settings.generator:
                self._generator_loader.start()
            if self._sample:
                self._add_sample(self._planes.library)

        def fail(error: ChiasmError) -> None:
            self._failure = error

        self._until_it_succeeds(load, fail, "loading")

    def _load_generator(self) -> None:
        from chiasm.generation import NativeGenerator, load_generator

        def load() -> None:
            started = time.perf_counter()
            generator = load_generator(self.settings, progress=self._generator_progress)
            if isinstance(generator, NativeGenerator):
                self._generator_progress.doing = "warming up the generator"
                generator.warm_up()
            self._generator = generator
            self._generator_failure = None
            seconds = time.perf_counter() - started
            log.info("ready to answer: %s, loaded in %.1f s", self._generator.name, seconds)

        def fail(error: ChiasmError) -> None:
            self._generator_failure = error

        self._until_it_succeeds(load, fail, "loading the generator")

    def _load_accounts(self) -> None:
        from chiasm.operations.plan import Planner
        from chiasm.server.accounts import Accounts

        def load() -> None:
            accounts = Accounts(self.settings)
            planner = Planner(self.settings, seconds=self._first_token_seconds)
            self._books = Books(planner, self._planned_name, self._is_free)
            self._accounts = accounts
            self._accounts_failure = None

        def fail(error: ChiasmError) -> None:
            self._accounts_failure = error

        self._until_it_succeeds(load, fail, "opening the ledger")

    def _first_token_seconds(self, name: str) -> float | None:
        """How long a target's first token took of late, by the target's name."""
        provider, _, model = name.partition("/")
        known = provider in self.settings.providers
        return self.router.first_token_seconds(
            Target(provider, model) if known else Target("", name)
        )

    def _until_it_succeeds(
        self, load: Callable[[], None], fail: Callable[[ChiasmError], None], what: str
    ) -> None:
        """Call `load`, again after what a network or a disk can mend; `fail` hears of errors."""
        delay, said = _FIRST_RETRY_SECONDS, ""
        while not self._stop.is_set():
            try:
                load()
            except (WeightsError, NoSpace, StoreError, GeneratorUnreachable) as error:
                fail(error)
                if str(error) != said:
                    log.error("%s: %s Trying again in %.0f s.", what, error, delay)
                self._stop.wait(delay)
                if isinstance(error, GeneratorUnreachable):
                    said = str(error)  # to knock costs nothing, to say so each time would
                else:
                    delay = min(2 * delay, _LAST_RETRY_SECONDS)
                continue
            except ChiasmError as error:
                fail(error)
                log.error("%s: %s", what, error)
            except Exception as error:
                log_unexpected(error, what)
                fail(ChiasmError(f"{INTERNAL} It could not load its models."))
            return

    def _add_sample(self, library: Library) -> None:
        """The sample collection, if there is no other: requests are answered meanwhile."""
        from chiasm.retrieval.sample import add_sample

        try:
            added = add_sample(library)
        except ChiasmError as error:
            log.warning("The sample collection was not made: %s", error)
        else:
            if added:
                log.info("made a sample collection of %d pictures", added)

    def _load_once(self) -> Planes:
        # Here, not above: these imports are most of what there is to wait for.
        from chiasm.retrieval import Library, load_embedder

        started = time.perf_counter()
        if self._embedder is None:
            embedder = self._given or load_embedder(self.settings, progress=self.progress)
            self._embedder = BatchingEmbedder(embedder)
        self.progress.doing = "opening the collections"
        if self._stop.is_set():
            raise NotReady("The server is stopping.")
        import chiasm.retrieval.lance_store  # noqa: F401 -- else the first request would do it

        library = Library(self.settings.data_dir, self._embedder, limits=self.settings.media)
        seconds = time.perf_counter() - started
        log.info("ready: %s, loaded in %.1f s", self._embedder.name, seconds)
        return Planes(self._embedder, library)
