"""`chiasm export`: what is written opens in transformers and computes the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from chiasm.cli import app
from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.generation.engine.prompt import build_prompt
from chiasm.generation.messages import Message
from chiasm.media import Image
from chiasm.models import lora
from chiasm.models.checkpoint import load_model
from chiasm.models.export import export_hf
from chiasm.models.generator import GeneratorCheckpoint, load_generator
from chiasm.settings import Settings
from tests.generation.tiny_models import picture, save, tiny_language_model, tiny_llava

RED, BLUE = picture((200, 40, 30)), picture((20, 40, 220), size=(61, 33))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    save(tiny_llava(folder / "a"), folder / "model")
    return folder / "model"


def exported(source: str | Path, target: Path, **options: Any) -> Path:
    return export_hf(source, target, cache_dir=target.parent / "cache", **options).folder


def opened(folder: Path) -> GeneratorCheckpoint:
    return load_generator(folder, cache_dir=folder.parent / "cache", offline=True)


def ours(folder: Path, message: Message) -> tuple[list[int], torch.Tensor]:
    """The prompt's ids and the logits after each, of the product's own network."""
    checkpoint = opened(folder)
    prompt = build_prompt([message], checkpoint)
    model: Any = checkpoint.model
    with torch.inference_mode():
        features = None
        if prompt.pictures:
            reader: Any = checkpoint.images
            each = [model.encode_image(reader.prepare(p.image)) for p in prompt.pictures]
            features = torch.cat(each)
        ids = torch.tensor([prompt.ids])
        hidden = model(ids, features) if features is not None else model(model.embed(ids))
        return list(prompt.ids), model.logits(hidden)[0]


def theirs(folder: Path, images: list[Image], question: str) -> tuple[list[int], torch.Tensor]:
    """The same by transformers alone, from the folder's files alone."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in images]
    content.append({"type": "text", "text": question})
    processor: Any = transformers.AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    pictures = [PIL.Image.fromarray(np.asarray(image.pixels)) for image in images]
    inputs = processor(images=pictures, text=text, return_tensors="pt", add_special_tokens=False)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    with torch.inference_mode():
        return inputs["input_ids"][0].tolist(), model(**inputs).logits[0]


@pytest.mark.parametrize("images", [[RED], [RED, BLUE]], ids=["one", "two"])
def test_transformers_sees_the_same(llava: Path, tmp_path: Path, images: list[Image]) -> None:
    folder = exported(llava, tmp_path / "out")
    message = Message.user(*images, "What is this?")
    ids, logits = ours(llava, message)
    their_ids, their_logits = theirs(folder, images, "What is this?")
    assert their_ids == ids
    assert torch.allclose(their_logits, logits, atol=2e-4)


def test_a_language_model(tmp_path: Path) -> None:
    save(tiny_language_model(tmp_path / "a"), tmp_path / "model")
    folder = exported(tmp_path / "model", tmp_path / "out")
    ids, logits = ours(tmp_path / "model", Message.user("How many birds?"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "How many birds?"}]
    rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert torch.allclose(model(torch.tensor([ids])).logits[0], logits, atol=1e-4)
    ending = transformers.GenerationConfig.from_pretrained(folder)
    assert ending.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_towers_are_called_as_inference_servers_have_it(llava: Path, tmp_path: Path) -> None:
    """Also of a checkpoint that transformers 5 has written, where a part of the name is missing."""
    again = tmp_path / "again"
    config = transformers.LlavaConfig.from_pretrained(llava)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(again)
    written = set(load_file(again / "model.safetensors"))
    assert not any("vision_tower.vision_model." in name for name in written)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (again / name).write_bytes((llava / name).read_bytes())
    folder = exported(again, tmp_path / "out")
    names = set(load_file(folder / "model.safetensors"))
    assert names == set(load_file(llava / "model.safetensors"))
    assert {re.sub(r"\..*", "", name) for name in names} == {
        "vision_tower", "multi_modal_projector", "language_model",
    }  # fmt: skip
    assert all(
        name.startswith("vision_tower.vision_model.") for name in names if "vision_tower" in name
    )
    question = Message.user(RED, "?")
    assert torch.equal(ours(folder, question)[1], ours(again, question)[1])


def test_everything_that_a_server_needs_is_there_for_everyone(llava: Path, tmp_path: Path) -> None:
    folder = exported(llava, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "preprocessor_config.json", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1, "a server that runs as somebody else could not read all"


def test_adapters_are_merged(llava: Path, tmp_path: Path) -> None:
    model = load_model(llava)
    lora.add_lora(model, rank=4, alpha=8)
    torch.manual_seed(3)
    for _, layer in lora.lora_layers(model):
        torch.nn.init.normal_(layer.lora_b, std=0.2)
    lora.save_peft(tmp_path / "adapters", model, base=str(llava))
    written = export_hf(tmp_path / "adapters", tmp_path / "out", cache_dir=tmp_path / "cache")
    assert written.merged
    before = ours(llava, Message.user(RED, "What?"))[1]
    merged: Any = lora.merge_lora(model.eval())
    checkpoint = opened(written.folder)
    ids = torch.tensor([build_prompt([Message.user("What?")], checkpoint).ids])
    with torch.inference_mode():
        wanted = merged.logits(merged(ids))[0]
        model_out: Any = checkpoint.model
        assert torch.allclose(model_out.logits(model_out(ids))[0], wanted, atol=1e-4)
    assert not torch.allclose(ours(written.folder, Message.user(RED, "What?"))[1], before, atol=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_types(llava: Path, tmp_path: Path, dtype: str) -> None:
    folder = exported(llava, tmp_path / "out", dtype=dtype)
    wanted = {getattr(torch, dtype)}
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == wanted
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype
    kept = exported(folder, tmp_path / "again")
    assert {tensor.dtype for tensor in load_file(kept / "model.safetensors").values()} == wanted


def test_what_the_configuration_says_beyond_is_kept(llava: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in llava.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    entries = json.loads((source / "config.json").read_text())
    entries |= {"_name_or_path": "/home/someone/secret", "initializer_range": 0.5}
    entries["text_config"] |= {"attention_dropout": 0.25, "_name_or_path": "/home/someone"}
    (source / "config.json").write_text(json.dumps(entries))
    written = (exported(source, tmp_path / "out") / "config.json").read_text()
    assert json.loads(written)["initializer_range"] == 0.5
    assert json.loads(written)["text_config"]["attention_dropout"] == 0.25
    assert "/home/someone" not in written


@pytest.mark.parametrize("name", ["default-vlm", "default"])
def test_networks_of_our_own_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="no equal in the Hugging Face layout"):
        exported(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fine_tuned_default_model_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "small-vlm"}')
    with pytest.raises(UnsupportedCheckpoint, match="no equal"):
        exported(tmp_path / "mine", tmp_path / "out")


def test_nothing_is_written_over(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(InvalidRequest, match="not empty"):
        exported(llava, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_adapters_that_name_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UnsupportedCheckpoint, match="which checkpoint the adapters belong to"):
        exported(tmp_path / "adapters", tmp_path / "out")


def test_the_command(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    arguments = ["export", str(llava), "--to", "hf", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    said = json.loads(result.stdout)
    assert said["architecture"] == "LlavaForConditionalGeneration"
    assert said["folder"] == str(tmp_path / "out")
    assert said["parameters"] == sum(
        tensor.numel() for tensor in load_file(tmp_path / "out" / "model.safetensors").values()
    )


@pytest.mark.weights
def test_the_default_language_model_comes_out_of_its_gguf(tmp_path: Path) -> None:
    folder = export_hf(
        "smollm2-135m-instruct", tmp_path / "out", cache_dir=Settings.load().cache_dir, offline=True
    ).folder
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        following = model(**inputs).logits[0, -1].argmax()
    assert tokenizer.decode(following) == "The"  # capital of France is Paris.
