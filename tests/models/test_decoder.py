"""Decoders: their cache, hooks, older spellings and refusals. Outputs: see test_parity.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parity_decoders
import pytest
import torch
import transformers
from parity import randomise
from safetensors.torch import load_file, save_file
from torch import Tensor

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.cache import KeyValueCache
from chiasm.models.checkpoint import load_model
from chiasm.models.configuration import read_config
from chiasm.models.decoder import LAYOUT, Decoder, DecoderConfig, Qwen2Config, causal_mask

IDS = torch.randint(1, 130, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def reference() -> Any:
    config = transformers.LlamaConfig(**parity_decoders.SIZES)
    return randomise(transformers.LlamaForCausalLM(config)).eval()


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    decoder = load_model(folder)
    assert isinstance(decoder, Decoder)
    return decoder.requires_grad_(False)


def read(decoder: Decoder, ids: Tensor, cache: KeyValueCache) -> Tensor:
    return decoder.logits(decoder(decoder.embed(ids), cache=cache))


# The cache --------------------------------------------------------------------------------------


def test_a_cache_cut_back_goes_on_as_if_the_rest_was_never_read(
    decoder: Decoder, reference: Any
) -> None:
    cache = KeyValueCache(decoder.config, batch=2)
    read(decoder, IDS[:, :12], cache)
    cache.truncate(5)
    other = torch.cat((IDS[:, :5], IDS[:, 15:]), dim=1)
    expected = reference(other).logits[:, 5:]
    torch.testing.assert_close(read(decoder, IDS[:, 15:], cache), expected, atol=1e-4, rtol=0)
    assert cache.length == 10


def test_a_copy_of_the_first_tokens_and_its_origin_go_separate_ways(
    decoder: Decoder, reference: Any
) -> None:
    cache = KeyValueCache(decoder.config, batch=2)
    read(decoder, IDS[:, :8], cache)
    copy = cache.clone(6)
    assert (copy.length, cache.length) == (6, 8)
    assert copy.nbytes < cache.nbytes
    for each, start in ((cache, 8), (copy, 6)):
        got = read(decoder, IDS[:, 12:], each)
        text = torch.cat((IDS[:, :start], IDS[:, 12:]), dim=1)
        expected = reference(text).logits[:, start:]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_a_pass_that_is_given_up_half_way_leaves_the_cache_as_it_was(
    decoder: Decoder, reference: Any
) -> None:
    cache = KeyValueCache(decoder.config, batch=2, capacity=10)
    read(decoder, IDS[:, :9], cache)

    def cancelled(layer: int, tokens: Tensor) -> Tensor:
        if layer == 2:
            raise KeyboardInterrupt
        return tokens

    with pytest.raises(KeyboardInterrupt):
        decoder(decoder.embed(IDS[:, 3:12]), cache=cache, before_layer=cancelled)
    assert cache.length == 9
    got = read(decoder, IDS[:, 9:], cache)
    torch.testing.assert_close(got, reference(IDS).logits[:, 9:], atol=1e-4, rtol=0)


def test_a_cache_says_what_memory_it_takes(decoder: Decoder) -> None:
    cache = KeyValueCache(decoder.config, batch=2, capacity=32)
    # layers × batch × key heads × tokens × head width × (keys and values) × four bytes
    assert cache.nbytes == 3 * 2 * 2 * 32 * 8 * 2 * 4
    assert (cache.length, cache.capacity, cache.batch) == (0, 32, 2)


def test_a_cache_of_another_batch_is_refused(decoder: Decoder) -> None:
    with pytest.raises(InvalidRequest, match="cache of 1 sequences cannot go on with 2"):
        read(decoder, IDS, KeyValueCache(decoder.config))


# The forward pass -------------------------------------------------------------------------------


def test_the_hook_before_a_layer_changes_what_enters_it(decoder: Decoder, reference: Any) -> None:
    added = torch.randn(48, generator=torch.Generator().manual_seed(1))
    handle = reference.model.layers[1].register_forward_pre_hook(
        lambda _, inputs: (inputs[0] + added, *inputs[1:])
    )
    try:
        expected = reference(IDS).logits
    finally:
        handle.remove()
    hidden = decoder(
        decoder.embed(IDS), before_layer=lambda layer, x: x + added if layer == 1 else x
    )
    torch.testing.assert_close(decoder.logits(hidden), expected, atol=1e-4, rtol=0)


def test_padding_never_makes_what_is_no_number(decoder: Decoder) -> None:
    held = torch.arange(20) >= torch.tensor([[19], [20]])  # the second row is padding alone
    hidden = decoder(decoder.embed(IDS), mask=causal_mask(20, held=held))
    assert hidden.isfinite().all()


def test_a_mask_may_differ_by_head(decoder: Decoder) -> None:
    """Query heads 0–2 share the first key head: with masks of their own, they still do."""
    layer = decoder.layers[0].attention
    x = torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(2))
    cos, sin = decoder.rotary.at(range(4), x)
    mask = torch.rand(1, 6, 1, 4, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[..., 0] = True
    cache = KeyValueCache(decoder.config)
    cache.append(0, *torch.randn(2, 1, 2, 3, 8, generator=torch.Generator().manual_seed(5)))
    cache.length = 3
    got = layer(x, (cos[3:], sin[3:]), mask, False, cache)
    expected = torch.zeros(6, 8)
    keys, values = cache.keys[0, 0, :, :4], cache.values[0, 0, :, :4]
    query = layer.q(x).view(6, 8)
    half = torch.cat((-query[:, 4:], query[:, :4]), dim=1)
    query = query * cos[3] + half * sin[3]
    for head in range(6):
        scores = keys[head // 3] @ query[head] / 8**0.5
        weights = scores.masked_fill(~mask[0, head, 0], -torch.inf).softmax(dim=0)
        expected[head] = weights @ values[head // 3]
    torch.testing.assert_close(got[0, 0], layer.o(expected.flatten()), atol=1e-5, rtol=1e-5)


def test_half_precision_follows_the_weights(folder: Path, reference: Any) -> None:
    decoder: Any = load_model(folder).to(torch.bfloat16)
    cache = KeyValueCache(decoder.config, batch=2, dtype=torch.bfloat16)
    logits = torch.cat((read(decoder, IDS[:, :7], cache), read(decoder, IDS[:, 7:], cache)), dim=1)
    assert logits.dtype == torch.bfloat16
    expected = reference(IDS).logits
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_every_weight_learns(folder: Path) -> None:
    trained: Any = load_model(folder)
    trained.logits(trained(trained.embed(IDS))).logsumexp(dim=-1).sum().backward()
    idle = [name for name, each in trained.named_parameters() if not each.grad.abs().sum() > 0]
    assert idle == []


# One token at a time ----------------------------------------------------------------------------


def random_decoder(config: Any) -> tuple[Any, Any]:
    """A model of transformers' and ours with its weights."""
    kinds = {
        "llama": transformers.LlamaForCausalLM,
        "qwen2": transformers.Qwen2ForCausalLM,
        "qwen3": transformers.Qwen3ForCausalLM,
    }
    reference = randomise(kinds[config.model_type](config)).eval()
    ours = Decoder(read_config(DecoderConfig, config.to_dict()))
    tensors = dict(reference.state_dict())
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    ours.load_state_dict(LAYOUT.read(tensors, shapes, "memory"))
    return reference, ours.eval()


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**parity_decoders.SIZES, tie_word_embeddings=True),
        transformers.LlamaConfig(**parity_decoders.SIZES, attention_bias=True, mlp_bias=True),
        transformers.Qwen2Config(**parity_decoders.SIZES),
        transformers.Qwen3Config(**parity_decoders.SIZES, head_dim=20),
    ],
    ids=["Llama", "Llama with biases", "Qwen2", "Qwen3"],
)
def test_tokens_read_one_by_one_give_the_same_logits(config: Any) -> None:
    reference, ours = random_decoder(config)
    added = torch.randn(48, generator=torch.Generator().manual_seed(1))
    cache, hooked = KeyValueCache(ours.config, capacity=3), KeyValueCache(ours.config)
    text, parts, moved = IDS[:1], [], []
    with torch.inference_mode():
        for token in text.split(1, dim=1):
            parts.append(read(ours, token, cache))
            embedding = ours.embed(token)
            hidden = ours(
                embedding, cache=hooked, before_layer=lambda i, x: x + added if i == 1 else x
            )
            moved.append(ours.logits(hidden))
        expected = reference(text).logits
        reference.model.layers[1].register_forward_pre_hook(
            lambda _, inputs: (inputs[0] + added, *inputs[1:])
        )
        expected_moved = reference(text).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(moved, dim=1), expected_moved, atol=1e-4, rtol=0)


def test_an_adapter_in_a_layer_is_asked_for_every_token(folder: Path, reference: Any) -> None:
    class Doubled(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.linear(x)

    ours: Any = load_model(folder)
    ours.layers[1].mlp.gate = Doubled(ours.layers[1].mlp.gate)
    changed = type(reference)(reference.config).eval()
    changed.load_state_dict(reference.state_dict())
    with torch.inference_mode():
        changed.model.layers[1].mlp.gate_proj.weight *= 2
        cache = KeyValueCache(ours.config)
        parts = [read(ours, token, cache) for token in IDS[:1].split(1, dim=1)]
        expected = changed(IDS[:1]).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)


# Spellings --------------------------------------------------------------------------------------


def copied(folder: Path, target: Path, **entries: Any) -> Path:
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | entries
    config = {name: value for name, value in config.items() if value is not ...}
    (target / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), target / "model.safetensors")
    return target


def test_names_without_prefix_and_with_frequencies_are_read(
    folder: Path, tmp_path: Path, reference: Any
) -> None:
    older = copied(folder, tmp_path / "older")
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, older / "model.safetensors")
    decoder: Any = load_model(older)
    got = decoder.logits(decoder(decoder.embed(IDS)))
    torch.testing.assert_close(got, reference(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_theta": 300.0, "rope_scaling": None},
        {"rope_theta": 300.0},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 300.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"num_key_value_heads": None, "head_dim": None},
    ],
    ids=lambda entries: ", ".join(entries),
)
def test_older_spellings_of_the_configuration_mean_what_transformers_takes_them_for(
    folder: Path, tmp_path: Path, entries: dict[str, Any]
) -> None:
    older = copied(folder, tmp_path / "older", rope_parameters=..., **entries)
    theirs = transformers.LlamaConfig.from_pretrained(older)
    ours = read_config(DecoderConfig, json.loads((older / "config.json").read_text()))
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.rope_parameters.rope_type == rope["rope_type"]
    assert ours.rope_parameters.factor == rope.get("factor")
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim


def test_what_a_file_leaves_out_is_what_transformers_assumes() -> None:
    """LLaVA's `text_config` holds only what differs from the defaults."""
    for kind in (transformers.LlamaConfig, transformers.Qwen2Config, transformers.Qwen3Config):
        theirs = kind()
        ours: Any = read_config(DecoderConfig, {"model_type": theirs.model_type})
        names = [*SAME, *(["head_dim"] if hasattr(theirs, "head_dim") else [])]
        for name in names:
            assert getattr(ours, name) == getattr(theirs, name), (theirs.model_type, name)
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings"),
    *("rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, which does not divide"),
        ({"head_dim": 7}, "head_dim is 7, which is odd"),
        ({"hidden_act": "relu6"}, "hidden_act is 'relu6'"),
    ],
)
def test_decoders_that_cannot_be_built_are_refused(
    folder: Path, tmp_path: Path, entries: dict[str, Any], words: str
) -> None:
    entries = {"rope_parameters": ..., **entries}
    with pytest.raises(UnsupportedCheckpoint, match=words) as caught:
        load_model(copied(folder, tmp_path / "odd", **entries))
    assert "config.json" in caught.value.message


@pytest.mark.parametrize(
    ("entries", "windowed"),
    [
        ({"sliding_window": 4096, "use_sliding_window": False}, False),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, False),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 21}, True),
        ({"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, False),
        ({"layer_types": ["full_attention"] * 28}, False),
        ({"layer_types": ["full_attention", "sliding_attention"] * 14}, True),
    ],
)
def test_layers_that_see_a_window_alone_are_refused(
    entries: dict[str, Any], windowed: bool
) -> None:
    entries = {"model_type": "qwen2", "num_hidden_layers": 28, **entries}
    theirs = transformers.Qwen2Config(**entries)
    assert ("sliding_attention" in theirs.layer_types) == windowed
    if windowed:
        with pytest.raises(UnsupportedCheckpoint, match="sliding window"):
            read_config(DecoderConfig, entries)
    else:
        assert isinstance(read_config(DecoderConfig, entries), Qwen2Config)


def test_an_untied_head_must_be_there(folder: Path, tmp_path: Path) -> None:
    headless = copied(folder, tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, headless / "model.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match=r"missing: lm_head\.weight"):
        load_model(headless)


def test_several_tokens_may_end_a_text() -> None:
    ends = [read_config(DecoderConfig, {"eos_token_id": eos}).eos_ids for eos in (2, [2, 7], None)]
    assert ends == [{2}, {2, 7}, set()]
