"""LLaVA, LLaVA-NeXT, Idefics3, SmolVLM: names, costs, refusals. Outputs: see test_parity.py."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import parity_pictures
import parity_processors
import pytest
import torch
import transformers
from parity import randomise
from parity_pictures import IMAGE, SIDE, Prompt
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.architectures import ARCHITECTURES
from chiasm.models.checkpoint import load_model, save_checkpoint
from chiasm.models.configuration import read_config
from chiasm.models.generator import load_generator
from chiasm.models.projectors import LinearProjector, PixelShuffleProjector
from chiasm.models.vision_language import ImageInputs, placed

LLAVA = "LLaVA, CLIP and Llama"
NEXT = "LLaVA-NeXT, CLIP and Llama"
NAMES = [LLAVA, "LLaVA, SigLIP and Qwen2, tied", NEXT, "Idefics3", "SmolVLM"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as transformers writes them."""
    found = {}
    for name in NAMES:
        found[name] = tmp_path_factory.mktemp("checkpoint")
        parity_pictures.cases()[name]().reference.save_pretrained(found[name])
    return found


def picture(tiles: int, size: tuple[int, int] = (64, 60)) -> ImageInputs:
    generator = torch.Generator().manual_seed(tiles)
    return ImageInputs(torch.randn(tiles, 3, SIDE, SIDE, generator=generator), size)


def tiles_of(name: str) -> int:
    return 5 if name == NEXT or name in {"Idefics3", "SmolVLM"} else 1


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_published_names_are_written_and_read(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    ours = load_model(folders[name])
    save_checkpoint(tmp_path, ours)
    names = set(load_file(tmp_path / "model.safetensors"))
    if "LLaVA" in name:
        # What inference servers accept: every tensor below one of these.
        known = r"language_model\.(model|lm_head)\.|vision_tower\.vision_model\.|multi_modal_pro"
        assert all(re.match(rf"{known}|image_newline$", each) for each in names)
        assert "language_model.model.embed_tokens.weight" in names
        assert "vision_tower.vision_model.post_layernorm.weight" in names
    else:
        known = r"model\.(text_model|vision_model|connector)\.|lm_head\.weight$"
        assert all(re.match(known, each) for each in names)
    again = load_model(tmp_path)
    assert type(again) is type(ours)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_names_as_transformers_has_them_in_memory(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    reference = parity_pictures.cases()[name]().reference
    tensors = {key: tensor.contiguous() for key, tensor in reference.state_dict().items()}
    assert "model.language_model.embed_tokens.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders[name] / "config.json").read_text())
    expected = load_model(folders[name]).state_dict()
    for key, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_the_image_token_under_its_newer_name(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders[LLAVA], tmp_path, image_token_index=None, image_token_id=77)
    assert load_model(folder).image_token_id == 77


@pytest.mark.parametrize("where", ["both", "text_config"])
def test_a_tied_head_may_be_left_out(where: str, folders: dict[str, Path], tmp_path: Path) -> None:
    text = json.loads((folders[NEXT] / "config.json").read_text())["text_config"]
    entries: dict[str, Any] = {"text_config": {**text, "tie_word_embeddings": True}}
    if where == "both":
        entries["tie_word_embeddings"] = True
    folder = changed(folders[NEXT], tmp_path, **entries)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    model: Any = load_model(folder)
    hidden = torch.randn(1, 2, 40)
    expected = hidden @ tensors["language_model.model.embed_tokens.weight"].T
    assert torch.allclose(model.logits(hidden), expected, atol=1e-5)


def test_a_missing_head_that_is_not_tied_is_an_error(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(folders[NEXT], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match=r"missing: language_model\.lm_head\.weight"):
        load_model(folder)


# Configurations as they stand on the hub: what they leave unsaid is what transformers means.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava": {
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "vocab_size": 32064,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "llava_next": {"image_token_index": 32000, "text_config": {"model_type": "llama"}},
    "idefics3": {
        "image_token_id": 128257,
        "scale_factor": 2,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
            "vocab_size": 128259,
        },
        "vision_config": {
            "model_type": "idefics3",
            "hidden_size": 1152,
            "image_size": 364,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "smolvlm": {
        "image_token_id": 49190,
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000,
            "vocab_size": 49280,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": 768,
            "image_size": 512,
            "num_attention_heads": 12,
            "patch_size": 16,
            "size": {"longest_edge": 2048},
        },
    },
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_what_a_published_configuration_leaves_unsaid(model_type: str) -> None:
    entries = PUBLISHED[model_type]
    theirs = transformers.CONFIG_MAPPING[model_type].from_dict(entries)
    ours = read_config(ARCHITECTURES[model_type].config, entries)
    compared = 0
    for mine, reference in (
        (ours, theirs),
        (ours.text_config, theirs.text_config),
        (ours.vision_config, theirs.vision_config),
    ):
        for field in fields(mine):
            value = getattr(mine, field.name)
            if is_dataclass(value) or field.name in {"rope_theta", "rope_parameters"}:
                continue
            expected = getattr(reference, field.name)
            pairs = isinstance(value, tuple)
            assert [list(each) for each in value] == expected if pairs else value == expected, field
            compared += 1
    assert compared > 25
    assert ours.text_config.rope_theta == theirs.text_config.rope_parameters["rope_theta"]


# Costs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", parity_pictures.cases())
@torch.no_grad()
def test_vision_flops_are_what_torch_counts(name: str, tmp_path: Path) -> None:
    parity_pictures.cases()[name]().reference.save_pretrained(tmp_path)
    model: Any = load_model(tmp_path)
    inputs = picture(5 if "LLaVA," not in name else 1)
    # The plain kernel: torch does not count the operations of the fused one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_image(inputs)
    assert model.vision_flops(inputs) == counter.get_total_flops() > 100_000


@torch.no_grad()
def test_a_tower_stops_at_the_layer_that_is_read(folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[LLAVA])  # reads the second last of three
    model.image_tower.blocks[2].forward = None
    assert model.encode_image(picture(1)).shape == (16, 40)


# Projectors -------------------------------------------------------------------------------------


def test_a_linear_projector() -> None:
    projector = LinearProjector(3, 2)
    tokens = torch.randn(2, 5, 3)
    expected = tokens @ projector.linear.weight.T + projector.linear.bias
    assert torch.allclose(projector(tokens), expected)
    assert projector.flops(10) == 2 * 10 * 3 * 2


def test_pixel_shuffle_joins_squares_of_neighbours() -> None:
    projector = PixelShuffleProjector(1, 4, factor=2)
    projector.linear.weight.data = torch.eye(4)
    grid = torch.arange(16.0).reshape(1, 16, 1)  # rows 0–3, 4–7, 8–11, 12–15
    assert projector(grid)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    with pytest.raises(UnsupportedCheckpoint, match="15 tokens"):
        projector(torch.zeros(1, 15, 1))


# Features and tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_and_image_tokens_must_be_as_many(name: str, folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[name])
    features = model.encode_image(picture(tiles_of(name)))
    ids = torch.tensor([[3, *[IMAGE] * len(features), 4]])
    assert model(ids, features).shape == (1, len(features) + 2, 40)
    with pytest.raises(InvalidRequest, match=f"has {len(features)} image tokens.* 0 features"):
        model(ids)
    with pytest.raises(InvalidRequest, match=f"give {len(features)} features"):
        model(ids[:, 1:-2], features)
    with pytest.raises(InvalidRequest, match="has 0 image tokens"):
        model(torch.tensor([[3, 4]]), features)


@torch.no_grad()
def test_features_go_row_by_row_through_a_batch(folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[LLAVA])
    first, second = (model.encode_image(picture(1)), model.encode_image(picture(1)) * 2)
    rows = [[3, *[IMAGE] * 16, 4], [*[IMAGE] * 16, 5, 6]]
    together = model(torch.tensor(rows), torch.cat((first, second)))
    for row, features, found in zip(rows, (first, second), together, strict=True):
        assert torch.allclose(found, model(torch.tensor([row]), features)[0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_in_half_precision(name: str, folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[name])
    inputs = picture(tiles_of(name))
    exact = model.encode_image(inputs)
    ids = torch.tensor([[3, *[IMAGE] * len(exact), 4]])
    model.to(torch.bfloat16)
    features = model.encode_image(inputs)
    assert features.dtype == torch.bfloat16
    assert float((features - exact).norm() / exact.norm()) < 0.05
    hidden = model(ids, features.float(), cache=model.new_cache())
    assert model.logits(hidden).dtype == torch.bfloat16


@torch.no_grad()
def test_a_prompt_read_in_pieces(folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[LLAVA])
    features = model.encode_image(picture(1))
    ids = torch.tensor([[3, 9, *[IMAGE] * 16, 4, 7]])
    whole = parity_pictures.logits(model, Prompt(ids, [picture(1)], {}))
    cache = model.new_cache(capacity=2)
    parts = [
        model(ids[:, :7], features[:5], cache=cache),
        model(ids[:, 7:19], features[5:], cache=cache),
        model(ids[:, 19:], cache=cache),
    ]
    assert torch.allclose(model.logits(torch.cat(parts, dim=1)), whole, atol=1e-5)


@torch.no_grad()
def test_an_image_token_that_was_generated_is_text(folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[LLAVA])
    cache = model.new_cache()
    model(torch.tensor([[3, 9]]), cache=cache)
    model(torch.tensor([[IMAGE]]), cache=cache)
    assert cache.length == 3


def test_gradients_reach_projector_and_embeddings(folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[LLAVA])
    ids = torch.tensor([[3, *[IMAGE] * 16, 4]])
    model(ids, model.encode_image(picture(1))).square().sum().backward()
    assert float(model.projector.linear_1.weight.grad.abs().sum()) > 0
    touched = model.decoder.embedding.weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert touched.tolist() == [3, 4]


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="do not fit token embeddings of width 4"):
        placed(torch.zeros(1, 2, 4), torch.tensor([[1, 9]]), 9, torch.zeros(1, 5))


@torch.no_grad()
def test_tiles_that_are_not_the_pictures_are_refused(folders: dict[str, Path]) -> None:
    following: Any = load_model(folders[NEXT])
    with pytest.raises(InvalidRequest, match="64×60 pixels is read as 5 tiles, not 4"):
        following.encode_image(picture(4))
    idefics3: Any = load_model(folders["Idefics3"])
    with pytest.raises(InvalidRequest, match="tower reads 32×32"):
        idefics3.encode_image(ImageInputs(torch.zeros(1, 3, 64, 32), (64, 64)))


@torch.no_grad()
def test_a_picture_too_thin_for_its_tiles_is_read_whole(folders: dict[str, Path]) -> None:
    model: Any = load_model(folders[NEXT])
    thin = ImageInputs(picture(3).pixels, (1000, 1))  # a row of two tiles and the whole
    assert model.encode_image(thin).shape == (16, 40)


# The whole way, from a picture and a question ---------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}\n"
    "{% endfor %}assistant: "
)


@pytest.mark.parametrize("name", ["LLaVA", "LLaVA-NeXT", "Idefics3"])
@torch.no_grad()
def test_pictures_and_a_question_as_transformers_asks_them(name: str, tmp_path: Path) -> None:
    if name == "Idefics3":
        kind, made = "Idefics3", parity_processors.idefics3(3 * SIDE, SIDE, seq_len=4)
        entries: dict[str, Any] = {"vision_config": parity_pictures.TOWER}
    elif name == "LLaVA-NeXT":
        kind, made = "LlavaNext", parity_processors.llava_next(SIDE, 8)
        entries = {"image_grid_pinpoints": parity_processors.pinpoints(SIDE)}
    else:
        image_processor = CLIPImageProcessorPil(**parity_processors.clip(SIDE))
        kind, made = "Llava", parity_processors.llava(image_processor, patch_size=8)
        entries = {}
    processor = made.processor
    tokens = len(processor.tokenizer)
    text = {**parity_pictures.LLAMA, "vocab_size": tokens, "max_position_embeddings": 2048}
    entries = {"vision_config": parity_pictures.CLIP, **entries, "text_config": text}
    entries["image_token_id"] = parity_processors.IMAGE
    config = getattr(transformers, f"{kind}Config")(**entries)
    reference = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    reference = randomise(reference).eval()
    processor.tokenizer.chat_template = TEMPLATE
    for part in (reference, processor, processor.tokenizer):
        part.save_pretrained(tmp_path)

    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which is larger?"}]
    messages = [{"role": "user", "content": parts}]
    pictures = [parity_processors.picture(size) for size in ((90, 61), (20, 37))]
    prompt = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    asked = processor(
        images=[parity_processors.pil(each) for each in pictures], text=prompt, return_tensors="pt"
    )
    expected = reference(**asked).logits

    found = load_generator(tmp_path, cache_dir=tmp_path)
    model: Any = found.model
    assert found.images is not None
    first, *rest = found.tokenizer.render(messages).split(found.images.mark)
    for each, part in zip(pictures, rest, strict=True):
        first += found.images.placeholder(*each.size) + part
    ids = torch.tensor([found.tokenizer.encode(first)])
    assert ids.tolist() == asked["input_ids"].tolist()
    features = [model.encode_image(found.images.prepare(each)) for each in pictures]
    logits = model.logits(model(ids, torch.cat(features)))
    assert float((logits - expected).abs().max()) <= 1e-4


# Configurations that cannot be followed ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (LLAVA, {"vision_config": {"model_type": "pixtral"}}, r"vision_config\.model_type is 'pix"),
        (LLAVA, {"text_config": {"model_type": "gemma"}}, "'gemma', which is not known"),
        (LLAVA, {"vision_feature_layer": -5}, "the tower has 3 blocks"),
        (LLAVA, {"vision_feature_layer": []}, "vision_feature_layer is"),
        (LLAVA, {"vision_feature_layer": "last"}, "vision_feature_layer must be"),
        (LLAVA, {"vision_feature_select_strategy": "mean"}, "strategy is 'mean'"),
        (LLAVA, {"image_token_index": 120}, "is 120, beyond the language model's 120 tokens"),
        (LLAVA, {"projector_hidden_act": "sine"}, "'sine', which is not known"),
        (NEXT, {"vision_feature_select_strategy": "full"}, "one token a patch"),
        (NEXT, {"image_grid_pinpoints": [[32, 50]]}, "multiples of the tower's image_size, 32"),
        (NEXT, {"image_grid_pinpoints": [[32]]}, "image_grid_pinpoints must be"),
        ("Idefics3", {"scale_factor": 3}, "does not divide the 4 patches"),
        ("Idefics3", {"scale_factor": 0}, "scale_factor is 0"),
        ("Idefics3", {"vision_config": {"model_type": "vit"}}, "model_type is 'vit'"),
    ],
)
def test_a_configuration_that_cannot_be_followed(
    name: str, change: dict[str, Any], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(folders[name], tmp_path, **change)
    with pytest.raises(UnsupportedCheckpoint, match=said) as caught:
        load_model(folder)
    assert "config.json" in str(caught.value)


def changed(folder: Path, copy: Path, **entries: Any) -> Path:
    """A copy of a checkpoint with other entries in its `config.json`; None takes one away."""
    config = {**json.loads((folder / "config.json").read_text()), **entries}
    kept = {key: value for key, value in config.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(kept))
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return copy
