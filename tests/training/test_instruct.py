"""A vision-language model's training, from a recipe to a model that transformers opens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from tiny_vlm import recipe, write_conversations, write_parts

from chiasm.errors import ChiasmError, ConfigurationError, TrainingInterrupted, UnusableData
from chiasm.generation.engine.prompt import build_prompt
from chiasm.generation.messages import Message
from chiasm.media import open_image
from chiasm.models import lora
from chiasm.models.generator import load_generator
from chiasm.training.distributed import World
from chiasm.training.instruct import train_vlm
from chiasm.training.instruct_recipe import InstructRecipe
from chiasm.training.recipe_file import build_recipe, show_recipe
from chiasm.training.record import METRICS, read_metrics
from chiasm.training.run import Trained


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data"))


def run(folder: Path, tables: dict[str, Any], **options: Any) -> Trained:
    wanted = build_recipe(InstructRecipe, tables, "the test")
    return train_vlm(wanted, folder, world=World(), cache_dir=folder / "cache", **options)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(folder / METRICS)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: Path, after: Path) -> set[str]:
    """First parts of the published names of tensors that differ."""
    one, other = weights(before), weights(after)
    assert one.keys() == other.keys()
    return {name.partition(".")[0] for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory, data: Path, parts: dict[str, str]) -> Trained:
    """The first stage, on captions."""
    folder = tmp_path_factory.mktemp("aligned")
    return run(
        folder,
        recipe(
            data.parent / "pictures.csv",
            parts,
            tune={"stage": "align"},
            optimizer={"rate": 1e-2},
            loop={"steps": 25},
            measure={"answers": {"data": {"source": str(data)}, "limit": 10}},
        ),
    )


def test_alignment_trains_the_projector_alone(aligned: Trained, parts: dict[str, str]) -> None:
    found = losses(aligned.model.parent)
    assert sum(loss for _, loss in found[-5:]) < 0.95 * sum(loss for _, loss in found[:5])
    assert not (aligned.model.parent / "adapters").exists()
    tensors = weights(aligned.model)
    language = load_file(Path(parts["language_model"]) / "model.safetensors")
    for name, tensor in language.items():
        assert torch.equal(tensors[f"language_model.{name}"], tensor), name
    tower = load_file(Path(parts["image_tower"]) / "model.safetensors")
    for name, tensor in tower.items():
        if name.startswith("vision_model."):
            assert torch.equal(tensors[f"vision_tower.{name}"], tensor), name
    assert 0 < aligned.figures["answer_loss"] < 20


@pytest.mark.parametrize(
    ("tune", "expected"),
    [
        ({"language_model": "lora"}, {"multi_modal_projector", "language_model"}),
        ({"language_model": "full"}, {"multi_modal_projector", "language_model"}),
        ({"language_model": "lora", "projector": False}, {"language_model"}),
        (
            {"language_model": "frozen", "image_tower": True, "image_tower_rate": 1e-3},
            {"multi_modal_projector", "vision_tower"},
        ),
    ],
    ids=["lora", "full", "lora alone", "tower"],
)
def test_the_parts_that_learn_are_those_of_the_recipe(
    tmp_path: Path, aligned: Trained, data: Path, tune: dict[str, Any], expected: set[str]
) -> None:
    tables = recipe(data, {}, tune=tune, loop={"steps": 3})
    tables["model"] = {"start": str(aligned.model)}
    trained = run(tmp_path, tables)
    assert moved(aligned.model, trained.model) == expected
    assert (tmp_path / "adapters").exists() == (tune["language_model"] == "lora")


def test_rates_of_parts_are_factors_on_their_steps(
    tmp_path: Path, aligned: Trained, data: Path
) -> None:
    """Adam's first step has the length of its rate."""
    tables = recipe(data, {}, loop={"steps": 1}, optimizer={"rate": 1e-3, "warmup_steps": 0})
    tables["tune"] = {"language_model": "full", "image_tower": True}
    tables["tune"] |= {"projector_rate": 1e-4, "image_tower_rate": 1e-5}
    tables["model"] = {"start": str(aligned.model)}
    trained = run(tmp_path, tables)
    before, after = weights(aligned.model), weights(trained.model)
    longest: dict[str, float] = {}
    for name, tensor in after.items():
        part = name.partition(".")[0]
        longest[part] = max(longest.get(part, 0.0), float((tensor - before[name]).abs().max()))
    assert longest["language_model"] == pytest.approx(1e-3, rel=0.02)
    assert longest["multi_modal_projector"] == pytest.approx(1e-4, rel=0.02)
    assert longest["vision_tower"] == pytest.approx(1e-5, rel=0.02)


def test_transformers_opens_the_result_and_answers_the_same_tokens(
    tmp_path: Path, aligned: Trained, data: Path
) -> None:
    import transformers

    tables = recipe(data, {}, loop={"steps": 15}, optimizer={"rate": 1e-2})
    tables["model"] = {"start": str(aligned.model)}
    trained = run(tmp_path / "run", tables)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(trained.model).eval()
    processor = transformers.AutoProcessor.from_pretrained(trained.model)
    ours: Any = load_generator(trained.model, cache_dir=tmp_path)
    for names in (["3.png"], ["5.png", "8.png"]):
        question = "What is in this picture?"
        content = [{"type": "image"}] * len(names) + [{"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        pictures = [PIL.Image.open(data.parent / name) for name in names]
        inputs = processor(images=pictures, text=text, return_tensors="pt")
        images = [open_image(data.parent / name) for name in names]
        prompt = build_prompt([Message.user(*images, question)], ours)
        assert list(prompt.ids) == inputs["input_ids"][0].tolist()
        generated = theirs.generate(**inputs, do_sample=False, max_new_tokens=16)
        expected = generated[0, len(prompt.ids) :].tolist()
        with torch.no_grad():
            features = torch.cat(
                [ours.model.encode_image(ours.images.prepare(image)) for image in images]
            )
            # With a cache, as theirs: an image token that is generated is then text.
            cache, found = ours.model.new_cache(), []
            hidden = ours.model(torch.tensor([prompt.ids]), features, cache=cache)
            while len(found) < len(expected):
                found.append(int(ours.model.logits(hidden[:, -1]).argmax()))
                hidden = ours.model(torch.tensor([found[-1:]]), None, cache=cache)
        assert found == expected


def test_the_adapters_on_their_base_are_the_merged_model(
    tmp_path: Path, aligned: Trained, data: Path
) -> None:
    tables = recipe(data, {}, loop={"steps": 3})
    tables["model"] = {"start": str(aligned.model)}
    trained = run(tmp_path / "run", tables)
    config = json.loads((tmp_path / "run/adapters/adapter_config.json").read_text())
    base: Any = load_generator(config["base_model_name_or_path"], cache_dir=tmp_path).model
    lora.load_peft(tmp_path / "run/adapters", base)
    merged: Any = load_generator(trained.model, cache_dir=tmp_path).model
    ids = torch.randint(10, 300, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(
            base.logits(base(ids)), merged.logits(merged(ids)), atol=1e-4, rtol=1e-4
        )
    for name, tensor in base.projector.state_dict().items():
        assert torch.equal(tensor, merged.projector.state_dict()[name])
    # And they are gone on with, rather than begun anew.
    tables["model"] |= {"adapters": str(tmp_path / "run/adapters")}
    tables["optimizer"] = {"rate": 1e-9}
    again = run(tmp_path / "again", tables)
    for name, tensor in weights(again.model).items():
        torch.testing.assert_close(tensor, weights(trained.model)[name], atol=1e-5, rtol=1e-4)


def test_a_new_model_has_a_token_for_pictures_and_a_template_that_takes_them(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    """The language model's template takes texts alone, and its vocabulary has no such token."""
    folder = Path(parts["language_model"])
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in folder.iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
        "'<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    new = {**parts, "language_model": str(plain), "image_token": "<picture>"}
    trained = run(tmp_path / "run", recipe(data, new, loop={"steps": 2}))
    found = load_generator(trained.model, cache_dir=tmp_path)
    before = load_generator(plain, cache_dir=tmp_path)
    assert found.config.vocab_size == before.config.vocab_size + 1
    assert found.images is not None
    assert found.images.mark == "<picture>"
    assert found.tokenizer.takes_parts
    assert found.tokenizer.token_id("<picture>") == before.config.vocab_size
    image = open_image(data.parent / "0.png")
    prompt = build_prompt([Message.user(image, "What is it?")], found)
    assert found.tokenizer.decode(prompt.ids, skip_special=False) == (
        "<|im_start|>user\n" + "<picture>" * 4 + "\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    # Text alone is rendered as before.
    asked = [{"role": "user", "content": "What?"}]
    assert found.tokenizer.render(asked) == before.tokenizer.render(asked)


# The run ----------------------------------------------------------------------------------------


def test_parts_of_a_batch_and_packed_rows_learn_the_same(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    plain = {"shuffle": False, "bucket_batches": 1}
    common = {"lora": {"dropout": 0.0}, "loop": {"steps": 4}, "data": plain}
    run(tmp_path / "whole", recipe(data, parts, **common))
    run(tmp_path / "parts", recipe(data, parts, **common, batch={"micro_size": 3}))
    # A window of eight conversations fills two or three rows of one batch.
    packed = common | {"data": {**plain, "packing": True}}
    run(tmp_path / "packed", recipe(data, parts, **packed))
    whole = losses(tmp_path / "whole")
    assert len(whole) == 4
    for other in ("parts", "packed"):
        for ours, theirs in zip(losses(tmp_path / other), whole, strict=True):
            assert ours[1] == pytest.approx(theirs[1], rel=1e-5)


def test_kept_features_change_nothing_from_run_to_run(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    tables = recipe(data, parts, loop={"steps": 4}, lora={"dropout": 0.0})
    run(tmp_path / "without", tables)
    tables["features"] = {"cache": str(tmp_path / "features")}
    run(tmp_path / "first", tables)
    kept = sorted((tmp_path / "features").rglob("*.npy"))
    assert kept
    kept[0].write_bytes(b"damaged")
    run(tmp_path / "second", tables)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    for ours, theirs in zip(losses(tmp_path / "first"), losses(tmp_path / "without"), strict=True):
        assert ours[1] == pytest.approx(theirs[1], rel=1e-2)


def test_snapshots_hold_what_learns_alone(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    run(tmp_path, recipe(data, parts, loop={"steps": 2}))
    (snapshot,) = (tmp_path / "snapshots").iterdir()
    held = torch.load(snapshot, weights_only=True)["model"]
    learned = [name for name in held if "lora_" in name or name.startswith("model.projector.")]
    buffers = [name for name in held if name not in learned]
    assert learned
    assert not any(name.endswith("weight") for name in buffers)


def test_a_stopped_run_goes_on_and_another_start_is_refused(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    from threading import Event

    tables = recipe(data, parts, loop={"steps": 7, "average": 0.5})
    run(tmp_path / "whole", tables)
    stop = Event()

    def watch(step: int, report: Any) -> None:
        if step == 3:
            stop.set()

    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", tables, watch=watch, stop=stop)
    changed = recipe(data, {**parts, "feature_layer": -1}, loop=tables["loop"])
    with pytest.raises(ConfigurationError, match="another recipe"):
        run(tmp_path / "parts", changed, resume=True)
    run(tmp_path / "parts", tables, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole/model").items():
        assert torch.equal(tensor, weights(tmp_path / "parts/model")[name]), name


def test_alignment_passes_over_batches_without_pictures(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    records = json.loads(data.read_text())
    text = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A wall."}]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps([{"conversations": text}] * 8 + records[1:3]))
    for number in (1, 2):
        name = records[number]["image"][0]
        (tmp_path / name).write_bytes((data.parent / name).read_bytes())
    order = {"shuffle": False, "bucket_batches": 1}
    tables = recipe(mixed, parts, data=order, loop={"steps": 4}, tune={"stage": "align"})
    run(tmp_path / "run", tables)
    norms = [row["gradient_norm"] for row in read_metrics(tmp_path / "run" / METRICS)]
    assert norms[0] == norms[2] == 0
    assert norms[1] > 0
    assert norms[3] > 0


def test_measures_of_the_model_itself_are_reported(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    def measure(model: Any) -> dict[str, float]:
        assert not model.training
        return {"image_token": float(model.image_token_id)}

    trained = run(
        tmp_path, recipe(data, parts, loop={"steps": 2, "measure_every": 1}), measure_model=measure
    )
    rows = read_metrics(tmp_path / METRICS)
    assert [row["image_token"] for row in rows] == [trained.figures["image_token"]] * 2


def test_damage_is_counted_and_named(tmp_path: Path, parts: dict[str, str]) -> None:
    data = write_conversations(tmp_path / "data")
    for number in (3, 7):
        (tmp_path / "data" / f"{number}.png").write_bytes(b"no picture")
    tables = recipe(data, parts, loop={"steps": 9}, data={"max_damaged_share": 0.3})
    trained = run(tmp_path / "run", tables)
    assert set(trained.skipped) == {"not a picture"}
    tables["data"]["max_damaged_share"] = 0.0
    with pytest.raises(UnusableData, match=r"not a picture \(as in conversations.json record"):
        run(tmp_path / "strict", tables)


def test_what_is_too_long_is_shortened_and_counted(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    """Two of three conversations have one question; the others lose their second."""
    tables = recipe(data, parts, data={"max_tokens": 60}, loop={"steps": 6})
    trained = run(tmp_path, tables)
    assert trained.skipped == {}
    assert trained.shortened == 16
    assert {row["answer_tokens"] for row in read_metrics(tmp_path / METRICS)} < set(range(100))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": {"new": None}}, ConfigurationError, "what to train"),
        ({"model": {"start": "x"}}, ConfigurationError, "what to train"),
        ({"loop": {"accumulate": 2}}, ConfigurationError, "loop.accumulate"),
        ({"tune": {"language_model": "frozen", "projector": False}}, ConfigurationError, "Nothing"),
        ({"lora": {"targets": ["c_attn"]}}, ChiasmError, "c_attn"),
        ({"data": {"source": "nowhere.json"}}, UnusableData, "nowhere.json"),
        (
            {"tune": {"image_tower": True}, "features": {"cache": "f"}},
            ConfigurationError,
            "cannot be kept",
        ),
    ],
)
def test_what_cannot_be_trained_is_said(
    tmp_path: Path,
    data: Path,
    parts: dict[str, str],
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    tables = recipe(data, parts, loop={"steps": 1})
    for section, values in change.items():
        tables[section] = {**tables.get(section, {}), **values}
    with pytest.raises(error, match=message):
        run(tmp_path, tables)


def test_a_language_model_alone_is_no_start(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    tables = recipe(data, {}, loop={"steps": 1})
    tables["model"] = {"start": parts["language_model"]}
    with pytest.raises(ConfigurationError, match="sees no pictures"):
        run(tmp_path / "a", tables)
    swapped = {"image_tower": parts["language_model"], "language_model": parts["image_tower"]}
    with pytest.raises(ConfigurationError, match="no image tower"):
        run(tmp_path / "b", recipe(data, swapped))


# In processes of their own ----------------------------------------------------------------------


def written(path: Path, tables: dict[str, Any]) -> Path:
    path.write_text(show_recipe(build_recipe(InstructRecipe, tables, "x")), encoding="utf-8")
    return path


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"CHIASM_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_run_killed_with_9_goes_on_to_the_same_losses(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    """Killed without warning, at a step that is no snapshot's; packed, with dropout and average."""
    tables = recipe(
        data,
        parts,
        loop={"steps": 30, "snapshot_every": 4, "average": 0.9},
        data={"packing": True},
        batch={"micro_size": 3},
        measure={"answers": {"data": {"source": str(data)}, "limit": 5}},
    )
    tables["loop"]["measure_every"] = 5
    path = written(tmp_path / "recipe.toml", tables)

    def start(folder: str, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "chiasm.cli", "train", "vlm", str(path), "--json"]
        return subprocess.Popen(
            [*command, "--output", str(tmp_path / folder), "--device", "cpu", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path),
        )

    whole, killed = start("whole"), start("parts")
    deadline = time.monotonic() + 200
    while not any(step >= 6 for step, _ in losses(tmp_path / "parts")):
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert losses(tmp_path / "parts")[-1][0] < 30, "the kill came too late to mean anything"
    resumed = start("parts", "--resume")
    printed, said = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, said
    printed_whole, said = whole.communicate(timeout=200)
    assert whole.returncode == 0, said
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "parts")] == list(range(1, 31))
    for name in ("model/model.safetensors", "adapters/adapter_model.safetensors"):
        ours, theirs = ((tmp_path / each / name).read_bytes() for each in ("parts", "whole"))
        assert ours == theirs
    figures, whole_figures = json.loads(printed)["figures"], json.loads(printed_whole)["figures"]
    assert figures["answer_loss"] == whole_figures["answer_loss"]


def torchrun(path: Path, output: Path, *flags: str) -> None:
    """Two processes on this machine's CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "chiasm.cli", "train", "vlm", str(path)]
    done = subprocess.run(
        [*command, "--output", str(output), "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment(output.parent),
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    tmp_path: Path, data: Path, parts: dict[str, str]
) -> None:
    """Copied weights and split ones; the tower learns too, and some batches have no picture."""
    records = json.loads(data.read_text())
    for number, record in enumerate(records):
        if number % 16 in (1, 3, 5, 7):  # all of a rank's rows of some updates
            turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A wall. " * 3}]
            records[number] = {"conversations": turns}
        else:
            record["image"] = [str(data.parent / name) for name in record["image"]]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(records))
    tables = recipe(
        mixed,
        parts,
        data={"shuffle": False, "bucket_batches": 1},
        tune={"image_tower": True},
        lora={"dropout": 0.0},
        batch={"micro_size": 3},
        loop={"steps": 6, "snapshot_every": 3, "average": 0.5},
        measure={"answers": {"data": {"source": str(data)}, "limit": 9}},
    )
    run(tmp_path / "one", tables)
    path = written(tmp_path / "recipe.toml", tables)
    torchrun(path, tmp_path / "ddp")
    torchrun(path, tmp_path / "fsdp", "--set", "loop.sharding=fsdp")
    one = read_metrics(tmp_path / "one" / METRICS)
    for name in ("ddp", "fsdp"):
        rows = read_metrics(tmp_path / name / METRICS)
        assert [row["step"] for row in rows] == list(range(1, 7))
        for ours, theirs in zip(rows, one, strict=True):
            assert ours["answer_tokens"] == theirs["answer_tokens"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
        assert rows[-1]["answer_loss"] == pytest.approx(one[-1]["answer_loss"], rel=1e-3)
        for tensor, theirs in zip(
            weights(tmp_path / name / "model").values(),
            weights(tmp_path / "one/model").values(),
            strict=True,
        ):
            torch.testing.assert_close(tensor, theirs, atol=5e-3, rtol=1e-3)
    # What split weights left, copied ones go on with.
    torchrun(path, tmp_path / "fsdp", "--resume", "--set", "loop.steps=8")
    assert [row["step"] for row in read_metrics(tmp_path / "fsdp" / METRICS)] == list(range(1, 9))
