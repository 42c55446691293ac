"""Tokenizers against transformers' own, on small vocabularies built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.tokenizer import TextRules, Tokenizer

CORPUS = [
    "a photo of a cat sitting on a red sofa",
    "two dogs running across a green field at sunset",
    "an orange motorcycle parked beside the harbour, 1984",
    "it's the café's naïve façade; don't you think they're here?",
    "a plate of spaghetti with tomatoes and basil",
    "das kleine Haus am See, über die Straße",
    "the quick brown fox jumps over the lazy dog 0123456789",
] * 5

TEXTS = [
    "",
    " ",
    "A photo of a cat",
    "a  photo\tof\n a   cat  ",
    "IT'S the Café’s naïve façade; they'd don't we're I'll",
    "1984 2024x3 №5 ½",
    "emoji 🐈‍⬛ and 👩🏽‍🚀 and ❤️",
    "你好世界 こんにちは Привет مرحبا",
    "Cafe\u0301 ﬁne \u00a0 nbsp \u200b zero",
    "!!! ... --- ??? :-) <b>bold</b> {} [x] (y) a_b",
    "<|endoftext|> <|startoftext|>",
    "[SEP] [MASK] </s> <eos>",
    "word " * 60,
    "antidisestablishmentarianism" * 4,
    "İstanbul ǅ ß ﬀ Σίσυφος",
    "x\x00y\x07z\ufffd",
]


def assert_equal(ours: Tokenizer, theirs: Any, length: int, texts: list[str] = TEXTS) -> None:
    """Each text alone, then all of them as one padded batch."""
    for text in texts:
        expected = theirs(text, truncation=True, max_length=length)["input_ids"]
        batch = ours([text])
        assert batch.ids[0][batch.mask[0]].tolist()[: len(expected)] == expected, text
        assert ours.count(text) == len(expected)
    padded = theirs(
        texts,
        truncation=True,
        max_length=length,
        padding="max_length" if ours.rules.fixed_length else "longest",
        padding_side="right",
        return_tensors="pt",
    )
    batch = ours(texts)
    assert batch.ids.tolist() == padded["input_ids"].tolist()
    if not ours.rules.fixed_length:
        assert batch.mask.long().tolist() == padded["attention_mask"].tolist()


# CLIP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt as OpenAI's: 256 bytes, the same ending words, merges, marks."""
    folder = tmp_path_factory.mktemp("clip")
    trained = tokenizers.Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.normalizer = tokenizers.normalizers.Lowercase()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Whitespace(), tokenizers.pre_tokenizers.ByteLevel(False)]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS,
        BpeTrainer(
            vocab_size=900,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(alphabet)
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_clip_from_vocabulary_files(clip_vocabulary: Path) -> None:
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_vocabulary)
    for length in (77, 12):
        ours = Tokenizer.from_folder(clip_vocabulary, max_length=length)
        assert_equal(ours, theirs, length)


def test_clip_from_tokenizer_json(clip_vocabulary: Path, tmp_path: Path) -> None:
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_vocabulary)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert_equal(Tokenizer.from_folder(tmp_path, max_length=77), theirs, 77)


def test_truncation_keeps_the_end_of_text(clip_vocabulary: Path) -> None:
    ours = Tokenizer.from_folder(clip_vocabulary, max_length=77)
    ids = ours(["cat " * 500]).ids[0].tolist()
    end = json.loads((clip_vocabulary / "vocab.json").read_text())["<|endoftext|>"]
    assert len(ids) == 77
    assert ids[-1] == end
    assert end not in ids[:-1]


# BERT -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    trained = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer = tokenizers.normalizers.BertNormalizer()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    trained.train_from_iterator([*CORPUS, "! ? . , ; ' < > 你 好"], trainer)
    tokens = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens))
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}],
)
def test_bert_from_vocabulary_file(
    bert_vocabulary: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "vocab.txt").write_text((bert_vocabulary / "vocab.txt").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert_equal(Tokenizer.from_folder(tmp_path, max_length=64), theirs, 64)


def test_bert_from_tokenizer_json_whatever_padding_it_stores(
    bert_vocabulary: Path, tmp_path: Path
) -> None:
    theirs = transformers.BertTokenizer.from_pretrained(bert_vocabulary)
    theirs.save_pretrained(tmp_path)
    stored = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_padding(length=128)
    stored.enable_truncation(16)
    stored.save(str(tmp_path / "tokenizer.json"))
    assert_equal(Tokenizer.from_folder(tmp_path, max_length=40), theirs, 40)


# SigLIP -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def siglip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        model_type="unigram",
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    return folder


def test_siglip_strips_punctuation_and_pads_to_its_length(siglip_vocabulary: Path) -> None:
    theirs = transformers.SiglipTokenizer.from_pretrained(siglip_vocabulary)
    rules = TextRules(fixed_length=True, lower_case=True)
    ours = Tokenizer.from_folder(siglip_vocabulary, max_length=64, rules=rules)
    # Marks written out in a text are cut out there; here a text cannot smuggle them in.
    texts = [text for text in TEXTS if "</s>" not in text]
    for text in texts:
        expected = theirs(text, truncation=True, max_length=64, padding="max_length")["input_ids"]
        batch = ours([text])
        assert batch.ids[0].tolist() == expected, text
        assert batch.mask.all(), "SigLIP looks at its padding"
    assert ours(["A cat!"]).ids.tolist() == ours(["a, cat"]).ids.tolist()
    assert ours.count("") == 1


def test_a_cut_sentencepiece_model_is_refused_by_name(
    siglip_vocabulary: Path, tmp_path: Path
) -> None:
    whole = (siglip_vocabulary / "spiece.model").read_bytes()
    for kept in (10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "spiece.model").write_bytes(whole[:kept])
        with pytest.raises(UnsupportedCheckpoint, match=r"spiece\.model could not be read"):
            Tokenizer.from_folder(tmp_path, max_length=64)


def test_siglip_2_lower_cases_and_pads(tmp_path: Path) -> None:
    trained = tokenizers.Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = BpeTrainer(vocab_size=700, special_tokens=[*specials, *bytes_], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    theirs = transformers.Siglip2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]
    )
    theirs.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    theirs.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))  # Gemma's own: it keeps the case
    ours = Tokenizer.from_folder(
        tmp_path, max_length=64, rules=TextRules(fixed_length=True, lower_case=True)
    )
    for text in TEXTS:
        expected = theirs(
            text, truncation=True, max_length=64, padding="max_length", padding_side="right"
        )["input_ids"]
        assert ours([text]).ids[0].tolist() == expected, text
    assert ours(["A Cat"]).ids.tolist() == ours(["a cat"]).ids.tolist()


# Shapes, saving, refusals -----------------------------------------------------------------------


def test_a_batch_is_padded_to_its_longest_text_only(clip_vocabulary: Path) -> None:
    ours = Tokenizer.from_folder(clip_vocabulary, max_length=77)
    batch = ours(["cat", "a photo of a cat on a sofa"])
    assert batch.ids.dtype == torch.int64
    assert batch.mask.dtype == torch.bool
    assert batch.ids.shape[1] == int(batch.mask.sum(1).max()) < 77
    assert ours([]).ids.shape == (0, 0)


def test_what_is_saved_opens_here_and_in_transformers(
    clip_vocabulary: Path, tmp_path: Path
) -> None:
    ours = Tokenizer.from_folder(clip_vocabulary, max_length=20)
    ours.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert again.max_length == theirs.model_max_length == 20
    assert_equal(again, theirs, 20)
    assert again(TEXTS).ids.tolist() == ours(TEXTS).ids.tolist()


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="no tokenizer"):
        Tokenizer.from_folder(tmp_path, max_length=10)


def test_a_damaged_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(UnsupportedCheckpoint, match=r"tokenizer\.json could not be read"):
        Tokenizer.from_folder(tmp_path, max_length=10)


def test_merges_of_another_vocabulary_are_refused(clip_vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text((clip_vocabulary / "vocab.json").read_text())
    (tmp_path / "merges.txt").write_text("#version: 0.2\nqq zz</w>\n")
    with pytest.raises(UnsupportedCheckpoint, match="do not belong together"):
        Tokenizer.from_folder(tmp_path, max_length=10)


def test_a_vocabulary_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\ncat\n")
    with pytest.raises(UnsupportedCheckpoint, match=r"\[CLS\], \[SEP\]"):
        Tokenizer.from_folder(tmp_path, max_length=10)


def test_some_length_must_be_known(bert_vocabulary: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="how many tokens"):
        Tokenizer.from_folder(bert_vocabulary)
