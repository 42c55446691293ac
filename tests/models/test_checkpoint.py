"""Checkpoints: old spellings, shards, whole dual encoders, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from chiasm.errors import InvalidRequest, UnknownModel, UnsupportedCheckpoint
from chiasm.media.image import Image
from chiasm.models.checkpoint import (
    load_dual_encoder,
    load_model,
    save_checkpoint,
)
from chiasm.models.patches import PatchBatch, patchify

Tensors = dict[str, Tensor]


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return saved("CLIP, quick_gelu", tmp_path / "clip")


def saved(name: str, folder: Path) -> Path:
    parity.cases()[name]().reference.save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def reconfigure(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def same(folder: Path, reference: torch.nn.Module) -> bool:
    state, expected = load_model(folder).state_dict(), reference.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in state
    )


# Spellings --------------------------------------------------------------------------------------


def test_position_ids_of_old_files_are_passed_over(clip_folder: Path) -> None:
    reference = load_model(clip_folder)
    rewrite(
        clip_folder,
        lambda tensors: (
            tensors
            | {
                "text_model.embeddings.position_ids": torch.arange(24)[None],
                "vision_model.embeddings.position_ids": torch.arange(17)[None],
            }
        ),
    )
    assert same(clip_folder, reference)


def test_bert_of_tensorflow_ancestry(tmp_path: Path) -> None:
    folder = saved("BERT", tmp_path)
    reference = load_model(folder)

    def old(name: str) -> str:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return "bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(
        folder,
        lambda tensors: (
            {old(name): tensor for name, tensor in tensors.items()}
            | {
                "bert.embeddings.position_ids": torch.arange(24)[None],
                "cls.predictions.bias": torch.zeros(120),
                "cls.predictions.transform.LayerNorm.gamma": torch.ones(40),
            }
        ),
    )
    assert same(folder, reference)


def test_task_models_of_transformers_open_as_their_towers(tmp_path: Path) -> None:
    vit = parity.randomise(
        transformers.ViTForImageClassification(transformers.ViTConfig(**parity.VISION))
    ).eval()
    vit.save_pretrained(tmp_path / "vit")
    pixels = parity.pixels(32, 32)
    with torch.no_grad():
        ours = load_model(tmp_path / "vit").hidden_states(pixels)
        assert (ours - vit.vit(pixels).last_hidden_state).abs().max() <= 1e-4

    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    convnext = parity.randomise(transformers.ConvNextForImageClassification(config)).eval()
    convnext.save_pretrained(tmp_path / "convnext")
    with torch.no_grad():
        ours = load_model(tmp_path / "convnext")(pixels)
        assert (ours - convnext.convnext(pixels).pooler_output).abs().max() <= 1e-4


def test_the_names_transformers_uses_in_memory_are_read_too(tmp_path: Path) -> None:
    reference = parity.cases()["ViT"]().reference
    reference.save_pretrained(tmp_path)
    expected = load_model(tmp_path)
    assert "layers.0.attention.q_proj.weight" in reference.state_dict()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    assert same(tmp_path, expected)


def test_towers_entries_under_their_older_names(clip_folder: Path) -> None:
    reference = load_model(clip_folder)
    config = json.loads((clip_folder / "config.json").read_text())
    reconfigure(
        clip_folder,
        text_config=None,
        vision_config={"hidden_size": 1},
        text_config_dict=config["text_config"],
        vision_config_dict=config["vision_config"],
    )
    assert same(clip_folder, reference)


def test_half_precision_files_become_float32(clip_folder: Path) -> None:
    rewrite(clip_folder, lambda tensors: {k: v.to(torch.bfloat16) for k, v in tensors.items()})
    assert {tensor.dtype for tensor in load_model(clip_folder).state_dict().values()} == {
        torch.float32
    }


def test_sharded_weights(tmp_path: Path) -> None:
    model = parity.cases()["BERT"]().reference
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert same(tmp_path / "many", load_model(tmp_path / "one"))

    lost = sorted((tmp_path / "many").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UnsupportedCheckpoint, match=lost.name):
        load_model(tmp_path / "many")


# Whole dual encoders ----------------------------------------------------------------------------


@pytest.fixture
def dual_encoder(clip_folder: Path) -> Path:
    """A CLIP folder with tokenizer and preprocessor, as transformers writes them."""
    characters = [chr(c) for c in range(97, 123)]
    tokens = [*characters, *(c + "</w>" for c in characters), "ca", "cat</w>"]
    tokens += [f"<|{n}|>" for n in range(118 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == 120
    transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[("c", "a"), ("ca", "t</w>")],
    ).save_pretrained(clip_folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(clip_folder)
    return clip_folder


def test_from_pictures_and_words_to_the_vectors_of_transformers(
    dual_encoder: Path, tmp_path: Path
) -> None:
    ours = load_dual_encoder(dual_encoder, cache_dir=tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(dual_encoder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(dual_encoder)
    processor = CLIPImageProcessorPil.from_pretrained(dual_encoder)

    texts = ["a cat", "", "The cat sat on a mat with another cat of its kind " * 3]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    random = np.random.default_rng(1)
    images = [
        Image(random.integers(0, 256, (height, width, 3), np.uint8), (width, height))
        for width, height in ((40, 30), (31, 90))
    ]
    pixels = torch.cat(
        [processor(np.array(i.pixels), return_tensors="pt")["pixel_values"] for i in images]
    )
    batch = ours.tokenizer(texts)
    with torch.no_grad():
        expected = theirs.get_text_features(**tokens).pooler_output
        assert (ours.model.encode_text(batch.ids, batch.mask) - expected).abs().max() <= 1e-4
        expected = theirs.get_image_features(pixels).pooler_output
        actual = ours.model.encode_image(ours.preprocessor(images))
        assert (actual - expected).abs().max() <= 1e-4
        assert ours.model.dimension == actual.shape[1] == 24
        assert float(ours.model.logit_scale) == pytest.approx(float(theirs.logit_scale))


def test_saved_and_loaded_again_it_is_the_same(dual_encoder: Path, tmp_path: Path) -> None:
    first = load_dual_encoder(dual_encoder, cache_dir=tmp_path)
    save_checkpoint(tmp_path / "a", first.model, first.preprocessor, first.tokenizer)
    second = load_dual_encoder(tmp_path / "a", cache_dir=tmp_path)
    assert second.preprocessor == first.preprocessor
    assert second.model.config == first.model.config
    ids = first.tokenizer(["a cat"]).ids
    assert torch.equal(first.model.encode_text(ids), second.model.encode_text(ids))
    save_checkpoint(tmp_path / "b", second.model, second.preprocessor, second.tokenizer)
    assert load_dual_encoder(tmp_path / "b", cache_dir=tmp_path).digest == second.digest
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "a")("a cat")["input_ids"] == (
        ids[0].tolist()
    )
    assert not list((tmp_path / "a").glob(".*")), "nothing half-written stays behind"


def test_the_digest_follows_the_weights_and_the_configuration(
    dual_encoder: Path, tmp_path: Path
) -> None:
    def digest() -> str:
        return load_dual_encoder(str(dual_encoder), cache_dir=tmp_path).digest

    first = digest()
    assert first == digest()
    assert len(first) == 64
    rewrite(dual_encoder, lambda tensors: tensors | {"logit_scale": torch.tensor(1.5)})
    second = digest()
    config = json.loads((dual_encoder / "preprocessor_config.json").read_text())
    (dual_encoder / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 2}))
    assert len({first, second, digest()}) == 3


def test_the_newer_file_of_a_whole_processor_is_read(dual_encoder: Path, tmp_path: Path) -> None:
    reference = load_dual_encoder(dual_encoder, cache_dir=tmp_path).preprocessor
    old = dual_encoder / "preprocessor_config.json"
    nested = {"image_processor": json.loads(old.read_text()), "processor_class": "CLIPProcessor"}
    (dual_encoder / "processor_config.json").write_text(json.dumps(nested))
    old.unlink()
    assert load_dual_encoder(dual_encoder, cache_dir=tmp_path).preprocessor == reference


def test_padding_and_company_change_no_text(dual_encoder: Path, tmp_path: Path) -> None:
    ours = load_dual_encoder(dual_encoder, cache_dir=tmp_path)
    texts = ["a cat", "the cat sat on the mat beside cats", "", "mat"]
    batch = ours.tokenizer(texts)
    with torch.no_grad():
        together = ours.model.encode_text(batch.ids, batch.mask)
        for row, text in enumerate(texts):
            alone = ours.tokenizer([text])
            assert (
                ours.model.encode_text(alone.ids, alone.mask) - together[row]
            ).abs().max() < 1e-5


def test_naflex_takes_whole_pictures_too(tmp_path: Path) -> None:
    model = load_model(saved("SigLIP 2, NaFlex", tmp_path))
    pixels = parity.pixels(16, 24)
    patches = torch.stack([patchify(image.permute(1, 2, 0), 4) for image in pixels])
    batch = PatchBatch(patches, torch.ones(3, 24, dtype=torch.bool), torch.tensor([[4, 6]] * 3))
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), model.encode_image(batch))


# Refusals ---------------------------------------------------------------------------------------


def test_misfits_are_named(clip_folder: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        del tensors["text_model.encoder.layers.1.self_attn.k_proj.weight"]
        tensors["vision_model.surprise"] = torch.zeros(3)
        tensors["logit_scale"] = torch.zeros(4)
        tensors["vision_model.encoder.layers.0.self_attn.q_proj.bias"] = torch.zeros(47)
        return tensors

    rewrite(clip_folder, spoil)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        load_model(clip_folder)
    message = caught.value.message
    assert str(clip_folder) in message
    assert "1 missing: text_model.encoder.layers.1.self_attn.k_proj.weight" in message
    assert "1 not expected: vision_model.surprise" in message
    assert "logit_scale is [4] and should be []" in message
    assert "self_attn.q_proj.bias is [47] and should be [48]" in message


def test_a_long_list_of_misfits_is_cut(clip_folder: Path) -> None:
    reconfigure(clip_folder, model_type="bert")
    with pytest.raises(UnsupportedCheckpoint, match=r"and \d+ more"):
        load_model(clip_folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_half_written_file_is_named(clip_folder: Path, share: float) -> None:
    path = clip_folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnsupportedCheckpoint, match=r"model\.safetensors is not a complete"):
        load_model(clip_folder)


def test_a_pickle_is_refused_unopened(clip_folder: Path) -> None:
    (clip_folder / "model.safetensors").unlink()
    (clip_folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UnsupportedCheckpoint, match=r"pickle \(pytorch_model\.bin\)"):
        load_model(clip_folder)


def test_quantised_tensors_are_refused(clip_folder: Path) -> None:
    rewrite(clip_folder, lambda t: t | {"visual_projection.weight": torch.zeros(24, 48).char()})
    with pytest.raises(UnsupportedCheckpoint, match=r"visual_projection\.weight holds int8"):
        load_model(clip_folder)


def test_one_tensor_under_two_spellings_is_refused(tmp_path: Path) -> None:
    folder = saved("BERT", tmp_path)
    rewrite(folder, lambda t: t | {"bert.pooler.dense.bias": torch.zeros(40)})
    with pytest.raises(UnsupportedCheckpoint, match=r"twice: pooler\.dense\.bias"):
        load_model(folder)


def test_an_index_may_not_point_outside_its_folder(clip_folder: Path) -> None:
    (clip_folder / "model.safetensors").rename(clip_folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"logit_scale": "../elsewhere.safetensors"}}
    (clip_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedCheckpoint, match="weight_map"):
        load_model(clip_folder)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": ...}, "model_type None"),
        ({"text_config": []}, "text_config must be an object"),
        ({"projection_dim": "wide"}, "projection_dim must be int, not 'wide'"),
        ({"vision_config": {"num_attention_heads": 5}}, "num_attention_heads is 5"),
        ({"vision_config": {"num_hidden_layers": 0}}, "num_hidden_layers is 0"),
        ({"vision_config": {"hidden_act": "mish"}}, "hidden_act is 'mish'"),
        ({"vision_config": {"patch_size": 0}}, "patch_size is 0"),
        ({"vision_config": {"image_size": [32]}}, r"vision_config\.image_size must be int"),
        ({"vision_config": {"patch_size": [8, 8]}}, r"vision_config\.patch_size must be int"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(
    clip_folder: Path, entries: dict[str, Any], words: str
) -> None:
    reconfigure(clip_folder, **entries)
    with pytest.raises(UnsupportedCheckpoint, match=words) as caught:
        load_model(clip_folder)
    assert str(clip_folder / "config.json") in caught.value.message


def test_missing_and_broken_files_are_named(clip_folder: Path) -> None:
    (clip_folder / "config.json").write_text("{")
    with pytest.raises(UnsupportedCheckpoint, match=r"config\.json is not a JSON object"):
        load_model(clip_folder)
    (clip_folder / "config.json").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"holds no config\.json"):
        load_model(clip_folder)


def test_a_single_tower_is_no_dual_encoder(tmp_path: Path) -> None:
    saved("BERT", tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match="not a dual encoder"):
        load_dual_encoder(tmp_path, cache_dir=tmp_path)


def test_siglip_without_its_head_is_no_dual_encoder(tmp_path: Path) -> None:
    saved("SigLIP", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    reconfigure(tmp_path, vision_config=config["vision_config"] | {"vision_use_head": False})
    with pytest.raises(UnsupportedCheckpoint, match="vision_use_head"):
        load_model(tmp_path)


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no folder"):
        load_dual_encoder(tmp_path / "absent", cache_dir=tmp_path)
    with pytest.raises(UnknownModel):
        load_dual_encoder("no-such-model", cache_dir=tmp_path)


def test_inputs_a_network_cannot_take_are_refused(clip_folder: Path) -> None:
    model = load_model(clip_folder)
    with pytest.raises(InvalidRequest, match="25 tokens"):
        model.encode_text(torch.tensor([[3] * 24 + [119]]))
    with pytest.raises(InvalidRequest, match="3 channels"):
        model.encode_image(torch.zeros(1, 1, 32, 32))
    with pytest.raises(InvalidRequest, match="8×8"):
        model.encode_image(torch.zeros(1, 3, 7, 32))
