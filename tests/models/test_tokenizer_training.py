"""Tokenizers learned here, as transformers reads them from the folder they were saved to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from test_tokenizer import CORPUS, TEXTS, assert_equal

from chiasm.errors import ConfigurationError
from chiasm.models.checkpoint import load_dual_encoder, save_checkpoint
from chiasm.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.tokenizer import Tokenizer
from chiasm.models.tokenizer_training import train_clip_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_clip_tokenizer(CORPUS, vocabulary=700, max_length=40)


@pytest.fixture(scope="module")
def folder(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    return folder


def vocabulary_of(folder: Path) -> dict[str, int]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer["model"]["vocab"]


@pytest.mark.parametrize("kind", [transformers.CLIPTokenizer, transformers.AutoTokenizer])
def test_transformers_reads_the_same_ids(trained: Tokenizer, folder: Path, kind: type) -> None:
    theirs = kind.from_pretrained(folder)
    assert isinstance(theirs, transformers.CLIPTokenizer)
    assert_equal(trained, theirs, 40, [*TEXTS, *CORPUS])
    assert theirs.model_max_length == 40


def test_read_back_here(trained: Tokenizer, folder: Path) -> None:
    again = Tokenizer.from_folder(folder)
    assert again.max_length == 40
    assert torch.equal(again([*TEXTS, *CORPUS]).ids, trained([*TEXTS, *CORPUS]).ids)


def test_the_marks_stand_around_every_text_and_the_end_has_the_highest_id(
    trained: Tokenizer, folder: Path
) -> None:
    vocabulary = vocabulary_of(folder)
    assert vocabulary[END] == max(vocabulary.values()) == len(vocabulary) - 1
    ids = trained(["a photo", "antidisestablishmentarianism " * 20, ""]).ids
    assert ids[:, 0].tolist() == [vocabulary[START]] * 3
    # The first highest id of a row is its end of text, even where it is cut or followed by padding.
    assert ids.argmax(dim=1).tolist() == [trained.count("a photo") - 1, 39, 1]
    assert trained.pad_id == vocabulary[END]


def test_frequent_words_are_one_token_and_case_does_not_matter(trained: Tokenizer) -> None:
    assert trained.count("photo") == 3
    assert trained.count("A PHOTO of a cat") == 2 + 5
    assert torch.equal(trained(["A PHOTO Of a Cat"]).ids, trained(["a photo of a cat"]).ids)


@pytest.mark.parametrize("size", [514, 515, 560])
def test_no_more_tokens_than_asked_for(size: int, tmp_path: Path) -> None:
    tokenizer = train_clip_tokenizer(CORPUS, vocabulary=size)
    tokenizer.save(tmp_path)
    assert len(vocabulary_of(tmp_path)) == size
    assert_equal(tokenizer, transformers.CLIPTokenizer.from_pretrained(tmp_path), 77)


def test_few_words_make_a_small_vocabulary_that_still_reads_everything(tmp_path: Path) -> None:
    tokenizer = train_clip_tokenizer(["a cat", "a dog"], vocabulary=49_408)
    tokenizer.save(tmp_path)
    assert len(vocabulary_of(tmp_path)) < 530
    assert_equal(tokenizer, transformers.CLIPTokenizer.from_pretrained(tmp_path), 77)


def test_equal_captions_equal_tokens(folder: Path, tmp_path: Path) -> None:
    # The trainer's hashes are salted anew in every process and every time.
    for _ in range(5):
        train_clip_tokenizer(iter(CORPUS), vocabulary=700, max_length=40).save(tmp_path)
        learned, before = (each / "tokenizer.json" for each in (tmp_path, folder))
        assert learned.read_bytes() == before.read_bytes()


def test_a_checkpoint_with_it_gives_what_transformers_gives(
    trained: Tokenizer, folder: Path, tmp_path: Path
) -> None:
    vocabulary = vocabulary_of(folder)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **small,
            vocab_size=len(vocabulary),
            max_position_embeddings=40,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        ),
        vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=7),
        projection_dim=16,
    )
    preprocessor = ImagePreprocessor(
        (28, 28), None, "bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    )
    torch.manual_seed(0)
    save_checkpoint(tmp_path, CLIP(config), preprocessor, trained)
    ours = load_dual_encoder(tmp_path, cache_dir=tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = ours.tokenizer(TEXTS)
    inputs = tokenizer(TEXTS, truncation=True, max_length=40, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_text_features(**inputs).pooler_output
        actual = ours.model.encode_text(batch.ids, batch.mask)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("captions", "options", "words"),
    [
        (CORPUS, {"vocabulary": 513}, "514"),
        (CORPUS, {"max_length": 2}, "no room"),
        ([], {}, "no word"),
        (["", "  \n"], {}, "no word"),
    ],
)
def test_what_cannot_be_learned_is_said(
    captions: list[str], options: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        train_clip_tokenizer(captions, **options)
