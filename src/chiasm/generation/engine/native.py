"""The engine behind the `Generator` protocol: a thread that answers one request after the other."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chiasm.errors import Cancelled, NotReady
from chiasm.generation.request import Event, Request

if TYPE_CHECKING:
    from chiasm.generation.engine.runner import Runner
    from chiasm.models.catalog import Progress
    from chiasm.models.generator import GeneratorCheckpoint
    from chiasm.settings import Settings

Said = Event | BaseException | None
"""What a worker says of a job: an event, the error it ended with, or None at its end."""


@dataclass(frozen=True)
class _Job:
    request: Request
    say: Callable[[Said], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.perf_counter)


class NativeGenerator:
    """A checkpoint of `chiasm.models`, run here. Safe to use from several threads and tasks."""

    def __init__(self, checkpoint: GeneratorCheckpoint, *, name: str | None = None) -> None:
        # Here, not above: the server names this class before it has loaded anything.
        from chiasm.generation.engine.runner import Runner

        self.checkpoint = checkpoint
        self.name = name or checkpoint.name
        self._runner: Runner = Runner(checkpoint)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    @property
    def digest(self) -> str:
        """Of the checkpoint's files."""
        return self.checkpoint.digest

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.checkpoint.context

    @property
    def sees(self) -> bool:
        """Whether it reads pictures."""
        return self.checkpoint.images is not None

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `Generator.stream`. Closing the iterator stops the work before the next token."""
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[Said] = asyncio.Queue()

        def say(event: Said) -> None:
            try:
                loop.call_soon_threadsafe(said.put_nowait, event)
            except RuntimeError:  # the loop has ended, and with it whoever listened
                job.cancelled.set()

        job = _Job(request, say)
        self._submit(job)
        try:
            while (event := await said.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            job.cancelled.set()

    def run(self, request: Request) -> Iterator[Event]:
        """The same without an event loop; blocks between events."""
        said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        job = _Job(request, said.put)
        self._submit(job)
        try:
            while (event := said.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            job.cancelled.set()

    def close(self) -> None:
        """Give up what is under way and refuse what comes. Blocks until the thread has ended."""
        self._closed.set()
        self._jobs.put(None)
        self._worker.join()

    def _submit(self, job: _Job) -> None:
        if self._closed.is_set():
            raise NotReady("The generator is stopping.")
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._answer(job)
        while True:  # those who came too late
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job.say(NotReady("The generator is stopping."))

    def _answer(self, job: _Job) -> None:
        events = self._runner.run(job.request, cancelled=job.cancelled, arrived=job.arrived)
        try:
            for event in events:
                job.say(event)
                if self._closed.is_set():
                    job.cancelled.set()
            job.say(None)
        except Cancelled:
            job.say(NotReady("The generator is stopping.") if self._closed.is_set() else None)
        except BaseException as error:  # whoever asked hears of it; the thread goes on
            job.say(error)


def load_native_generator(
    settings: Settings, *, progress: Progress | None = None
) -> NativeGenerator:
    """The generator that the settings name, on the device they name; fetched if it is missing."""
    from chiasm.models.device import choose_device
    from chiasm.models.generator import load_generator

    checkpoint = load_generator(
        settings.generator,
        cache_dir=settings.cache_dir,
        offline=settings.offline,
        progress=progress,
        catalogs=[settings.catalog],
    )
    device = choose_device(settings.device)
    if device.type != "cpu":
        checkpoint.model.to(device)  # type: ignore[union-attr]
    return NativeGenerator(checkpoint, name=settings.generator)
