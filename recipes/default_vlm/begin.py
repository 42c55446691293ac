"""Fit the namer and put the model together that training begins with.

    python recipes/default_vlm/begin.py

needs the default embedder's features (recipes/default_embedder/features.py). Three steps, each kept
in the work folder: the vocabulary; the regression, fitted without the concepts of some folds, which
the language model then meets as the strangers that held-out objects will be; and the five numbers
and the prior that rank the words, fitted on pictures of concepts that the regression did not see.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from borrowed import Cache, Picture, embedder, load_cache, phrases, regress, singular
from questions import NUMBERS
from scene import COLOURS, dominant_colour
from split import Split, fold, load, nouns, split
from torch import Tensor, nn
from wordnet import PHYSICAL, Nouns

from chiasm.models import catalog, checkpoint, small_vlm
from chiasm.models.chat import ChatTokenizer
from chiasm.models.decoder import Decoder
from chiasm.models.efficientnet_lite import CONFIGS, load_published
from chiasm.models.namer import NamerConfig, WordProjectorConfig
from chiasm.models.small_vlm import SmallVLM, SmallVLMConfig
from chiasm.settings import Settings

WORD = re.compile(r"[a-z][a-z '-]{2,24}")
TEMPLATES = ("{}", "a {}", "a photo of a {}")
WHOLE, QUARTER = 9, 4  # slots for words


def main() -> None:
    """Write the folder `start`."""
    torch.set_num_threads(2)
    settings = load()
    work = Path(settings["work"])
    words = nouns(settings)
    found = split(settings, words)
    folder = catalog_folder()
    tokenizer = ChatTokenizer.from_folder(folder)
    decoder = checkpoint.load_model(folder)
    assert isinstance(decoder, Decoder)
    cache = load_cache(embedder.load())
    synsets = classes(settings)
    vocabulary = once(
        work / "vocabulary.pt", lambda: make_vocabulary(found, words, synsets, tokenizer, decoder)
    )
    rules = settings["namer"]
    head = once(
        work / "head.pt",
        lambda: fitted_head(cache, without(found, set(rules["aside"]), rules["folds"])),
    )
    links = linked(vocabulary["words"], synsets, words)
    strangers = [i for i in found.parts["train"]
                 if fold(found.concepts[i].key, rules["folds"]) in rules["aside"]]  # fmt: skip
    model = assembled(decoder, head, vocabulary, links)
    fit_ranking(model, cache, found, strangers, vocabulary["words"], vocabulary["log_prior"])
    begin_projector(model, cache, found, vocabulary, tokenizer)
    small_vlm.save(work / "start", model, name="untrained")


def catalog_folder() -> Path:
    """Where the language model lies."""
    return checkpoint.locate("smollm2-135m-instruct", cache_dir=Settings.load().cache_dir)


def once(path: Path, make: Any) -> Any:
    """What `make` gives, kept in a file."""
    if not path.exists():
        began = time.monotonic()
        torch.save(make(), path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)
    return torch.load(path, weights_only=False)


def classes(settings: dict[str, Any]) -> list[str]:
    """The synsets of ImageNet's classes, in the classifier's order."""
    info = Path(embedder.load()["work"]) / "fetched/timm/data/_info"
    return [line[1:] for line in (info / "imagenet_synsets.txt").read_text().split()]


# The vocabulary ---------------------------------------------------------------------------------


def make_vocabulary(
    found: Split, words: Nouns, synsets: list[str], tokenizer: ChatTokenizer, decoder: Decoder
) -> dict[str, Any]:
    """Nouns for things that can be seen, their sentence embeddings, tokens and prior.

    ImageNet's classes and what they are kinds of; nouns that occur in the tagged text of WordNet's
    makers; nouns of which the language model's tokenizer has a token; and what the training
    pictures show. Held-out objects are in it only as far as these rules bring them.
    """
    names: dict[str, None] = {}

    def add(name: str) -> None:
        if WORD.fullmatch(name):
            names.setdefault(name)

    above = dict.fromkeys(up for key in synsets for up in words.above(key))
    for key in synsets:
        for name in words.synsets[key].names:
            add(name)
    for key in above:
        if words.synsets[key].kind in PHYSICAL:
            add(words.synsets[key].names[0])
    for name, meanings in words.meanings.items():
        key = words.physical(name)
        if key is None:
            continue
        usual = meanings.index(key) < 2 and words.times(name, key) >= 1
        own_token = (
            meanings[0] == key
            and name in words.synsets[key].names
            and re.fullmatch(r"[a-z]{3,16}", name)
            and len(tokenizer.encode(f" {name}")) == 1
        )
        if usual or own_token:
            add(name)
    for concept in found.concepts_of("train"):
        add(concept.name)
    listed = sorted(names)
    ids = [tokenizer.encode(f" {name}") for name in listed]
    _, text, sentences = embedder.towers()
    rows = embedder.encode_texts(
        text, sentences, [phrases.said(each, name) for name in listed for each in TEMPLATES]
    )
    return {
        "words": listed,
        "ids": ids,
        "embeddings": rows.view(len(listed), len(TEMPLATES), -1).mean(dim=1),
        "log_prior": log_prior(decoder, tokenizer, ids),
    }


@torch.no_grad()
def log_prior(decoder: Decoder, tokenizer: ChatTokenizer, ids: list[list[int]]) -> Tensor:
    """What the language model thinks of each word behind "A picture of a": [words]."""
    prompt = tokenizer.encode("A picture of a")
    scores = torch.zeros(len(ids))
    for length in sorted({len(each) for each in ids}):
        rows = [row for row, each in enumerate(ids) if len(each) == length]
        for start in range(0, len(rows), 64):
            chosen = rows[start : start + 64]
            texts = torch.tensor([prompt + ids[row] for row in chosen])
            hidden = decoder(decoder.embed(texts))[:, len(prompt) - 1 : -1]
            steps = decoder.logits(hidden).log_softmax(dim=-1)
            scores[chosen] = steps.gather(2, texts[:, len(prompt) :, None]).sum(dim=(1, 2))
    return scores


def linked(listed: list[str], synsets: list[str], words: Nouns) -> Tensor:
    """Pairs of a class and a word for it or for what it is a kind of: int [2, links]."""
    place = {word: number for number, word in enumerate(listed)}
    pairs = {
        (number, place[name])
        for number, key in enumerate(synsets)
        for up in words.above(key)
        for name in words.synsets[up].names
        if name in place
    }
    return torch.tensor(sorted(pairs), dtype=torch.int32).T.contiguous()


# The namer --------------------------------------------------------------------------------------


def without(found: Split, aside: set[int], folds: int) -> list[int]:
    """Pictures for the regression that neither show nor mention a concept of the folds `aside`."""
    shown = {i for i in found.parts["train"] if fold(found.concepts[i].key, folds) in aside}
    names = {found.concepts[i].name for i in shown}
    names |= {name.split()[-1] for name in names}
    return [i for i in found.namer if i not in shown and not mentioned(found.pictures[i]) & names]


def mentioned(picture: Picture) -> set[str]:
    """Words of a picture's caption and keywords, in the singular."""
    text = " ".join([picture.caption, *picture.keywords]).lower()
    return {singular(word) for word in re.findall(r"[^\W\d_]+", text)} | set(picture.objects)


def fitted_head(cache: Cache, chosen: list[int]) -> dict[str, Tensor]:
    """The default embedder's regression on pictures squashed, as this model looks at them."""
    rules = embedder.load()["heads"]["regression"] | {"stamp_views": {}}
    return regress(replace(cache, plain=cache.views[0]), chosen, rules).state_dict()


def assembled(
    decoder: Decoder, head: dict[str, Tensor], vocabulary: dict[str, Any], links: Tensor
) -> SmallVLM:
    """The model with the regression and the vocabulary in its namer."""
    listed, ids = vocabulary["words"], vocabulary["ids"]
    longest = max(map(len, ids))
    namer = NamerConfig(
        summary=head["mean"].shape[0],
        directions=head["reduce.weight"].shape[0],
        centres=head["centres"].shape[0],
        classes=head["class_embeddings"].shape[0],
        dimension=head["class_embeddings"].shape[1],
        words=len(listed),
        word_tokens=longest,
        links=links.shape[1],
    )
    tower = {"catalog": "efficientnet-lite0", "file": "efficientnet-lite0-57934424.pth",
             "scale": "lite0"}  # fmt: skip
    config = SmallVLMConfig(
        name="untrained",
        image_tower=tower,
        language_model={"catalog": "smollm2-135m-instruct"},
        namer=namer,
        projector=WordProjectorConfig(
            whole=WHOLE, quarter=QUARTER, colours=len(COLOURS), counts=len(NUMBERS)
        ),
    )
    folder = catalog.pull(tower["catalog"], cache_dir=Settings.load().cache_dir)
    image_tower = load_published(folder / tower["file"], CONFIGS[tower["scale"]])
    model = SmallVLM(image_tower.fold_batch_norms(), decoder, config, 0).requires_grad_(False)
    model.eval()
    put_head(model, head)
    embeddings = vocabulary["embeddings"]
    model.namer.word_embeddings.copy_(F.normalize(embeddings - embeddings.mean(dim=0), dim=-1))
    model.namer.word_ids.copy_(
        torch.tensor([each + [-1] * (longest - len(each)) for each in ids], dtype=torch.int32)
    )
    model.namer.link_classes.copy_(links[0])
    model.namer.link_words.copy_(links[1])
    return model


def put_head(model: SmallVLM, head: dict[str, Tensor]) -> None:
    """The regression's tensors into the namer."""
    ours = {"mean": "mean", "deviation": "deviation", "reduce.weight": "reduce",
            "centres": "centres", "reach": "reach", "answers.weight": "answers",
            "answers.bias": "offset", "class_embeddings": "class_embeddings"}  # fmt: skip
    for theirs, name in ours.items():
        getattr(model.namer, name).copy_(head[theirs])


def fit_ranking(
    model: SmallVLM, cache: Cache, found: Split, strangers: list[int], listed: list[str],
    log_prior: Tensor,
) -> None:  # fmt: skip
    """The weights and the prior, by the likelihood of any accepted name of strange pictures."""
    rows, owners = [], []
    for number in range(3):  # plain, and two composites
        have = [i for i in strangers if cache.has_view[number, i]]
        rows.append(cache.views[number][have].float())
        owners += have
    summaries = torch.cat(rows)
    logits = cache.logits(summaries)
    place = {word: number for number, word in enumerate(listed)}
    right = torch.zeros(len(owners), len(listed), dtype=torch.bool)
    for row, i in enumerate(owners):
        right[row, [place[name] for name in found.concepts[i].accepted if name in place]] = True
    sources = [found.pictures[i].source for i in owners]
    weights = torch.tensor([3.0 if source == "stamp" else 1.0 for source in sources])
    namer = model.namer
    in_classes = torch.zeros(len(listed))
    in_classes[namer.link_words.long()] = 1
    reach = torch.bincount(namer.link_words.long(), minlength=len(listed)).clamp_min(1).log()
    lengths = (namer.word_ids >= 0).sum(dim=1).float()
    facts = torch.stack([log_prior, in_classes, reach, lengths], dim=1)  # [words, 4]
    free = nn.Parameter(torch.tensor([11.0, 0.7, -2.0, 1.2, 1.8]))
    effects = nn.Parameter(torch.tensor([0.3, 1.0, -0.5, -0.3]))
    optimizer = torch.optim.Adam([free, effects], lr=0.05)
    torch.manual_seed(0)
    usable = right.any(dim=1).nonzero()[:, 0]
    for step in range(121):
        chosen = usable[torch.randint(len(usable), (192,))]
        namer.weights = torch.cat([free[:2], free[2:3].exp() * 1e-2, free[3:]])
        namer.prior = facts @ effects
        scores = namer(summaries[chosen], logits[chosen]).words
        misses = -scores.masked_fill(~right[chosen], -torch.inf).logsumexp(dim=1)
        loss = (misses * weights[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 0:
            print(
                f"ranking, step {step}: {loss.item():.3f}",
                free.tolist(),
                effects.tolist(),
                flush=True,
            )
    namer.weights, namer.prior = namer.weights.detach(), namer.prior.detach()
    with torch.no_grad():
        scores = torch.cat([namer(summaries[a : a + 256], logits[a : a + 256]).words
                            for a in range(0, len(summaries), 256)])  # fmt: skip
    hits = right.gather(1, scores.topk(10, dim=1).indices).float()
    plain = torch.tensor(
        [k < sum(cache.has_view[0, i].item() for i in strangers) for k in range(len(owners))]
    )
    for source in ("stamp", "openclipart", "noto", "fluent"):
        mine = torch.tensor([each == source for each in sources])
        for what, which in (("plain", plain), ("composite", ~plain)):
            values = [hits[mine & which][:, :k].amax(dim=1).mean().item() for k in (1, 3, 5, 10)]
            print(
                f"{source}, {what}: named among 1, 3, 5, 10 words:", np.round(values, 3), flush=True
            )


# The projector ----------------------------------------------------------------------------------


def begin_projector(
    model: SmallVLM, cache: Cache, found: Split, vocabulary: dict[str, Any],
    tokenizer: ChatTokenizer,
) -> None:  # fmt: skip
    """First values: words' sentence embeddings onto their tokens, and colours by regression."""
    namer, projector = model.namer, model.projector
    embed = model.decoder.embed
    tokens = torch.stack([embed(torch.tensor(ids)).mean(dim=0) for ids in vocabulary["ids"]])
    sentences = namer.word_embeddings
    matrix = sentences.T @ sentences + 5.0 * torch.eye(sentences.shape[1])
    onto = torch.linalg.solve(matrix, sentences.T @ (tokens - tokens.mean(dim=0)))
    torch.manual_seed(0)
    directions = namer.reduce.shape[0]
    projector.seen.weight.zero_()
    projector.seen.weight[:, directions:] = 2.0 * onto.T
    projector.seen.weight[:, :directions].normal_(std=0.02 * float(tokens.std()))
    projector.seen.bias.copy_(tokens.mean(dim=0))
    projector.colour_ids.copy_(ids_of(COLOURS, tokenizer))
    projector.count_ids.copy_(ids_of(NUMBERS, tokenizer))
    projector.empty.copy_(embed(torch.tensor(tokenizer.encode(","))).mean(dim=0))
    projector.count.weight.zero_()
    projector.count.bias.zero_()
    # Colours, from the views of the pictures that the namer was fitted on.
    labels = {i: dominant_colour(found.pictures[i].open()) for i in found.parts["train"]}
    coloured = [i for i, colour in labels.items() if colour]
    summaries, wanted = [], []
    for number in (0, 1, 2):
        have = [i for i in coloured if cache.has_view[number, i]]
        summaries.append(cache.views[number][have].float())
        wanted += [COLOURS.index(labels[i]) for i in have]
    standard = ((torch.cat(summaries) - namer.mean) / namer.deviation).clamp(-6, 6)
    inputs, targets = standard @ namer.reduce.T, torch.tensor(wanted)
    layer = nn.Linear(directions, len(COLOURS))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02, weight_decay=1e-4)
    for step in range(301):
        loss = F.cross_entropy(layer(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            right = (layer(inputs).argmax(dim=1) == targets).float().mean().item()
            print(f"colours, step {step}: {loss.item():.3f}, {right:.3f} right", flush=True)
    projector.colour.weight.copy_(layer.weight.detach())
    projector.colour.bias.copy_(layer.bias.detach())


def ids_of(words: tuple[str, ...], tokenizer: ChatTokenizer) -> Tensor:
    """The first token of each."""
    return torch.tensor([tokenizer.encode(f" {word}")[0] for word in words], dtype=torch.int32)


if __name__ == "__main__":
    main()
