"""The default vision-language model: how pictures become words, and its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.decode import open_image
from chiasm.media.image import Image
from chiasm.models import lora, small_vlm
from chiasm.models.catalog import pull
from chiasm.models.decoder import Decoder, DecoderConfig
from chiasm.models.efficientnet_lite import EfficientNetLite
from chiasm.models.generator import GeneratorCheckpoint, load_generator
from chiasm.models.namer import Namer, NamerConfig, Seen, WordProjector, WordProjectorConfig
from chiasm.models.quarters import QuartersReader
from chiasm.models.small_vlm import SmallVLM, SmallVLMConfig
from chiasm.settings import Settings

CACHE = Settings.load().cache_dir
WIDTH, IMAGE_ID = 16, 3


@pytest.fixture
def namer() -> Namer:
    """Two directions of a summary of three values; words 0 to 3, of which word 3 has two tokens."""
    sizes = NamerConfig(
        summary=3, directions=2, centres=2, classes=2, dimension=2, words=4, word_tokens=2, links=3
    )
    namer = Namer(sizes)
    namer.deviation.fill_(1)
    namer.reduce.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    namer.reach.fill_(1)
    namer.word_embeddings.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
    namer.word_ids.copy_(torch.tensor([[5, -1], [6, -1], [7, -1], [8, 9]]))
    namer.link_classes.copy_(torch.tensor([0, 1, 1]))
    namer.link_words.copy_(torch.tensor([0, 0, 2]))
    namer.weights.copy_(torch.tensor([1.0, 0.0, 0.01, 0.0, 1.0]))
    return namer


def test_a_word_is_near_by_its_embedding(namer: Namer) -> None:
    namer.centres.copy_(torch.tensor([[0.0, 0], [9, 9]]))
    namer.answers.copy_(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))  # the first centre says "word 1"
    seen = namer(torch.tensor([[0.0, 0.0, 5.0], [9.0, 9.0, 0.0]]).clamp(-6, 6), torch.zeros(2, 2))
    assert seen.words[0].argmax() == 1
    torch.testing.assert_close(seen.embedding[0], torch.tensor([0.0, 1.0]))
    # Cosines 0, 1, 0 and −1 by hand.
    expected = torch.tensor([0.0, 1.0, 0.0, -1.0]).log_softmax(dim=0)
    torch.testing.assert_close(seen.words[0], expected)


def test_classes_speak_for_their_names_and_for_what_they_are_kinds_of(namer: Namer) -> None:
    namer.weights[0], namer.weights[1] = 0.0, 1.0
    logits = torch.tensor([[0.2, 0.8]]).log()
    words = namer(torch.zeros(1, 3), logits).words[0]
    # Word 0 names both classes, word 2 the second, the others none.
    evidence = torch.tensor([1.0, 0.0, 0.8, 0.0])
    expected = ((evidence + 0.01) / 0.01).log().log_softmax(dim=0)
    torch.testing.assert_close(words, expected)


def test_the_best_words_stand_in_the_prompt_as_their_tokens(namer: Namer) -> None:
    sizes = WordProjectorConfig(whole=3, quarter=1, colours=2, counts=2)
    projector = WordProjector(sizes, namer_sizes(namer), WIDTH)
    torch.nn.init.constant_(projector.empty, -1.0)
    table = torch.randn(10, WIDTH)
    scores = torch.log_softmax(torch.tensor([0.0, 1.0, 2.0, 3.0]), dim=0).repeat(5, 1)
    seen = Seen(torch.zeros(5, 2), torch.zeros(5, 2), scores)
    tokens = projector(seen, namer, lambda ids: table[ids])
    assert tokens.shape == (3 + 3 + 4, WIDTH)
    # Whole: word 3 with both its tokens, then word 2. A quarter has no room for word 3.
    torch.testing.assert_close(tokens[3:6], table[[8, 9, 7]])
    torch.testing.assert_close(tokens[6:], table[[7, 7, 7, 7]])


def test_slots_that_no_word_fits_are_empty(namer: Namer) -> None:
    namer.word_ids.copy_(torch.tensor([[8, 9]] * 4))
    sizes = WordProjectorConfig(whole=3, quarter=1, colours=2, counts=2)
    projector = WordProjector(sizes, namer_sizes(namer), WIDTH)
    torch.nn.init.constant_(projector.empty, -1.0)
    table = torch.randn(10, WIDTH)
    seen = Seen(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5, 4))
    tokens = projector(seen, namer, lambda ids: table[ids])
    assert (tokens[5:] == -1).all()


def namer_sizes(namer: Namer) -> NamerConfig:
    words, longest = namer.word_ids.shape
    return NamerConfig(
        summary=3, directions=2, centres=2, classes=2, dimension=2, words=words,
        word_tokens=longest, links=3,
    )  # fmt: skip


# Pictures ---------------------------------------------------------------------------------------


def reader() -> QuartersReader:
    return QuartersReader(side=8, quarter=0.5, tokens=7, image_token="<image>")


def test_a_picture_is_looked_at_whole_and_in_quarters() -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20, 30:] = 200  # the second quarter
    pixels[20:, :30] = 90  # the third
    inputs = reader().prepare(Image(pixels, original_size=(60, 40)))
    assert inputs.pixels.shape == (5, 3, 8, 8)
    assert inputs.size == (60, 40)
    greys = inputs.pixels[1:].mean(dim=(1, 2, 3)) * 128 + 127
    torch.testing.assert_close(greys, torch.tensor([0.0, 200, 90, 0]), atol=4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (30, 2000)])
def test_every_picture_has_as_many_tokens(size: tuple[int, int]) -> None:
    assert reader().placeholder(*size).count("<image>") == reader().count(*size) == 7


# The network ------------------------------------------------------------------------------------


@pytest.fixture
def model() -> SmallVLM:
    torch.manual_seed(0)
    config = SmallVLMConfig(
        name="tiny",
        image_tower={"catalog": "efficientnet-lite0", "file": "", "scale": "lite0"},
        language_model={"catalog": "smollm2-135m-instruct"},
        namer=NamerConfig(
            summary=3344, directions=4, centres=3, classes=1000, dimension=5, words=6,
            word_tokens=1, links=2,
        ),
        projector=WordProjectorConfig(whole=2, quarter=1, colours=2, counts=2),
    )  # fmt: skip
    decoder = Decoder(
        DecoderConfig(
            vocab_size=40, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model = SmallVLM(EfficientNetLite().fold_batch_norms(), decoder, config, IMAGE_ID)
    with torch.no_grad():
        for name, buffer in model.namer.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.1)
            elif name == "word_ids":
                buffer.copy_(torch.arange(10, 16)[:, None])
    return model.eval().requires_grad_(False)


def looks() -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    return QuartersReader(side=64, quarter=0.6, tokens=9, image_token="<image>").prepare(
        Image(pixels, original_size=(70, 50))
    )


def test_features_stand_in_the_image_tokens_places_in_order(model: SmallVLM) -> None:
    features = model.encode_image(looks())
    assert features.shape == (9, WIDTH)
    ids = torch.tensor([[1, *[IMAGE_ID] * 9, 2]])
    embeddings = torch.cat([model.decoder.embed(torch.tensor([1])), features,
                            model.decoder.embed(torch.tensor([2]))])  # fmt: skip
    torch.testing.assert_close(model(ids, features), model.decoder(embeddings[None]))


def test_the_tower_by_itself_and_what_lies_behind_it_make_the_whole(model: SmallVLM) -> None:
    inputs = looks()
    split = model.project(model.tower_features(inputs.pixels), inputs.size)
    torch.testing.assert_close(split, model.encode_image(inputs))


def test_pictures_are_named_in_float32_for_a_decoder_in_bfloat16(model: SmallVLM) -> None:
    inputs = looks()
    expected = model.encode_image(inputs)
    model.decoder.to(torch.bfloat16)
    features = model.encode_image(inputs)
    assert features.dtype == torch.float32
    # Eight bits of the words' embeddings, of which each token is a sum.
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-3)


def test_vision_flops_are_what_torch_counts(model: SmallVLM) -> None:
    inputs = looks()
    with FlopCounterMode(display=False) as counter:
        model.encode_image(inputs)
    assert model.vision_flops(inputs) == pytest.approx(counter.get_total_flops(), rel=0.01)


# Files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> GeneratorCheckpoint:
    return load_generator("default-vlm", cache_dir=CACHE)


def hidden(found: GeneratorCheckpoint, picture: Path) -> torch.Tensor:
    assert found.images is not None
    inputs = found.images.prepare(open_image(picture))
    question = found.tokenizer.encode("What is this?")
    ids = torch.tensor(
        [[found.tokenizer.token_id("<image>")] * found.images.count(1, 1) + question]
    )
    model: Any = found.model
    with torch.no_grad():
        states: torch.Tensor = model(ids, model.encode_image(inputs))
    return states


def test_what_ships_is_small_and_comes_with_its_card() -> None:
    folder = small_vlm.SHIPPED
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25_000_000
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "CHAIR" in card
    assert "balanced accuracy" in card


@pytest.mark.weights
def test_it_takes_few_tokens_and_knows_its_image_token(shipped: GeneratorCheckpoint) -> None:
    assert shipped.images is not None
    assert shipped.images.count(640, 480) <= 49
    assert shipped.tokenizer.encode("<image>") == [shipped.model.image_token_id]  # type: ignore[union-attr]
    text = shipped.tokenizer.render([{"role": "user", "content": [{"type": "image"}]}])
    assert text == "<|im_start|>user\n<image><|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.weights
def test_saved_with_new_adapters_it_computes_the_same(
    shipped: GeneratorCheckpoint, tmp_path: Path
) -> None:
    picture = pull("scikit-image-photos", cache_dir=CACHE) / "chelsea.png"
    model: Any = load_generator("default-vlm", cache_dir=CACHE).model
    lora.add_lora(model, rank=2, targets=("q_proj", "gate_proj"))
    for _, layer in lora.lora_layers(model):
        torch.nn.init.normal_(layer.lora_b, std=0.02)
    small_vlm.save(tmp_path, model)
    again = load_generator(tmp_path, cache_dir=CACHE)
    before = GeneratorCheckpoint(model, shipped.images, shipped.tokenizer, "", "")
    expected = hidden(before, picture)
    torch.testing.assert_close(hidden(again, picture), expected, atol=2e-3, rtol=1e-3)
    assert (hidden(shipped, picture) - expected).abs().max() > 0.05
    assert (tmp_path / small_vlm.WEIGHTS).stat().st_size < 60_000_000  # no tower is among them


@pytest.mark.weights
@pytest.mark.parametrize("damage", ["cut", "missing tensor", "another shape", "no description"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_vlm.SHIPPED, folder)
    weights = folder / small_vlm.WEIGHTS
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no description":
        (folder / "config.json").write_text(json.dumps({"model_type": "small-vlm"}))
    else:
        tensors = load_file(weights)
        if damage == "missing tensor":
            del tensors["projector.places"]
        else:
            tensors["projector.places"] = tensors["projector.places"][1:].contiguous()
        save_file(tensors, weights)
    with pytest.raises(UnsupportedCheckpoint, match=str(folder)):
        load_generator(folder, cache_dir=CACHE)
