"""The engine behind the `Generator` protocol: a thread, and questions that come to it."""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from chiasm.errors import NotReady
from chiasm.generation.request import Event, Request

if TYPE_CHECKING:
    import torch

    from chiasm.generation.engine.engine import Engine
    from chiasm.generation.engine.one_at_a_time import OneAtATime
    from chiasm.generation.engine.passes import Precision
    from chiasm.generation.engine.question import Question, Said
    from chiasm.models.catalog import Progress
    from chiasm.models.generator import GeneratorCheckpoint
    from chiasm.settings import Settings


class NativeGenerator:
    """A checkpoint of `chiasm.models`, run here. Safe to use from several threads and tasks."""

    def __init__(
        self, checkpoint: GeneratorCheckpoint, *, name: str | None = None, **options: Any
    ) -> None:
        """options: of `Engine`, where it can serve the checkpoint."""
        # Here, not above: the server names this class before it has loaded anything.
        from chiasm.generation.engine.engine import Engine, can_batch
        from chiasm.generation.engine.one_at_a_time import OneAtATime

        self.checkpoint = checkpoint
        self.name = name or checkpoint.name
        batched = can_batch(checkpoint)
        self._engine: Engine | OneAtATime = (
            Engine(checkpoint, **options) if batched else OneAtATime(checkpoint)
        )
        self._inbox: queue.SimpleQueue[Question | Future[None] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._door = threading.Lock()
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()
        # A thread that is in a library's code when Python ends takes the process down with it.
        atexit.register(self.close)

    @property
    def digest(self) -> str:
        """Of the checkpoint's files."""
        return self.checkpoint.digest

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._engine.context

    @property
    def running(self) -> int:
        """Questions that are worked on at once; `warm_up` may find that fewer are better."""
        return self._engine.running

    @property
    def places(self) -> int:
        """Questions that are worth asking at once: two more than are worked on, to be read."""
        return self.running + 2

    @property
    def sees(self) -> bool:
        """Whether it reads pictures."""
        return self.checkpoint.images is not None

    def count_tokens(self, request: Request) -> int:
        """Of its prompt. Pictures need not be decoded. Raises InvalidRequest."""
        from chiasm.generation.engine.prompt import count_prompt

        return count_prompt(request, self.checkpoint)

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `Generator.stream`. Closing the iterator stops the work before the next token."""
        arrived = time.perf_counter()
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[Said] = asyncio.Queue()

        def say(event: Said) -> None:
            try:
                loop.call_soon_threadsafe(said.put_nowait, event)
            except RuntimeError:  # the loop has ended, and with it whoever listened
                question.cancelled.set()

        self._check_open()
        question = await asyncio.to_thread(self._engine.read, request, arrived=arrived, say=say)
        del request  # and with it the pictures' pixels
        self._hand_over(question)
        try:
            while (event := await said.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            question.cancelled.set()

    def run(self, request: Request) -> Iterator[Event]:
        """The same without an event loop; blocks between events."""
        said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._check_open()
        question = self._engine.read(request, arrived=time.perf_counter(), say=said.put)
        self._hand_over(question)
        try:
            while (event := said.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            question.cancelled.set()

    def warm_up(self) -> None:
        """Do once what would make the first question wait; before any is asked. Blocks."""
        done: Future[None] = Future()
        self._hand_over(done)
        done.result()

    def close(self) -> None:
        """Give up what is under way and refuse what comes. Blocks until the thread has ended."""
        with self._door:
            self._closed.set()
            self._inbox.put(None)
        self._worker.join()
        atexit.unregister(self.close)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise NotReady("The generator is stopping.")

    def _hand_over(self, item: Question | Future[None]) -> None:
        """To the thread, which hears of all that came in before the door was closed."""
        with self._door:
            self._check_open()
            self._inbox.put(item)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._take_in()
            if not self._closed.is_set() and not self._engine.idle:
                try:
                    self._engine.step()
                except Exception as error:  # ours: whoever asked hears of it, others may ask
                    self._engine.give_up(error)
        self._take_in()
        self._engine.close()

    def _take_in(self) -> None:
        """Hand over what has come; wait for one where there is nothing to do."""
        wait = self._engine.idle and not self._closed.is_set()
        while True:
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if isinstance(item, Future):
                self._warm_up(item)
            elif item is not None:
                self._engine.add(item)

    def _warm_up(self, done: Future[None]) -> None:
        try:
            if self._engine.idle and not self._closed.is_set():
                self._engine.warm_up()
        except Exception as error:  # whoever waits for it hears of it
            done.set_exception(error)
        else:
            done.set_result(None)


def load_native_generator(
    settings: Settings, *, progress: Progress | None = None
) -> NativeGenerator:
    """The generator that the settings name, on the device they name; fetched if it is missing."""
    from chiasm.generation.engine.engine import can_batch
    from chiasm.generation.engine.passes import precision_of
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
    wanted = settings.engine
    precision: Precision = "float32"
    if can_batch(checkpoint):
        precision = precision_of(wanted.precision, checkpoint.decoder, device)
    _bring(checkpoint, device, precision)
    return NativeGenerator(
        checkpoint,
        name=settings.generator,
        precision=precision,
        pool_bytes=wanted.cache_bytes or None,
        running=wanted.running,
        compiled=wanted.compile,
    )


def _bring(checkpoint: GeneratorCheckpoint, device: torch.device, precision: Precision) -> None:
    """The network to a device, each weight in the precision that it will have there.

    Not moved first and converted then: in float32 it may be larger than the device.
    """
    import torch

    from chiasm.models.vision_language import PicturesInText

    model = cast("torch.nn.Module", checkpoint.model)
    if precision == "bfloat16":
        single = isinstance(model, PicturesInText) and model.sees_in_float32
        converted = checkpoint.decoder if single else model
        converted.to(device, torch.bfloat16)
    model.to(device)
