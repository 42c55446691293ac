"""Many questions at once: continuous batching over a paged cache.

Each step encodes a picture, if one is wanted, and runs one pass of the language model over whatever
is ready: a token of every answer and pieces of the prompts behind them (Yu et al., Orca, OSDI 2022;
Agrawal et al., arXiv:2308.16369). A question joins when it comes and leaves when it is answered.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator

import numpy as np
import torch

from chiasm.errors import ChiasmError, NotReady
from chiasm.generation.engine.answer import Answer
from chiasm.generation.engine.blocks import BLOCK_TOKENS, Blocks, first_key, next_key
from chiasm.generation.engine.constraint import Grammars
from chiasm.generation.engine.passes import Piece, open_passes
from chiasm.generation.engine.prefix import FeatureCache
from chiasm.generation.engine.question import PictureInputs, Question, Said, read_question
from chiasm.generation.engine.scheduler import Text, next_to_encode, share_out
from chiasm.generation.request import Completed, Request
from chiasm.media import Image
from chiasm.models.decoder import Decoder
from chiasm.models.flops import decoder_flops
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.models.vision_language import PicturesInText

Say = Callable[[Said], None]

_STRETCH = 2.5
"""How many times longer than a pass of one row a step may take while somebody waits for tokens."""
_CROWD = 1.5
"""And how many times longer a pass may take through the number of texts alone."""

log = logging.getLogger("chiasm.generation")


def can_batch(checkpoint: GeneratorCheckpoint) -> bool:
    """Whether `Engine` can serve it: its pictures stand among the tokens."""
    return isinstance(checkpoint.model, Decoder | PicturesInText)


class Engine:
    """Answers questions; `read` may be called by anyone, all else by one thread."""

    def __init__(
        self,
        checkpoint: GeneratorCheckpoint,
        *,
        precision: str = "float32",
        pool_bytes: int | None = None,
        feature_bytes: int = 64 * 1024 * 1024,
        running: int = 0,
        compiled: bool = False,
    ) -> None:
        """precision, pool_bytes, compiled: see `open_passes`; for keys and values of what is being
        read, and of what may be asked again.
        feature_bytes: for features of pictures that may be asked about again.
        running: texts that are worked on at once; others wait. 0: as many as a pass has time for,
        once `warm_up` has measured that.
        """
        self.checkpoint = checkpoint
        self._fixed = bool(running)
        self._model = checkpoint.model
        self._grammars = Grammars.of(checkpoint)
        self._passes = open_passes(
            checkpoint.decoder,
            precision,
            pool_bytes=pool_bytes,
            texts=running,
            compiled=compiled,
        )
        self.running = running or self._passes.texts
        self._device = checkpoint.decoder.embedding.weight.device
        self.blocks = Blocks(self._passes.blocks)
        self.context = self._passes.context
        self._features = FeatureCache(feature_bytes)
        self._waiting: list[Text] = []
        self._running: list[Text] = []
        self._encoding: dict[tuple[str, str], Generator[None, None, torch.Tensor]] = {}
        self._arrivals = 0

    # Questions in -------------------------------------------------------------------------------

    def read(self, request: Request, *, arrived: float, say: Say) -> Question:
        """As `read_question`, for this engine."""
        return read_question(
            request,
            self.checkpoint,
            self._grammars,
            arrived=arrived,
            say=say,
            context=self.context,
            known=self._features.get,
        )

    def add(self, question: Question) -> None:
        """Queue a question; it hears of its answer through `say`."""
        self._arrivals += 1
        answers = [
            Answer(
                question.request, choice, self.checkpoint.tokenizer, constraint, question.longest,
                question.ledger,
            )
            for choice, constraint in enumerate(question.constraints)
        ]  # fmt: skip
        text = Text(question, self._arrivals, list(question.units), list(question.ids), answers)
        text.recall_pictures()
        self._waiting.append(text)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def warm_up(self) -> None:
        """Do once what would make the first question wait."""
        self._passes.warm_up()
        self.blocks.forget()  # what was in them has been written over
        if not self._fixed:
            pace = self._passes.pace
            spare = (_CROWD - 1) * pace.one
            self.running = min(max(4, int(spare / pace.a_row) + 1), self._passes.texts)
        if isinstance(self._model, PicturesInText) and self.checkpoint.images is not None:
            blank = Image(np.zeros((64, 64, 3), np.uint8), (64, 64))
            with torch.inference_mode():
                inputs = self.checkpoint.images.prepare(blank).to(self._device)
                self._model.encode_image(inputs)

    def close(self) -> None:
        """Give up all questions and end the threads."""
        self.give_up(NotReady("The generator is stopping."))
        self._passes.close()

    def give_up(self, error: BaseException) -> None:
        """End all questions with an error."""
        for question in self._questions():
            self._end(question, error)

    def _questions(self) -> set[Question]:
        return {text.question for text in (*self._waiting, *self._running)}

    # A step -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> None:
        """Let go of what is not wanted, take in what waits, encode one picture, run one pass."""
        for question in self._questions():
            if question.cancelled.is_set():
                self._end(question, None)
            elif question.late:
                self._end(question, question.too_late())
        self._take_in()
        decoding = sum(text.left == 1 for text in self._running)
        spare, pace, rows = math.inf, self._passes.pace, self._passes.rows
        if decoding:
            spare = _STRETCH * pace.one - pace.of(decoding)
        spare -= self._encode(spare)
        room = rows
        if decoding:
            room = decoding + max(int(spare / pace.a_row), 1)
        self._read(share_out(self._running, rows=rows, beside=room))

    def _take_in(self) -> None:
        """Begin with the texts that have waited, as long as there is memory for their prompts."""
        self._waiting.sort(key=lambda text: text.order)
        while self._waiting and len(self._running) < self.running:
            text = self._waiting[0]
            promised = sum(other.blocks_to_come for other in self._running)
            if self._running and promised + text.blocks_to_come > self.blocks.available:
                return
            del self._waiting[0]
            self._running.append(text)
            self._recall(text)
            ledger = text.question.ledger
            if "queue" not in ledger.seconds:
                ledger.cached = text.computed
                waited = time.perf_counter() - ledger.arrived - ledger.seconds["prepare"]
                ledger.add("queue", max(waited, 0.0))

    def _recall(self, text: Text) -> None:
        """Share the blocks that hold its beginning, one token short of all of it at most."""
        key = first_key(text.question.request.tenant)
        for end in range(BLOCK_TOKENS, len(text.units), BLOCK_TOKENS):
            following = next_key(key, text.units[text.computed : end])
            block = self.blocks.find(following)
            if block is None:
                break
            key = following
            self.blocks.share(block)
            text.blocks.append(block)
            text.keys.append(key)
            text.computed = end
        similar = self.blocks.find_similar(key, text.units[text.computed : -1])
        if similar is not None:
            # A copy of a block that begins alike; what is different in it is written over.
            block, shared = similar
            self.blocks.share(block)  # or it might itself be the last that can be taken
            if self.blocks.available:
                text.blocks.append(self.blocks.take())
                self._passes.copy_block(block, text.blocks[-1])
                text.computed += shared
            self.blocks.release([block])

    # Pictures -----------------------------------------------------------------------------------

    def _encode(self, seconds: float) -> float:
        """Encode pictures for about so long, one slice at least; how long it took.

        Whoever waits for a picture gets it when it is there, and nobody encodes it twice.
        """
        begun = time.perf_counter()
        if self._encoding:  # what nobody waits for any more is given up half-way
            wanted = {
                (text.question.request.tenant, picture.digest)
                for text in self._running
                for _, picture in text.unseen()
            }
            self._encoding = {name: s for name, s in self._encoding.items() if name in wanted}
        while (text := next_to_encode(self._running)) is not None:
            missing = text.missing
            assert missing is not None
            _, picture = missing
            tenant = text.question.request.tenant
            features = self._features.get(tenant, picture.digest)
            if features is None:
                try:
                    features = self._encode_slice(text.question, picture)
                    text.encoded += features is not None
                except Exception as error:
                    self._end(text.question, error)
                    continue
            if features is not None:
                # To all, whatever the cache has room for.
                for other in (*self._running, *self._waiting):
                    other.give(tenant, picture.digest, features)
                if seconds == math.inf:
                    break  # nobody waits for tokens yet, and this one's prompt can be read
            if time.perf_counter() - begun > seconds:
                break
        return time.perf_counter() - begun

    def _encode_slice(self, question: Question, picture: PictureInputs) -> torch.Tensor | None:
        """A little more of a picture: its features, when they are there."""
        assert isinstance(self._model, PicturesInText)
        assert picture.inputs is not None
        name = question.request.tenant, picture.digest
        slices = self._encoding.get(name)
        if slices is None:
            inputs = picture.inputs.to(self._device)
            slices = self._encoding[name] = self._model.encode_slices(inputs)
        try:
            with question.ledger.stage("encode"):
                try:
                    next(slices)
                finally:
                    if self._device.type == "cuda":  # or the time would be somebody else's
                        torch.cuda.synchronize(self._device)
        except StopIteration as end:
            del self._encoding[name]
            features: torch.Tensor = end.value
            question.ledger.vision_flops += self._model.vision_flops(picture.inputs)
            self._features.put(*name, features)
            return features
        except BaseException:
            del self._encoding[name]
            raise
        return None

    # Rows ---------------------------------------------------------------------------------------

    def _read(self, shares: dict[Text, int]) -> None:
        """One pass over so many tokens of each text, and what follows from it."""
        for text in sorted(shares, key=lambda text: text.order):
            if text in self._running:  # it may have been put aside for one before it
                self._make_room(text, text.computed + shares[text])
        texts = [text for text in shares if text in self._running]
        if not texts:
            return
        pieces = [self._piece(text, shares[text]) for text in texts]
        begun = time.perf_counter()
        logits = self._passes.run(pieces)
        took = time.perf_counter() - begun
        for question in {text.question for text in texts}:  # of several answers each has the same
            question.ledger.add("decode" if question.ledger.answer_tokens else "prefill", took)
        for text, piece, scores in zip(texts, pieces, logits, strict=True):
            if text not in self._running:  # its question has ended with another of its answers
                continue
            self._account(text, len(piece.ids))
            text.computed += len(piece.ids)
            self._learn(text)
            if scores is not None:
                try:
                    self._go_on(text, scores)
                except Exception as error:
                    self._end(text.question, error)

    def _make_room(self, text: Text, end: int) -> None:
        """Blocks for the first `end` tokens; whoever comes last gives way, maybe `text` itself."""
        while len(text.blocks) * BLOCK_TOKENS < end:
            if self.blocks.available:
                text.blocks.append(self.blocks.take())
                continue
            last = max(self._running, key=lambda other: other.order)
            self._put_aside(last)
            if last is text:
                return

    def _put_aside(self, text: Text) -> None:
        """Give its memory to others; it will be read again, from what is still known."""
        self._running.remove(text)
        self.blocks.release(text.blocks)
        text.blocks, text.keys, text.computed = [], [], 0
        text.recall_pictures()
        self._waiting.append(text)

    def _piece(self, text: Text, count: int) -> Piece:
        start, end = text.computed, text.computed + count
        seen = []
        for number, features in text.features.items():
            at = text.question.pictures[number].at
            here = [place for place, position in enumerate(at) if start <= position < end]
            if here:
                rows = [at[place] - start for place in here]
                seen.append((rows, features[here[0] : here[-1] + 1]))
        return Piece(text.ids[start:end], start, text.blocks, end == len(text.ids), seen)

    def _learn(self, text: Text) -> None:
        """Name the blocks that have become full; let go of pictures that have been read."""
        while (len(text.keys) + 1) * BLOCK_TOKENS <= text.computed:
            number = len(text.keys)
            before = text.keys[-1] if text.keys else first_key(text.question.request.tenant)
            units = text.units[number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS]
            text.keys.append(self.blocks.learn(text.blocks[number], before, units))
        for number in list(text.features):
            if text.question.pictures[number].at[-1] < text.computed:
                del text.features[number]

    def _account(self, text: Text, tokens: int) -> None:
        logits = 1 if text.left == tokens else 0
        text.question.ledger.language_flops += decoder_flops(
            self.checkpoint.config, tokens, before=text.computed, logits=logits
        )

    # Answers ------------------------------------------------------------------------------------

    def _go_on(self, text: Text, logits: torch.Tensor) -> None:
        """Choose the next token of the answers that start here."""
        question = text.question
        answers, text.answers = text.answers, text.answers[:1]
        for number, answer in enumerate(answers):
            for event in answer.push(logits):
                question.say(event)
            if answer.token is None:
                question.open_answers -= 1
            elif number:
                self._fork(text, answer)
        first = answers[0]
        if first.token is not None:
            text.ids.append(first.token)
            text.units.append(first.token)
        else:
            self._leave(text)
        if not question.open_answers:
            question.say(Completed(question.ledger.usage()))
            self._end(question, None)

    def _fork(self, text: Text, answer: Answer) -> None:
        """Another answer to the same prompt, in the same memory as far as that is full."""
        assert answer.token is not None
        # The first answer's token may have been added already; the prompt is what has been read.
        ids, units = text.ids[: text.computed], text.units[: text.computed]
        other = Text(
            text.question, text.arrival, [*units, answer.token], [*ids, answer.token], [answer]
        )
        if len(self._running) >= self.running or not self.blocks.available:
            self._waiting.append(other)
            return
        full = len(text.keys)
        for block in text.blocks[:full]:
            self.blocks.share(block)
            other.blocks.append(block)
        other.keys = list(text.keys)
        if full * BLOCK_TOKENS < text.computed:
            other.blocks.append(self.blocks.take())
            self._passes.copy_block(text.blocks[full], other.blocks[full])
        other.computed = text.computed
        self._running.append(other)

    def _leave(self, text: Text) -> None:
        if text in self._running:
            self._running.remove(text)
        else:
            self._waiting.remove(text)
        self.blocks.release(text.blocks)
        text.blocks = []

    def _end(self, question: Question, error: BaseException | None) -> None:
        """Let go of a question and all its texts, and say so."""
        for text in [
            text for text in (*self._running, *self._waiting) if text.question is question
        ]:
            self._leave(text)
        if error is not None and not isinstance(error, ChiasmError):
            log.error("a question ended with %s", type(error).__name__, exc_info=error)
        question.say(error)
