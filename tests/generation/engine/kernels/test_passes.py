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

from chiasm.generation.engine.kernels.arithmetic import BLOCK_TOKENS
from chiasm.generation.engine.kernels.network import Precision, can_run
from chiasm.generation.engine.kernels.passes import MOST_ROWS, Passes, Piece
from chiasm.models.checkpoint import save_checkpoint
from chiasm.models.decoder import Decoder, DecoderConfig, Qwen2Config, Qwen3Config
from chiasm.models.rotary import RopeParameters
from tests.one_thread import _one_thread  # noqa: F401 -- a fixture of this module

SMALL: dict[str, Any] = {
    "vocab_size": 403,  # no multiple of four
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = RopeParameters(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = RopeParameters(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
CONFIGS: dict[str, DecoderConfig] = {
    "llama": DecoderConfig(**SMALL, tie_word_embeddings=True),
    "llama, own head": DecoderConfig(**SMALL),
    "llama, head width 8": DecoderConfig(**SMALL | {"num_attention_heads": 8}),
    "llama, head width 64": DecoderConfig(**SMALL, head_dim=64),
    "llama, head width 128, one key head": DecoderConfig(
        **SMALL | {"num_key_value_heads": 1}, head_dim=128
    ),
    "llama, biases everywhere": DecoderConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama3's rope": DecoderConfig(**SMALL, rope_parameters=LLAMA3),
    "yarn": DecoderConfig(**SMALL, rope_parameters=YARN),
    "odd widths": DecoderConfig(
        **SMALL | {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 6},
        head_dim=24,
    ),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL | {"head_dim": 16}),
    "qwen3, head width 128": Qwen3Config(**SMALL),
}
IDS = [(7 * n * n + 3 * n) % 403 for n in range(75)]
CUTS = (1, 16, 17, 40, 75)
"""Prefixes of the ids: read behind each other, the logits wanted after each."""


def decoder_of(config: DecoderConfig) -> Decoder:
    """With random weights of a size that makes a difference, norms and biases too."""
    torch.manual_seed(5)
    decoder = Decoder(config).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(mean=float("norm" in name), std=0.2)
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    decoder.embedding.weight.normal_(std=0.3)
    return decoder


@pytest.fixture
def made() -> Iterator[list[Passes]]:
    """What is to be closed in the end."""
    all_made: list[Passes] = []
    yield all_made
    for each in all_made:
        each.close()


def passes_of(made: list[Passes], decoder: Decoder, precision: Precision = "float32") -> Passes:
    made.append(Passes(decoder, precision=precision, pool_bytes=2**20, texts=8))
    return made[-1]


def read(
    passes: Passes, decoder: Decoder, blocks: Sequence[int] = range(7, -1, -1)
) -> list[Tensor]:
    """The logits after each of the `CUTS`."""
    logits, start = [], 0
    for end in CUTS:
        embeddings = decoder.embed(torch.tensor(IDS[start:end]))
        (after,) = passes.run([Piece(embeddings, start, list(blocks), wanted=True)])
        assert after is not None
        logits.append(after.clone())
        start = end
    return logits


def torch_logits(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """[ids, vocabulary]."""
    with torch.no_grad():
        return decoder.logits(decoder(decoder.embed(torch.tensor([list(ids)]))))[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_torch_and_transformers(
    name: str, made: list[Passes], tmp_path: Path
) -> None:
    decoder = decoder_of(CONFIGS[name])
    assert can_run(decoder)
    ours = torch.stack(read(passes_of(made, decoder), decoder))
    after = [cut - 1 for cut in CUTS]
    assert ours.shape == (len(CUTS), 403)
    assert (ours - torch_logits(decoder, IDS)[after]).abs().max() <= 1e-4
    save_checkpoint(tmp_path, decoder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        reference = theirs(torch.tensor([IDS])).logits[0, after]
    assert reference.abs().max() > 1
    assert (ours - reference).abs().max() <= 1e-4


def test_int8_is_torch_with_weights_rounded_by_hand(made: list[Passes]) -> None:
    for name in ("llama, own head", "llama, biases everywhere", "odd widths", "qwen3"):
        decoder = decoder_of(CONFIGS[name])
        rounded = copy.deepcopy(decoder)
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
        ours = torch.stack(read(passes_of(made, decoder, "int8"), decoder))
        after = [cut - 1 for cut in CUTS]
        reference = torch_logits(rounded, IDS)[after]
        assert (ours - reference).abs().max() <= 1e-3 * reference.abs().max(), name
        # The rounding itself is seen: else this would be float32 under another name.
        plain = torch_logits(decoder, IDS)[after]
        assert (ours - plain).abs().max() > 2e-3 * reference.abs().max(), name


@pytest.mark.parametrize("inner", [512, 576, 1536, 4864, 11008])
def test_sums_of_int8_products_never_overflow(inner: int, made: list[Passes]) -> None:
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
    ours = read(passes_of(made, decoder, "int8"), decoder)[0]
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


def test_more_rows_than_there_is_room_for_are_refused(made: list[Passes]) -> None:
    passes = passes_of(made, decoder_of(CONFIGS["llama"]))
    with pytest.raises(ValueError, match="too many"):
        passes.run([Piece(torch.zeros(MOST_ROWS + 1, 64), 0, [0], wanted=False)])
    with pytest.raises(ValueError, match="too many"):
        passes.run([Piece(torch.zeros(1, 64), 0, [n], wanted=True) for n in range(9)])


def test_memory_for_less_than_a_context(made: list[Passes]) -> None:
    decoder = decoder_of(CONFIGS["llama"])
    block = 2 * 2 * 2 * 16 * 4 * BLOCK_TOKENS  # layers, keys and values, heads, width, bytes
    for bytes_, blocks, context in ((0, 4, 64), (5 * block, 5, 80), (50 * block, 50, 128)):
        made.append(Passes(decoder, precision="float32", pool_bytes=bytes_, texts=1))
        assert (made[-1].block_bytes, made[-1].blocks) == (block, blocks)
        assert made[-1].context == context


# Bits -------------------------------------------------------------------------------------------

TEXTS = [[(3 * n * n + text * n + text) % 403 for n in range(70)] for text in range(5)]


@pytest.fixture(scope="module", params=["float32", "int8"])
def readers(request: pytest.FixtureRequest) -> Iterator[tuple[Decoder, list[Passes]]]:
    """A network, and passes of it by one thread and by two."""
    decoder = decoder_of(CONFIGS["qwen2"])
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(Passes(decoder, precision=request.param, pool_bytes=2**21, texts=8))
    torch.set_num_threads(before)
    yield decoder, made
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def alone(readers: tuple[Decoder, list[Passes]]) -> list[list[Tensor]]:
    """The logits after every token of each text, read one by one, alone."""
    decoder, (passes, _) = readers
    logits = []
    for ids in TEXTS:
        after = []
        for at, number in enumerate(ids):
            piece = Piece(decoder.embed(torch.tensor([number])), at, range(8), wanted=True)
            (each,) = passes.run([piece])
            assert each is not None
            after.append(each.clone())
        logits.append(after)
    return logits


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_are_the_same_bit_by_bit_in_any_company(
    data: st.DataObject, readers: tuple[Decoder, list[Passes]], alone: list[list[Tensor]]
) -> None:
    decoder, made = readers
    passes = data.draw(st.sampled_from(made), label="threads")
    texts = data.draw(st.lists(st.sampled_from(range(5)), min_size=1, max_size=5, unique=True))
    blocks = data.draw(st.permutations(range(40)))
    done = dict.fromkeys(texts, 0)
    while going := [text for text in texts if done[text] < 70]:
        now = data.draw(st.lists(st.sampled_from(going), min_size=1, unique=True))
        pieces, ends = [], []
        for text in now:
            start = done[text]
            done[text] = data.draw(st.integers(start + 1, min(start + 50, 70)))
            embeddings = decoder.embed(torch.tensor(TEXTS[text][start : done[text]]))
            held = blocks[8 * text : 8 * text + -(-done[text] // BLOCK_TOKENS)]
            pieces.append(Piece(embeddings, start, held, wanted=True))
            ends.append((text, done[text] - 1))
        for (text, at), logits in zip(ends, passes.run(pieces), strict=True):
            assert logits is not None
            assert torch.equal(logits, alone[text][at])


def test_a_copied_block_is_as_good_as_the_first(
    readers: tuple[Decoder, list[Passes]], alone: list[list[Tensor]]
) -> None:
    decoder, (passes, _) = readers
    passes.run([Piece(decoder.embed(torch.tensor(TEXTS[2][:40])), 0, [0, 1, 2], wanted=False)])
    passes.copy_block(2, 7)
    # Elsewhere something else is read behind the 40 tokens: the copy is not touched by it.
    passes.run([Piece(decoder.embed(torch.tensor(TEXTS[3][:5])), 40, [0, 1, 2], wanted=False)])
    rest = Piece(decoder.embed(torch.tensor(TEXTS[2][40:45])), 40, [0, 1, 7], wanted=True)
    (logits,) = passes.run([rest])
    assert logits is not None
    assert torch.equal(logits, alone[2][44])
