"""GGUF files: the same model as the one that was written, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, RopeScalingType

from chiasm.errors import ConfigurationError, NoSpace, UnsupportedCheckpoint
from chiasm.models import catalog, checkpoint, gguf
from chiasm.models.catalog import cache
from chiasm.models.checkpoint import load_model, locate
from tests.models.catalog_servers import Recorder, write_catalog

IDS = torch.randint(0, 250, (2, 30), generator=torch.Generator().manual_seed(11))
TEXT = "hello, hello 12 1's 'S\n\n  naïve <|im_end|>日本 <image>12"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return gguf_files.write(path, gguf_files.model("llama")).read_bytes()


# What comes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "quantisation", "entries"),
    [
        ("llama", GGMLQuantizationType.F32, {}),
        ("llama", GGMLQuantizationType.Q4_1, {"tie_word_embeddings": False}),
        ("llama", GGMLQuantizationType.F16, {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", GGMLQuantizationType.Q8_0, {}),
        ("qwen3", GGMLQuantizationType.BF16, {"tie_word_embeddings": False}),
    ],
)
def test_the_model_is_the_one_that_was_written(
    folder: Path, cache_dir: Path, kind: str, quantisation: Any, entries: dict[str, Any]
) -> None:
    rope = {"rope_type": "default", "rope_theta": 50000.0}
    reference = gguf_files.model(kind, rope_parameters=rope, **entries)
    gguf_files.write(folder / "tiny.gguf", reference, quantisation=quantisation)
    found = locate(folder, cache_dir=cache_dir)
    ours: Any = load_model(found)
    again = type(reference).from_pretrained(found).eval()
    with torch.no_grad():
        expected = reference(IDS).logits
        assert expected.abs().max() > 0.1
        got = ours.logits(ours(ours.embed(IDS)))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(again(IDS).logits, expected, atol=1e-4, rtol=0)
    assert ours.config.rms_norm_eps == 1e-5
    assert ours.config.eos_ids == {2}


def test_linear_scaling_is_kept(folder: Path, cache_dir: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    reference = gguf_files.model("llama", rope_parameters=rope)

    def scaled(writer: Any) -> None:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    gguf_files.write(folder / "tiny.gguf", reference, change=scaled)
    ours: Any = load_model(locate(folder, cache_dir=cache_dir))
    with torch.no_grad():
        expected = reference(IDS).logits
        torch.testing.assert_close(ours.logits(ours(ours.embed(IDS))), expected, atol=1e-4, rtol=0)


def spelled(folder: Path, text: str) -> list[str]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]))


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        # By hand. SmolLM2 gives every digit a piece of its own, so that "1 2" never merges; GPT-2
        # keeps them together; Qwen2 does not, and knows contractions in either case.
        ("smollm", ["Ġhello", "'", "S", "Ġ", "1", "2", "'s", "<image>", "1", "2"]),
        ("gpt-2", ["Ġhello", "'", "S", "Ġ", "12", "'s", "<image>", "12"]),
        ("qwen2", ["Ġhello", "'S", "Ġ", "1", "2", "'s", "<image>", "1", "2"]),
    ],
)
def test_a_text_is_cut_as_the_file_says(
    folder: Path, cache_dir: Path, pre: str, pieces: list[str]
) -> None:
    gguf_files.write(folder / "tiny.gguf", gguf_files.model("llama"), pre=pre)
    found = locate(folder, cache_dir=cache_dir)
    assert spelled(found, " hello'S 12's<image>12") == pieces
    assert spelled(found, "hello<|im_end|>hello") == ["hello", "<|im_end|>", "hello"]
    spelled(found, TEXT)


def test_the_tokenizer_comes_with_its_template_and_its_special_tokens(
    folder: Path, cache_dir: Path
) -> None:
    gguf_files.write(folder / "tiny.gguf", gguf_files.model("llama"))
    found = locate(folder, cache_dir=cache_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(found)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>hi<|im_end|>"
    assert tokenizer.decode(tokenizer(rendered)["input_ids"], skip_special_tokens=True) == "hi"
    generation = transformers.GenerationConfig.from_pretrained(found)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


def test_a_file_that_wants_its_first_token_gets_it(folder: Path, cache_dir: Path) -> None:
    reference = gguf_files.model("llama")
    gguf_files.write(folder / "t.gguf", reference, change=lambda w: w.add_add_bos_token(True))
    tokenizer = transformers.AutoTokenizer.from_pretrained(locate(folder, cache_dir=cache_dir))
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello")["input_ids"]) == [
        "<|im_start|>",
        "hello",
    ]


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:3000],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"PK\x03\x04" + content[4:],
        lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:],
        lambda content: content[:200] + b"\xff" * 400 + content[600:],
        lambda content: content.replace(b"llama.block_count", b"llama.block_xxxxx"),
        lambda content: content.replace(b"token_embd", b"tokem_ebmd"),
    ],
    ids=range(10),
)
def test_a_damaged_file_is_named(
    folder: Path, cache_dir: Path, content: bytes, damage: Callable[[bytes], bytes]
) -> None:
    (folder / "bad.gguf").write_bytes(damage(content))
    with pytest.raises(UnsupportedCheckpoint, match=r"bad\.gguf"):
        locate(folder, cache_dir=cache_dir)
    assert not list(cache_dir.glob("models/[!.]*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pre": "tekken"}, "pre-tokenizer 'tekken'"),
        (
            {"change": lambda w: w.add_rope_scaling_type(RopeScalingType.YARN)},
            "positions are scaled by 'yarn'",
        ),
        (
            {"change": lambda w: w.add_tensor("rope_freqs.weight", torch.ones(4).numpy())},
            r"not known here: rope_freqs\.weight",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    folder: Path, cache_dir: Path, options: dict[str, Any], words: str
) -> None:
    gguf_files.write(folder / "odd.gguf", gguf_files.model("llama"), **options)
    with pytest.raises(UnsupportedCheckpoint, match=words) as caught:
        locate(folder, cache_dir=cache_dir)
    assert "odd.gguf" in caught.value.message


def test_another_architecture_is_refused(folder: Path, cache_dir: Path, content: bytes) -> None:
    other = content.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1)
    assert other != content
    (folder / "odd.gguf").write_bytes(other)
    with pytest.raises(UnsupportedCheckpoint, match="architecture 'mamba'"):
        locate(folder, cache_dir=cache_dir)


def test_several_files_are_not_chosen_among(folder: Path, cache_dir: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UnsupportedCheckpoint, match=r"2 GGUF files: a\.gguf, b\.gguf"):
        locate(folder, cache_dir=cache_dir)


# In the cache -----------------------------------------------------------------------------------


@pytest.fixture
def entry(folder: Path, tmp_path: Path, content: bytes) -> list[Path]:
    """A catalogue whose entry is that file and says `convert`."""
    (folder / "tiny.gguf").write_bytes(content)
    written = write_catalog(tmp_path / "local.toml", {"tiny.gguf": content}, "file:folder")
    written.write_text(written.read_text().replace("bytes = 1\n", 'bytes = 1\nconvert = "gguf"\n'))
    return [written]


def test_a_pull_converts_once_and_shows_how_far_it_is(
    cache_dir: Path, entry: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    options: dict[str, Any] = {"cache_dir": cache_dir, "catalogs": entry}
    found = catalog.pull("tiny", progress=progress, **options)
    size = sum(p.numel() * 4 for p in gguf_files.model("llama").parameters())
    assert progress.files[-1] == ["tiny: converting", size, size, True]
    monkeypatch.setattr(gguf, "convert", None)
    (folder / "tiny.gguf").unlink()
    assert catalog.pull("tiny", offline=True, **options) == found
    assert catalog.pull("tiny", offline=True, verify=True, **options) == found
    assert locate("tiny", offline=True, **options) == found


def test_a_damaged_result_is_made_anew(cache_dir: Path, entry: list[Path]) -> None:
    found = catalog.pull("tiny", cache_dir=cache_dir, catalogs=entry)
    weights = found / "model.safetensors"
    before, status = weights.read_bytes(), weights.stat()
    weights.write_bytes(before[:-4] + b"\0\0\0\1")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert catalog.pull("tiny", cache_dir=cache_dir, catalogs=entry, verify=True) == found
    assert weights.read_bytes() == before
    (found / "config.json").unlink()
    assert catalog.pull("tiny", cache_dir=cache_dir, catalogs=entry) == found
    load_model(found)


def test_a_full_disk_is_said_so_and_leaves_nothing(
    cache_dir: Path, entry: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = gguf._write

    def full(path: Path, *arguments: Any) -> None:
        path.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    options: dict[str, Any] = {"cache_dir": cache_dir, "catalogs": entry}
    monkeypatch.setattr(gguf, "_write", full)
    with pytest.raises(NoSpace):
        catalog.pull("tiny", **options)
    assert not list(cache_dir.glob("models/[!.]*converted*"))
    assert not list(cache_dir.glob("models/.*.partial"))
    monkeypatch.setattr(gguf, "_write", written)
    load_model(catalog.pull("tiny", **options))


def test_a_conversion_without_room_is_not_begun(
    cache_dir: Path, entry: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache_dir / "models").mkdir(parents=True)
    usage = cache.shutil.disk_usage(cache_dir)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    monkeypatch.setattr(gguf, "_write", None)
    file = entry[0].parent / "folder" / "tiny.gguf"
    with pytest.raises(NoSpace, match=r"0\.1 MB are free"):
        gguf.converted("tiny", "key", lambda: file, cache_dir=cache_dir)
    assert not list(cache_dir.glob("models/[!.]*"))


CHILD = """
    import sys, time
    from pathlib import Path
    from chiasm.models import catalog
    from chiasm.models.catalog.progress import Silent

    class Stalls(Silent):
        def start(self, label, total):
            self.stalls = "converting" in label
        def advance(self, n):
            if self.stalls and sys.argv[3] == "stall":
                print("half-way", flush=True)
                time.sleep(60)

    folder = catalog.pull(
        "tiny", cache_dir=Path(sys.argv[1]), catalogs=[Path(sys.argv[2])], progress=Stalls()
    )
    print(folder, flush=True)
"""


def child(cache_dir: Path, entry: list[Path], how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(cache_dir), str(entry[0]), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_conversion_begins_anew_and_another_process_waits_for_it(
    cache_dir: Path, entry: list[Path]
) -> None:
    first = child(cache_dir, entry, "stall")
    assert first.stdout is not None
    assert first.stdout.readline() == "half-way\n"
    assert list(cache_dir.glob("models/.*converted*.partial/model.safetensors"))
    assert not list(cache_dir.glob("models/[!.]*converted*"))
    second = child(cache_dir, entry, "go on")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    answer, _ = second.communicate(timeout=60)
    found = catalog.pull("tiny", cache_dir=cache_dir, catalogs=entry)
    assert answer.strip() == str(found)
    load_model(found)
    assert not list(cache_dir.glob("models/.*.partial"))


def test_a_folder_with_a_configuration_is_taken_as_it_is(folder: Path, cache_dir: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "also.gguf").write_bytes(b"")
    assert locate(folder, cache_dir=cache_dir) == folder


def test_an_exchanged_file_is_converted_anew(folder: Path, cache_dir: Path, content: bytes) -> None:
    (folder / "tiny.gguf").write_bytes(content)
    first = locate(folder, cache_dir=cache_dir)
    assert locate(folder, cache_dir=cache_dir) == first
    reference = gguf_files.model("llama", num_hidden_layers=1)
    gguf_files.write(folder / "tiny.gguf", reference)
    second = locate(folder, cache_dir=cache_dir)
    assert second != first
    assert json.loads((second / "config.json").read_text())["num_hidden_layers"] == 1


def test_the_digest_is_over_the_files_as_they_are_now(cache_dir: Path, entry: list[Path]) -> None:
    found = catalog.pull("tiny", cache_dir=cache_dir, catalogs=entry)
    recorded = checkpoint.digest(found)
    (found / ".manifest.json").rename(found / "elsewhere.json")
    assert checkpoint.digest(found) == recorded, "with and without what was recorded"
    (found / "elsewhere.json").rename(found / ".manifest.json")
    (found / "tokenizer.json").write_text("{}")
    assert checkpoint.digest(found) != recorded


TWO = '"tiny.gguf" = { bytes = 1, sha256 = "%s" }\n"other.gguf" =' % ("0" * 64)


@pytest.mark.parametrize(("old", "new"), [('"gguf"', '"onnx"'), ('"tiny.gguf" =', TWO)])
def test_an_entry_that_cannot_be_converted_is_refused(
    entry: list[Path], cache_dir: Path, old: str, new: str
) -> None:
    path = entry[0].with_name("other.toml")
    path.write_text(entry[0].read_text().replace(old, new))
    with pytest.raises(ConfigurationError, match="`convert` is"):
        catalog.pull("tiny", cache_dir=cache_dir, catalogs=[path])
