"""Flamingo beyond parity: its gates, its cache, packing, training, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parity_flamingo as flamingo_cases
import pytest
import torch
import transformers
from parity import randomise
from parity_flamingo import AROUND, EOS, IMAGE, SIDE
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models import lora
from chiasm.models.checkpoint import load_model, save_checkpoint
from chiasm.models.configuration import read_config
from chiasm.models.decoder import Decoder, DecoderConfig, Qwen2Config
from chiasm.models.flamingo import Flamingo, IdeficsConfig
from chiasm.models.flops import decoder_flops
from chiasm.models.vision_language import ImageInputs
from chiasm.models.vit import ViT


def network(**entries: Any) -> Flamingo:
    """A random network with its gates open."""
    torch.manual_seed(0)
    config = read_config(IdeficsConfig, {**flamingo_cases.SIZES, **entries})
    return randomise(Flamingo(config)).eval()


def picture(seed: int) -> ImageInputs:
    generator = torch.Generator().manual_seed(seed)
    return ImageInputs(torch.randn(1, 3, SIDE, SIDE, generator=generator), (SIDE, SIDE))


def language_model(**entries: Any) -> Decoder:
    """A small Llama whose queries share keys."""
    torch.manual_seed(1)
    entries = {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **entries,
    }
    config = DecoderConfig(vocab_size=100, hidden_size=48, intermediate_size=80, **entries)
    return randomise(Decoder(config)).eval()


def tower(**options: bool) -> ViT:
    """A small image tower, CLIP's unless `options` say otherwise."""
    config = read_config(IdeficsConfig, flamingo_cases.SIZES).vision_config.tower
    return randomise(ViT(config, **{"patch_bias": False, "pre_norm": True, **options}), seed=3)


def around(decoder: Decoder, image_tower: ViT | None = None, **entries: Any) -> Flamingo:
    return Flamingo.around(
        decoder,
        image_tower or tower(),
        additional_vocab_size=2,
        cross_layer_interval=2,
        use_resampler=True,
        perceiver_config=read_config(IdeficsConfig, flamingo_cases.SIZES).perceiver_config,
        **entries,
    ).eval()


PROMPT = torch.tensor([[1, 40, AROUND, IMAGE, AROUND, 41, 42, AROUND, IMAGE, AROUND, 43]])


# Gates ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_with_closed_gates_the_language_model_is_what_it_was() -> None:
    decoder, image_tower = language_model(), tower()
    model = around(decoder, image_tower)
    pixels = picture(1).pixels
    assert torch.equal(model.image_tower.tokens(pixels), image_tower.tokens(pixels))
    text = torch.randint(3, 100, (2, 12))
    expected = decoder.logits(decoder(decoder.embed(text)))
    assert (model.logits(model(text))[..., :100] - expected).abs().max() <= 1e-5
    features = torch.cat([model.encode_image(picture(seed)) for seed in (1, 2)])
    embeddings = model.embed(PROMPT)
    assert (model(PROMPT, features) - decoder(embeddings)).abs().max() <= 1e-5
    for layer in model.cross_attention:
        layer.alpha_cross_attn.fill_(0.5)  # type: ignore[union-attr, operator]
    assert (model(PROMPT, features) - decoder(embeddings)).abs().max() > 0.1


@torch.no_grad()
def test_transformers_opens_a_flamingo_made_of_a_decoder_with_grouped_queries(
    tmp_path: Path,
) -> None:
    model = around(language_model(rope_theta=300.0), alpha_initializer="ones", alpha_type="vector")
    save_checkpoint(tmp_path, model)
    theirs = transformers.IdeficsForVisionText2Text.from_pretrained(tmp_path).eval()
    pixels = torch.cat([picture(seed).pixels for seed in (1, 2)])
    expected = theirs(**flamingo_cases.theirs(PROMPT, pixels)).logits
    assert (flamingo_cases.logits(model, PROMPT, pixels) - expected).abs().max() <= 1e-4
    reopened = load_model(tmp_path)
    assert isinstance(reopened, Flamingo)
    assert torch.equal(reopened(PROMPT[:, :2]), model(PROMPT[:, :2]))


@pytest.mark.parametrize(
    "decoder",
    [
        lambda: Decoder(Qwen2Config(vocab_size=9, hidden_size=8, intermediate_size=8,
                                    num_hidden_layers=1, num_attention_heads=1)),
        lambda: language_model(mlp_bias=True),
    ],
    ids=["Qwen2", "biases"],
)  # fmt: skip
def test_no_flamingo_around_what_the_layout_cannot_hold(decoder: Any) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="Llama without biases"):
        around(decoder())


def test_no_flamingo_around_another_image_tower() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="is CLIP's"):
        around(language_model(), tower(patch_bias=True))


def test_new_layers_learn_to_see_while_the_language_model_stays() -> None:
    """Two pictures, the same text, different answers: only cross-attention can tell them apart."""
    model = around(language_model(num_hidden_layers=2)).train()
    model.decoder.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    ids = torch.tensor([[1, AROUND, IMAGE, AROUND, 40]] * 2)
    answers = torch.tensor([50, 60])
    new = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(new, lr=1e-2)
    losses = []
    for _ in range(60):
        features = torch.cat([model.encode_image(picture(seed)) for seed in (1, 2)])
        logits = model.logits(model(ids, features)[:, -1])
        loss = torch.nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < 0.69 < losses[0], losses
    after = model.decoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_batch_without_pictures_reaches_every_parameter_that_learns() -> None:
    """As DDP asks; and what nobody sees changes nothing."""
    model = network().train()
    model.image_tower.requires_grad_(False)
    model.resampler.requires_grad_(False)  # type: ignore[union-attr]
    ids = torch.randint(3, 100, (2, 6))
    hidden = model(ids)
    model.logits(hidden).sum().backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in learning.values() if p.grad is not None)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), hidden)


# The cache --------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("length", range(len(PROMPT[0])))
def test_another_question_goes_on_from_any_beginning(length: int) -> None:
    model = network()
    each = [model.encode_image(picture(seed)) for seed in range(4)]
    cache = model.new_cache()
    model(PROMPT, torch.cat(each[:2]), cache=cache)
    copy = cache.clone(length, capacity=64)
    rest = torch.tensor([[50, IMAGE, 51, IMAGE, 52]])
    whole = torch.cat((PROMPT[:, :length], rest), dim=1)
    first = each[: int((PROMPT[:, :length] == IMAGE).sum())]
    expected = model(whole, torch.cat([*first, each[2], each[3]]))[:, length:]
    assert (model(rest, torch.cat(each[2:]), cache=copy) - expected).abs().max() <= 1e-5
    cache.truncate(length)
    assert (model(rest, torch.cat(each[2:]), cache=cache) - expected).abs().max() <= 1e-5
    pictures = len(first) + 2
    size = model.config.image_latents * model.config.hidden_size
    layers, numbers = len(model.cross_attention), 2 * 4  # keys and values of four bytes
    held = copy.nbytes - copy.keys.nbytes - copy.values.nbytes
    assert held == pictures * size * layers * numbers


@torch.no_grad()
def test_rows_of_a_batch_keep_their_own_pictures_when_cut() -> None:
    model = network()
    each = [model.encode_image(picture(seed)) for seed in range(5)]
    ids = torch.tensor([[1, IMAGE, 5, 6, IMAGE, 7], [1, 8, 9, IMAGE, 10, IMAGE]])
    cache = model.new_cache(batch=2)
    model(ids, torch.cat(each[:4]), cache=cache)
    cache.truncate(4)  # row 0 loses its second picture, row 1 its second
    rest = torch.tensor([[20, 21, 22], [23, IMAGE, 24]])
    whole = torch.cat((ids[:, :4], rest), dim=1)
    expected = model(whole, torch.cat((each[0], each[2], each[4])))[:, 4:]
    assert (model(rest, each[4], cache=cache) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_a_pass_that_fails_leaves_the_cache_as_it_was() -> None:
    model = network()
    each = [model.encode_image(picture(seed)) for seed in range(2)]
    cache = model.new_cache()
    model(PROMPT[:, :6], each[0], cache=cache)

    def fail(*_: Any) -> None:
        raise RuntimeError

    hook = model.cross_attention[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        model(PROMPT[:, 6:], each[0], cache=cache)
    hook.remove()
    expected = model(PROMPT, torch.cat(each))[:, 6:]
    assert (model(PROMPT[:, 6:], each[1], cache=cache) - expected).abs().max() <= 1e-5


# Packing ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_conversations_packed_into_one_row_do_not_see_each_others_pictures() -> None:
    model = network()
    each = [model.encode_image(picture(seed)) for seed in range(2)]
    alone = [
        (torch.tensor([[1, 5, IMAGE, 6, 7]]), each[0]),
        (torch.tensor([[1, 8, 9]]), None),
        (torch.tensor([[IMAGE, 10, 11, 12]]), each[1]),
    ]
    expected = torch.cat([model(ids, found) for ids, found in alone], dim=1)
    packed = torch.cat([ids for ids, _ in alone], dim=1)
    lengths = [ids.shape[1] for ids, _ in alone]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    mask = (owner[:, None] == owner) & torch.ones(12, 12, dtype=torch.bool).tril()
    got = model(packed, torch.cat(each), positions=positions, mask=mask)
    assert (got - expected).abs().max() <= 1e-5


# What it costs ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("resampler", [True, False])
def test_vision_flops_are_those_that_torch_counts(resampler: bool) -> None:
    model = network(use_resampler=resampler).requires_grad_(False)
    # torch counts attention only where it is made of plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model.encode_image(picture(1))
    assert model.vision_flops(picture(1)) == counter.get_total_flops()
    assert len(features) == model.config.image_latents == (5 if resampler else 17)


@torch.no_grad()
def test_language_flops_count_the_looks_at_pictures() -> None:
    model = network(additional_vocab_size=0, vocab_size=103, image_token_id=IMAGE)
    model.requires_grad_(False)
    cache = model.new_cache()
    model(PROMPT[:, :5], model.encode_image(picture(1)), cache=cache)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(PROMPT[:, 5:6], cache=cache))
    assert decoder_flops(model.config, 1, before=5) == counter.get_total_flops()


# Files ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_buffers_and_tied_heads_that_older_files_hold_are_passed_over(tmp_path: Path) -> None:
    flamingo_cases.reference(tie_word_embeddings=True).save_pretrained(tmp_path)
    expected = load_model(tmp_path).state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    added = "model.embed_tokens.additional_embedding.weight"
    tensors |= {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "model.gated_cross_attn_layers.1.cross_attn.rotary_emb.inv_freq": torch.ones(6),
        "model.vision_model.embeddings.position_ids": torch.arange(17)[None],
        "lm_head.weight": tensors[embedding].clone(),
        "lm_head.additional_fc.weight": tensors[added].clone(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    state = load_model(tmp_path).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_the_image_token_is_the_second_that_was_added_unless_the_file_says_so(
    tmp_path: Path,
) -> None:
    flamingo_cases.reference().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    entries = json.loads(path.read_text())
    assert "image_token_id" not in entries
    assert load_model(tmp_path).image_token_id == 101
    path.write_text(json.dumps({**entries, "image_token_id": 102}))
    assert load_model(tmp_path).image_token_id == 102


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"cross_layer_interval": 3}, "cross_layer_interval is 3"),
        ({"num_key_value_heads": 2}, "as many heads for keys"),
        ({"head_dim": 8}, "as many heads for keys"),
        ({"alpha_type": "matrix"}, "alpha_type is 'matrix'"),
        ({"alpha_initializer": "xavier"}, "alpha_initializer is 'xavier'"),
        ({"perceiver_config": {"resampler_depth": 0}}, "resampler_depth is 0"),
    ],
)
def test_configurations_that_mean_nothing(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message):
        network(**entries)


@torch.no_grad()
def test_peft_is_given_the_outer_modules_of_those_that_learned_whole(tmp_path: Path) -> None:
    """Nested ones it refuses to load; checked with PEFT 0.21 by hand."""
    model = network()
    lora.add_lora(model, rank=2, targets=("q_proj", "v_proj"))
    for _, layer in lora.lora_layers(model):
        layer.lora_b.normal_()
    inner = [name for name, _ in model.named_modules() if name.startswith(("resampler", "cross_"))]
    saved = [name for name in inner if name not in ("cross_attention", "resampler.blocks")]
    saved += ["additional_embedding", "additional_head"]
    lora.save_peft(tmp_path, model, saved=saved)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [
        "lm_head.additional_fc",
        "model.embed_tokens.additional_embedding",
        "model.gated_cross_attn_layers.0",
        "model.gated_cross_attn_layers.1",
        "model.perceiver_resampler",
    ]
    other = randomise(Flamingo(model.config), seed=9).eval()
    other.decoder.load_state_dict(network().decoder.state_dict())
    other.image_tower.load_state_dict(model.image_tower.state_dict())
    lora.load_peft(tmp_path, other)
    features = torch.cat([model.encode_image(picture(seed)) for seed in (1, 2)])
    theirs = torch.cat([other.encode_image(picture(seed)) for seed in (1, 2)])
    assert torch.equal(other.logits(other(PROMPT, theirs)), model.logits(model(PROMPT, features)))


# Requests ---------------------------------------------------------------------------------------


def features_of(model: Flamingo, count: int) -> Tensor:
    return torch.zeros(count * model.config.image_latents, model.config.vision_config.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_image_token_needs_its_picture(count: int) -> None:
    model = network()
    with pytest.raises(InvalidRequest, match="2 image tokens"):
        model(PROMPT, features_of(model, count) if count else None)


@torch.no_grad()
def test_a_single_image_token_at_the_beginning_needs_its_picture_too() -> None:
    model = network()
    with pytest.raises(InvalidRequest, match="1 image tokens"):
        model(torch.tensor([[IMAGE]]), cache=model.new_cache())


@torch.no_grad()
def test_after_a_documents_end_its_picture_is_not_seen() -> None:
    model = network()
    first, second = (model.encode_image(picture(seed)) for seed in (1, 2))
    ids = torch.tensor([[1, IMAGE, 5, EOS, 6, 7]])
    seen: list[Tensor] = []
    hook = model.cross_attention[0].register_forward_hook(lambda *call: seen.append(call[2]))
    model(ids, first)
    model(ids, second)
    hook.remove()
    # Before the first layer nothing else has mixed the tokens.
    difference = (seen[0] - seen[1]).abs().amax(dim=-1)[0]
    assert (difference[1:4] > 1e-3).all()
    assert (difference[[0, 4, 5]] == 0).all()
