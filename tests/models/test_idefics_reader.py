"""IDEFICS's pictures and prompts against transformers' own processor, on Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_preprocess import picture
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import IdeficsProcessor, PreTrainedTokenizerFast
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.chat import ChatTokenizer
from chiasm.models.idefics_reader import AROUND, END_OF_UTTERANCE, IdeficsReader, prompt

# (width, height): squares, common photographs both ways, strips, single pixels, odd by one.
SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (7, 5), (16, 16), (31, 33), (64, 64), (100, 99),
    (223, 223), (224, 224), (225, 225), (224, 225), (223, 224), (224, 112), (112, 224), (448, 448),
    (447, 449), (336, 336), (384, 384), (500, 333), (333, 500), (512, 512), (640, 427), (427, 640),
    (640, 480), (480, 640), (720, 405), (768, 512), (800, 90), (90, 800), (1000, 37), (37, 1000),
    (1024, 768), (768, 1024), (1280, 720), (720, 1280), (1024, 1024), (1500, 200), (200, 1500),
    (1920, 1080), (1080, 1920),
]  # fmt: skip


def reader() -> IdeficsReader:
    return IdeficsReader.from_config({"image_processor_type": "IdeficsImageProcessor"})


def theirs(image: Any, **options: Any) -> torch.Tensor:
    pixels: torch.Tensor = IdeficsImageProcessorPil(**options)(
        PIL.Image.fromarray(np.array(image.pixels)), return_tensors="pt"
    )
    return pixels


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}×{0[1]}".format)
def test_pixels_equal_those_of_transformers(size: tuple[int, int]) -> None:
    image, ours = picture(*size), reader()
    inputs = ours.prepare(image)
    expected = theirs(image)
    assert inputs.size == size
    assert inputs.pixels.shape == expected.shape == (1, 3, 224, 224)
    assert (inputs.pixels - expected).abs().max() <= 1e-5
    assert ours.count(*size) == 1 == ours.placeholder(*size).count(ours.image_token)


def test_published_files_and_what_is_written(tmp_path: Path) -> None:
    """`image_size` is how the published files say it; transformers 5 writes `size`."""
    published = {
        "image_num_channels": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_processor_type": "IdeficsImageProcessor",
        "image_size": 60,
        "image_std": [0.2, 0.25, 0.3],
    }
    ours, image = IdeficsReader.from_config(published), picture(90, 40)
    expected = theirs(image, image_size=60, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3])
    assert (ours.prepare(image).pixels - expected).abs().max() <= 1e-5
    assert expected.shape[-1] == 60
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_config()))
    reopened = IdeficsImageProcessorPil.from_pretrained(tmp_path)
    pil = PIL.Image.fromarray(np.array(image.pixels))
    assert torch.equal(reopened(pil, return_tensors="pt"), expected)
    reopened.save_pretrained(tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    assert IdeficsReader.from_config(written) == ours


def test_another_processors_file_is_refused() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="image processor is 'FuyuImageProcessor'"):
        IdeficsReader.from_config({"image_processor_type": "FuyuImageProcessor"})


# Prompts ----------------------------------------------------------------------------------------

CAT, DOG, HORSE = (picture(*size) for size in ((40, 30), (30, 40), (50, 50)))
PROMPTS: dict[str, list[Any]] = {
    "no picture": ["User: What is the capital of France?", "\nAssistant:"],
    "one picture": ["User:", CAT, "Describe this image.\nAssistant:"],
    "one picture, nothing before": [CAT, "A cat"],
    "one picture, nothing after": ["User: ", CAT],
    "three pictures, apart": [
        "User: ", CAT, " What is this? ", "Assistant: a cat.", "\nUser:", DOG, "And this?",
        "\nUser:", HORSE, "And that?\nAssistant:",
    ],
    "three pictures, adjacent": ["User: ", CAT, DOG, HORSE, "Which of them barks?\nAssistant:"],
    "two adjacent, one apart": [CAT, DOG, "both", HORSE, "alone"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes with IDEFICS's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<unk>", "<s>", "</s>", *alphabet]
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    added = ["<s>", "</s>", AROUND, "<image>", END_OF_UTTERANCE]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )
    path = tmp_path_factory.mktemp("idefics")
    fast.save_pretrained(path)
    return path


@pytest.mark.parametrize("utterances", [False, True])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_the_ids_that_transformers_processor_gives(
    name: str, utterances: bool, folder: Path
) -> None:
    parts = PROMPTS[name]
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = IdeficsProcessor(IdeficsImageProcessorPil(), fast)
    pictures = [part for part in parts if not isinstance(part, str)]
    expected = processor(
        text=[
            part if isinstance(part, str) else PIL.Image.fromarray(np.array(part.pixels))
            for part in parts
        ],
        add_end_of_utterance_token=utterances,
    )
    text = prompt(
        [part if isinstance(part, str) else None for part in parts],
        end_of_utterance=END_OF_UTTERANCE if utterances else None,
    )
    tokenizer, ours = ChatTokenizer.from_folder(folder), reader()
    assert tokenizer.encode(text) == expected["input_ids"][0].tolist()
    assert text.count(ours.image_token) == len(pictures) == sum(ours.count(9, 9) for _ in pictures)
    if pictures:
        prepared = torch.cat([ours.prepare(part).pixels for part in pictures])
        assert (prepared - expected["pixel_values"][0]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", PROMPTS)
def test_placeholders_joined_in_a_text_are_what_the_processor_writes(name: str) -> None:
    """As a chat template leaves them: marks in a text, replaced one by one."""
    ours = reader()
    parts = [part.strip(" ") if isinstance(part, str) else None for part in PROMPTS[name]]
    marked = "<s>" + "".join(ours.mark if part is None else part for part in parts)
    pieces = marked.split(ours.mark)
    assert ours.joined(ours.placeholder(30, 20).join(pieces)) == prompt(parts)
