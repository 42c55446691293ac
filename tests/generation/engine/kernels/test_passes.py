"""The compiled kernels against our torch decoder and transformers; and bits that company leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.kernels.network import Precision, can_run
from chiasm.generation.engine.kernels.passes import MOST_ROWS, KernelPasses
from chiasm.generation.engine.passes import Piece
from chiasm.models.checkpoint import save_checkpoint
from chiasm.models.decoder import Decoder, DecoderConfig
from tests.generation.decoders import CONFIGS, CUTS, IDS, SMALL, decoder_of, torch_logits
from tests.one_thread import _one_thread  # noqa: F401 -- a fixture of this module


@pytest.fixture
def made() -> Iterator[list[KernelPasses]]:
    """What is to be closed in the end."""
    all_made: list[KernelPasses] = []
    yield all_made
    for each in all_made:
        each.close()


def passes_of(
    made: list[KernelPasses], decoder: Decoder, precision: Precision = "float32"
) -> KernelPasses:
    made.append(KernelPasses(decoder, precision=precision, pool_bytes=2**20, texts=8))
    return made[-1]


def read(passes: KernelPasses, blocks: Sequence[int] = range(7, -1, -1)) -> list[Tensor]:
    """The logits after each of the `CUTS`."""
    logits, start = [], 0
    for end in CUTS:
        (after,) = passes.run([Piece(IDS[start:end], start, list(blocks), wanted=True)])
        assert after is not None
        logits.append(after.clone())
        start = end
    return logits


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_torch_and_transformers(
    name: str, made: list[KernelPasses], tmp_path: Path
) -> None:
    decoder = decoder_of(CONFIGS[name])
    assert can_run(decoder)
    ours = torch.stack(read(passes_of(made, decoder)))
    after = [cut - 1 for cut in CUTS]
    assert ours.shape == (len(CUTS), 403)
    assert (ours - torch_logits(decoder, IDS)[after]).abs().max() <= 1e-4
    save_checkpoint(tmp_path, decoder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        reference = theirs(torch.tensor([IDS])).logits[0, after]
    assert reference.abs().max() > 1
    assert (ours - reference).abs().max() <= 1e-4


def test_int8_is_torch_with_weights_rounded_by_hand(made: list[KernelPasses]) -> None:
    for name in ("llama, own head", "llama, biases everywhere", "odd widths", "qwen3"):
        decoder = decoder_of(CONFIGS[name])
        rounded = copy.deepcopy(decoder)
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
        ours = torch.stack(read(passes_of(made, decoder, "int8")))
        after = [cut - 1 for cut in CUTS]
        reference = torch_logits(rounded, IDS)[after]
        assert (ours - reference).abs().max() <= 1e-3 * reference.abs().max(), name
        # The rounding itself is seen: else this would be float32 under another name.
        plain = torch_logits(decoder, IDS)[after]
        assert (ours - plain).abs().max() > 2e-3 * reference.abs().max(), name


@pytest.mark.parametrize("inner", [512, 576, 1536, 4864, 11008])
def test_sums_of_int8_products_never_overflow(inner: int, made: list[KernelPasses]) -> None:
    """Every product as large as it can be, and all of one sign."""
    config = DecoderConfig(
        **SMALL | {"hidden_size": 16, "intermediate_size": inner, "num_hidden_layers": 1}
    )
    decoder = decoder_of(config)
    layer: Any = decoder.layers[0]
    layer.attention.o.weight.zero_()
    layer.norm2.weight.fill_(1)
    decoder.embedding.weight.fill_(0.5)
    layer.mlp.gate.weight.fill_(0.25)
    layer.mlp.up.weight.fill_(0.25)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0]).repeat(4)
    layer.mlp.down.weight.copy_(signs[:, None].expand(-1, inner) / inner)
    ours = read(passes_of(made, decoder, "int8"))[0]
    rounded = copy.deepcopy(decoder)
    assert rounded.head is not None
    scale = rounded.head.weight.abs().amax(dim=1, keepdim=True) / 127
    rounded.head.weight.copy_((rounded.head.weight / scale).round() * scale)
    reference = torch_logits(rounded, IDS[:1])[0]
    assert (ours - reference).abs().max() <= 1e-3 * reference.abs().max()


@pytest.mark.parametrize(
    "wrong",
    [
        {"head_dim": 12},
        {"hidden_size": 38, "head_dim": 16},
        {"hidden_act": "gelu"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_the_kernels_cannot_run(wrong: dict[str, Any]) -> None:
    assert not can_run(decoder_of(DecoderConfig(**SMALL | wrong)))


def test_other_types_and_replaced_layers_are_left_to_others() -> None:
    assert not can_run(decoder_of(CONFIGS["llama"]).to(torch.bfloat16))
    adapted = decoder_of(CONFIGS["llama"])
    layer: Any = adapted.layers[1]
    layer.attention.q = nn.Sequential(layer.attention.q)
    assert not can_run(adapted)


def test_more_rows_than_there_is_room_for_are_refused(made: list[KernelPasses]) -> None:
    passes = passes_of(made, decoder_of(CONFIGS["llama"]))
    with pytest.raises(ValueError, match="too many"):
        passes.run([Piece([0] * (MOST_ROWS + 1), 0, [0], wanted=False)])
    with pytest.raises(ValueError, match="too many"):
        passes.run([Piece([0], 0, [n], wanted=True) for n in range(9)])


def test_memory_for_less_than_a_context(made: list[KernelPasses]) -> None:
    decoder = decoder_of(CONFIGS["llama"])
    block = 2 * 2 * 2 * 16 * 4 * BLOCK_TOKENS  # layers, keys and values, heads, width, bytes
    for bytes_, blocks, context in ((0, 4, 64), (5 * block, 5, 80), (50 * block, 50, 128)):
        made.append(KernelPasses(decoder, precision="float32", pool_bytes=bytes_, texts=1))
        assert (made[-1].block_bytes, made[-1].blocks) == (block, blocks)
        assert made[-1].context == context


# Bits -------------------------------------------------------------------------------------------

TEXTS = [[(3 * n * n + text * n + text) % 403 for n in range(70)] for text in range(5)]


@pytest.fixture(scope="module", params=["float32", "int8"])
def readers(request: pytest.FixtureRequest) -> Iterator[list[KernelPasses]]:
    """Passes of one network, by one thread and by two."""
    decoder = decoder_of(CONFIGS["qwen2"])
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(KernelPasses(decoder, precision=request.param, pool_bytes=2**21, texts=8))
    torch.set_num_threads(before)
    yield made
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def alone(readers: list[KernelPasses]) -> list[list[Tensor]]:
    """The logits after every token of each text, read one by one, alone."""
    passes, _ = readers
    logits = []
    for ids in TEXTS:
        after = []
        for at, number in enumerate(ids):
            piece = Piece([number], at, range(8), wanted=True)
            (each,) = passes.run([piece])
            assert each is not None
            after.append(each.clone())
        logits.append(after)
    return logits


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_are_the_same_bit_by_bit_in_any_company(
    data: st.DataObject, readers: list[KernelPasses], alone: list[list[Tensor]]
) -> None:
    passes = data.draw(st.sampled_from(readers), label="threads")
    texts = data.draw(st.lists(st.sampled_from(range(5)), min_size=1, max_size=5, unique=True))
    blocks = data.draw(st.permutations(range(40)))
    done = dict.fromkeys(texts, 0)
    while going := [text for text in texts if done[text] < 70]:
        now = data.draw(st.lists(st.sampled_from(going), min_size=1, unique=True))
        pieces, ends = [], []
        for text in now:
            start = done[text]
            done[text] = data.draw(st.integers(start + 1, min(start + 50, 70)))
            held = blocks[8 * text : 8 * text + -(-done[text] // BLOCK_TOKENS)]
            pieces.append(Piece(TEXTS[text][start : done[text]], start, held, wanted=True))
            ends.append((text, done[text] - 1))
        for (text, at), logits in zip(ends, passes.run(pieces), strict=True):
            assert logits is not None
            assert torch.equal(logits, alone[text][at])


def test_a_copied_block_is_as_good_as_the_first(
    readers: list[KernelPasses], alone: list[list[Tensor]]
) -> None:
    passes, _ = readers
    passes.run([Piece(TEXTS[2][:40], 0, [0, 1, 2], wanted=False)])
    passes.copy_block(2, 7)
    # Elsewhere something else is read behind the 40 tokens: the copy is not touched by it.
    passes.run([Piece(TEXTS[3][:5], 40, [0, 1, 2], wanted=False)])
    rest = Piece(TEXTS[2][40:45], 40, [0, 1, 7], wanted=True)
    (logits,) = passes.run([rest])
    assert logits is not None
    assert torch.equal(logits, alone[2][44])
