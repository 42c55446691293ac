"""Passes in torch against the dense decoder and transformers: alone, together, in pieces."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chiasm.errors import ConfigurationError
from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.cuda_graphs import MOST_SEGMENTS, StepGraphs, shapes
from chiasm.generation.engine.paged import (
    BlockPool,
    Segments,
    Step,
    attend_to_segments,
    keep,
    laid_out,
    shape_of,
)
from chiasm.generation.engine.passes import Piece, open_passes, precision_of
from chiasm.generation.engine.torch_passes import TorchPasses
from chiasm.models.checkpoint import save_checkpoint
from chiasm.models.decoder import Decoder, DecoderConfig
from tests.generation.decoders import CONFIGS, CUTS, IDS, SMALL, decoder_of, torch_logits
from tests.one_thread import _one_thread  # noqa: F401 -- a fixture of this module

# What the kernels do not know, and all that they do.
EVERY = CONFIGS | {
    "llama, head width 12": DecoderConfig(**SMALL, head_dim=12),
    "gelu": DecoderConfig(**SMALL | {"hidden_act": "gelu"}),
}
LONG = DecoderConfig(
    **SMALL | {"max_position_embeddings": 700, "num_attention_heads": 6}, head_dim=12
)


def passes_of(decoder: Decoder, **options: Any) -> TorchPasses:
    usual: dict[str, Any] = {"precision": "float32", "pool_bytes": 2**22, "texts": 8}
    return TorchPasses(decoder, **usual | options)


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_those_of_torch_and_transformers(name: str, tmp_path: Path) -> None:
    decoder = decoder_of(EVERY[name])
    passes, start, read = passes_of(decoder), 0, []
    for end in CUTS:
        (after,) = passes.run([Piece(IDS[start:end], start, list(range(7, -1, -1)), wanted=True)])
        assert after is not None
        read.append(after.clone())
        start = end
    ours, after_cuts = torch.stack(read), [cut - 1 for cut in CUTS]
    assert (ours - torch_logits(decoder, IDS)[after_cuts]).abs().max() <= 1e-4
    save_checkpoint(tmp_path, decoder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        reference = theirs(torch.tensor([IDS])).logits[0, after_cuts]
    assert (ours - reference).abs().max() <= 1e-4


# Many texts -------------------------------------------------------------------------------------

TEXTS = [[(3 * n * n + 5 * text * n + text) % 403 for n in range(600)] for text in range(5)]


@pytest.fixture(scope="module")
def long() -> Decoder:
    """Three query heads share a key head of width 12; texts of several segments."""
    return decoder_of(LONG)


@pytest.fixture(scope="module")
def dense(long: Decoder) -> list[Tensor]:
    """The logits after every token of each text, from the decoder as it is."""
    return [torch_logits(long, text) for text in TEXTS]


Wrap = Callable[[TorchPasses], TorchPasses]


def as_it_is(passes: TorchPasses) -> TorchPasses:
    return passes


def recorded(passes: TorchPasses) -> TorchPasses:
    """With steps prepared as for CUDA graphs, which are launched by doing them once more."""

    class Recorder:
        device = torch.device("cpu")

        def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
            work()
            return work

    passes._graphs = StepGraphs.captured(
        passes._read,
        passes._pool.spare,
        texts=passes.texts,
        context=passes.context,
        recorder=Recorder(),  # type: ignore[arg-type]
    )
    assert passes._graphs is not None
    return passes


@pytest.mark.parametrize("wrap", [as_it_is, recorded])
@pytest.mark.parametrize("seed", range(4))
def test_many_texts_in_any_company(
    long: Decoder, dense: list[Tensor], wrap: Wrap, seed: int
) -> None:
    dice = random.Random(seed)
    passes = wrap(passes_of(long))
    free = list(range(passes.blocks))
    dice.shuffle(free)
    blocks = [[free.pop() for _ in range(-(-600 // BLOCK_TOKENS))] for _ in TEXTS]
    # Short ones, and ones around the end of a segment; then mostly a token of each.
    done = [dice.choice([0, 1, 15, 16, 200, 254, 255, 256, 511, 590]) for _ in TEXTS]
    for text, end in enumerate(done):
        for start in range(0, end, 200):
            ids = TEXTS[text][start : min(start + 200, end)]
            assert passes.run([Piece(ids, start, blocks[text], wanted=False)]) == [None]
    for _ in range(12):
        asked = []
        for text in dice.sample(range(5), dice.randint(1, 5)):
            start = done[text]
            end = min(start + dice.choice([1, 1, 1, 1, 2, 40]), 600)
            if start < end:
                held = blocks[text][: -(-end // BLOCK_TOKENS)]
                piece = Piece(TEXTS[text][start:end], start, held, wanted=dice.random() < 0.9)
                asked.append((text, end, piece))
                done[text] = end
        for (text, end, piece), logits in zip(
            asked, passes.run([piece for *_, piece in asked]), strict=True
        ):
            assert (logits is not None) == piece.wanted
            if logits is not None:
                assert (logits - dense[text][end - 1]).abs().max() <= 1e-4


def test_the_number_of_texts_makes_no_further_call(long: Decoder) -> None:
    """A step of n texts is one batch: as many products as a step of one."""

    def calls(texts: int) -> int:
        counted = 0

        class Counter(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                nonlocal counted
                counted += 1
                return func(*args, **(kwargs or {}))

        passes = passes_of(long)
        pieces = [Piece([7], 20 * n, range(3 * n, 3 * n + 3), wanted=True) for n in range(texts)]
        with Counter():
            passes.run(pieces)
        return counted

    one, seven = calls(1), calls(7)
    assert one > 40
    assert seven <= one + 7  # a view of the logits each


def test_features_stand_in_the_place_of_tokens(long: Decoder) -> None:
    features = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    ids = TEXTS[0][:20]
    embeddings = long.embed(torch.tensor([ids]))
    embeddings[0, [0, 3, 4, 19]] = features
    with torch.no_grad():
        expected = long.logits(long(embeddings))[0, -1]
    passes = passes_of(long)
    company = Piece(TEXTS[1][:1], 0, [9], wanted=True)
    first = Piece(ids[:19], 0, [3, 5], False, [([0], features[:1]), ([3, 4], features[1:3])])
    passes.run([first, company])
    last = Piece(ids[19:], 19, [3, 5], True, [([0], features[3:])])  # a single one
    _, logits = passes.run([company, last])
    assert logits is not None
    assert (logits - expected).abs().max() <= 1e-4


def test_a_copied_block_is_as_good_as_the_first(long: Decoder, dense: list[Tensor]) -> None:
    passes = passes_of(long)
    passes.run([Piece(TEXTS[2][:40], 0, [0, 1, 2], wanted=False)])
    passes.copy_block(2, 7)
    passes.run([Piece(TEXTS[3][:5], 40, [0, 1, 2], wanted=False)])
    (logits,) = passes.run([Piece(TEXTS[2][40:45], 40, [0, 1, 7], wanted=True)])
    assert logits is not None
    assert (logits - dense[2][44]).abs().max() <= 1e-4


def test_memory_and_rows_have_limits(long: Decoder) -> None:
    block = 2 * 2 * 2 * 12 * 4 * BLOCK_TOKENS  # layers, keys and values, heads, width, bytes
    for bytes_, blocks, context in ((0, 4, 64), (5 * block, 5, 80), (50 * block, 50, 700)):
        passes = passes_of(long, pool_bytes=bytes_)
        assert (passes.block_bytes, passes.blocks, passes.context) == (block, blocks, context)
    with pytest.raises(ValueError, match="too many"):
        passes.run([Piece([0] * (passes.rows + 1), 0, [0], wanted=False)])
    with pytest.raises(ValueError, match="too many"):
        passes.run([Piece([0], 0, [n], wanted=True) for n in range(9)])


def test_a_warm_up_measures(long: Decoder) -> None:
    passes = passes_of(long)
    passes.warm_up()
    assert 0 < passes.pace.one < passes.pace.of(10)
    passes.close()


# Steps ------------------------------------------------------------------------------------------


@st.composite
def crowds(draw: st.DrawFn) -> list[Piece]:
    """One token each, of texts with blocks of their own."""
    lengths = draw(
        st.lists(st.one_of(st.integers(0, 1023), st.sampled_from([255, 256, 511])), min_size=1,
                 max_size=5)
    )  # fmt: skip
    blocks = iter(draw(st.permutations(range(330))))
    return [
        Piece([n], start, [next(blocks) for _ in range(start // BLOCK_TOKENS + 1)], wanted=True)
        for n, start in enumerate(lengths)
    ]


@settings(max_examples=40, deadline=None)
@given(pieces=crowds(), data=st.data())
def test_segments_add_up_to_attention_over_each_text(
    pieces: list[Piece], data: st.DataObject
) -> None:
    group = data.draw(st.sampled_from([1, 3]))
    pool = BlockPool(LONG, 330, dtype=torch.float32, device=torch.device("cpu"))
    random_numbers = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    kept = next(pool.layers())
    texts = []
    for piece in pieces:
        count = piece.start + 1
        keys, values = (torch.randn(count, 2, 12, generator=random_numbers) * 3 for _ in range(2))
        at = torch.arange(count)
        slots = torch.tensor(piece.blocks)[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        keep(kept, pool.places_of(slots), keys, values)
        texts.append((keys, values))
    shape = shape_of(pieces)
    flat = laid_out(pieces, *shape, pool.spare)
    step = Step.over(torch.from_numpy(flat), *shape)
    queries = torch.randn(shape[0], 2 * group, 12, generator=random_numbers)
    mixed = attend_to_segments(queries, kept, Segments.of(step, pool))
    assert mixed.isfinite().all()
    for number, (keys, values) in enumerate(texts):
        asked, *read = (
            x.transpose(0, 1)[None] for x in (queries[number : number + 1], keys, values)
        )
        plain = F.scaled_dot_product_attention(asked, *read, enable_gqa=True)[0, :, 0]
        assert (mixed[number] - plain).abs().max() <= 1e-5


@settings(deadline=None)
@given(pieces=crowds())
def test_every_step_is_prepared_for(pieces: list[Piece]) -> None:
    texts, segments = shape_of(pieces)
    assert len(pieces) <= texts < 2 * len(pieces)
    assert (texts, segments) in list(shapes(5, 1024))


def test_what_is_prepared_for_goes_from_large_to_small_and_ends() -> None:
    every = list(shapes(64, 32_768))
    assert len(every) == len(set(every)) < 60
    assert max(segments for _, segments in every) == MOST_SEGMENTS
    assert [texts for texts, _ in every] == sorted((texts for texts, _ in every), reverse=True)
    assert list(shapes(1, 64)) == [(1, 1)]


def test_graphs_that_fail_are_done_without(long: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        device = torch.device("cpu")

        def __call__(self, work: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    passes = passes_of(long)
    with caplog.at_level(logging.WARNING):
        made = StepGraphs.captured(
            passes._read, passes._pool.spare, texts=2, context=64, recorder=Broken(),  # type: ignore[arg-type]
        )  # fmt: skip
    assert made is None
    assert "going on without" in caplog.text


# Precision and compiling ------------------------------------------------------------------------


def test_bfloat16_holds_the_weights_once_and_comes_close(
    long: Decoder, dense: list[Tensor]
) -> None:
    decoder = copy.deepcopy(long)
    passes = passes_of(decoder, precision="bfloat16")
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert passes.block_bytes == 2 * 2 * 2 * 12 * 2 * BLOCK_TOKENS
    blocks, errors = range(40), []
    passes.run([Piece(TEXTS[0][:250], 0, blocks, wanted=False)])
    for at in range(250, 262):  # over the end of a segment
        (logits,) = passes.run([Piece(TEXTS[0][at : at + 1], at, blocks, wanted=True)])
        assert logits is not None
        assert logits.dtype == torch.float32
        errors.append((logits - dense[0][at]).norm() / dense[0][at].norm())
    # Eight bits of each weight: as far off as the dense decoder is in the same type.
    plain = torch_logits(decoder, TEXTS[0][:262])[250:].float()
    theirs = (plain - dense[0][250:262]).norm(dim=1) / dense[0][250:262].norm(dim=1)
    assert max(errors) < 2 * theirs.max() < 0.2


@pytest.fixture
def torn() -> Decoder:
    """With an adapter's layer in place of a plain one."""
    decoder = decoder_of(CONFIGS["llama"])
    layer: Any = decoder.layers[1]
    layer.attention.q = nn.Sequential(layer.attention.q)
    return decoder


def test_the_kernels_come_first_where_they_can(torn: Decoder) -> None:
    plain = decoder_of(CONFIGS["llama"])
    for decoder, precision, kind in (
        (plain, "auto", "KernelPasses"),
        (plain, "float32", "KernelPasses"),
        (torn, "auto", "TorchPasses"),
        (torn, "float32", "TorchPasses"),
        (plain, "bfloat16", "TorchPasses"),
    ):
        passes = open_passes(decoder, precision, pool_bytes=0)
        assert type(passes).__name__ == kind
        passes.close()


def test_the_precision_follows_the_device(torn: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cpu, cuda = decoder_of(CONFIGS["llama"]), torch.device("cpu"), torch.device("cuda")
    assert precision_of("auto", plain, cpu) == "int8"
    assert precision_of("auto", torn, cpu) == "float32"
    for real, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda real=real, **_: real)
        assert precision_of("auto", plain, cuda) == expected
    assert precision_of("float32", plain, cuda) == "float32"
    with pytest.raises(ConfigurationError, match="int8"):
        precision_of("int8", plain, cuda)
    with pytest.raises(ConfigurationError, match="int8"):
        precision_of("int8", torn, cpu)
    with pytest.raises(ConfigurationError, match="not known"):
        precision_of("fp4", plain, cpu)


def test_a_compiler_that_fails_is_done_without(
    long: Decoder, dense: list[Tensor], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def broken(*args: Any) -> Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda work, **_: broken)
    passes = passes_of(long, compiled=True)
    with caplog.at_level(logging.WARNING):
        (logits,) = passes.run([Piece(TEXTS[0][:1], 0, [0], wanted=True)])
    assert logits is not None
    assert (logits - dense[0][0]).abs().max() <= 1e-4
    assert "torch.compile failed" in caplog.text
