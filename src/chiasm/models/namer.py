"""Words for what an image tower sees, and words as a language model's tokens.

`Namer` ranks the nouns of a vocabulary. Three things count: how near a word's sentence embedding
lies to the one that is predicted from the tower's feature maps, by a regression (DeViSE, Frome et
al. 2013; the image head of `aligned.py`) and by a linear map that tells familiar things apart; the
probability that the tower's own classifier gives to classes of that name or to kinds of it, by
WordNet's hierarchy; and how usual the word is.

`WordProjector` writes the best words for each look into the prompt, as the language model's own
token embeddings (compare ConSE, Norouzi et al. 2014, arXiv:1312.5650, which stops at the mixture).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.models.flops import product_flops
from chiasm.models.quarters import LOOKS


@dataclass(frozen=True, kw_only=True)
class NamerConfig:
    """Sizes.

    summary: values that describe a look, see `aligned.summary`. directions: what they are reduced
    to. centres: of the regression. classes: of the tower's classifier. dimension: of sentence
    embeddings. words: in the vocabulary; word_tokens: of the longest one. links: pairs of a class
    and a word that names it or something that it is a kind of. direct: whether a linear map from
    the summary is added to the regression's answer.
    """

    summary: int
    directions: int
    centres: int
    classes: int
    dimension: int
    words: int
    word_tokens: int
    links: int
    direct: bool = False


@dataclass(frozen=True)
class Seen:
    """Of each look: its directions, its sentence embedding, and the words' log-probabilities."""

    directions: Tensor  # [looks, directions]
    embedding: Tensor  # [looks, dimension]
    words: Tensor  # [looks, words]


class Namer(nn.Module):
    """All of it is fitted in closed form or by a handful of numbers, and none of it is tuned."""

    mean: Tensor
    deviation: Tensor
    reduce: Tensor
    centres: Tensor
    reach: Tensor
    answers: Tensor
    offset: Tensor
    class_embeddings: Tensor
    word_embeddings: Tensor
    word_ids: Tensor
    prior: Tensor
    link_classes: Tensor
    link_words: Tensor
    weights: Tensor
    direct: Tensor

    def __init__(self, config: NamerConfig) -> None:
        super().__init__()
        self.config = config
        shapes = {
            "mean": (config.summary,),
            "deviation": (config.summary,),
            "reduce": (config.directions, config.summary),
            "centres": (config.centres, config.directions),
            "reach": (),
            "answers": (config.dimension, config.centres),
            "offset": (config.dimension,),
            "class_embeddings": (config.classes, config.dimension),
            "word_embeddings": (config.words, config.dimension),  # centred, unit length
            "prior": (config.words,),
            # Of: cosines, class probabilities, their floor, class share, class temperature.
            "weights": (5,),
        }
        if config.direct:
            shapes["direct"] = (config.dimension, config.summary)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        for name, shape in {
            "word_ids": (config.words, config.word_tokens),  # −1 behind a word's end
            "link_classes": (config.links,),
            "link_words": (config.links,),
        }.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))

    def forward(self, summary: Tensor, logits: Tensor) -> Seen:
        """summary: [looks, values]; logits: [looks, classes]."""
        cosine, class_weight, floor, share, temperature = self.weights
        standard = ((summary - self.mean) / self.deviation).clamp(-6, 6)
        directions = standard @ self.reduce.T  # [looks, directions]
        distance = (
            directions.square().sum(dim=1, keepdim=True)
            + self.centres.square().sum(dim=1)
            - 2 * directions @ self.centres.T
        )
        nearness = torch.exp(-distance.clamp_min(0) / self.reach)  # [looks, centres]
        probabilities = (logits / temperature).softmax(dim=-1)
        embedding = nearness @ self.answers.T + self.offset
        embedding = embedding + share * (probabilities @ self.class_embeddings)
        if self.config.direct:
            embedding = embedding + standard @ self.direct.T
        embedding = F.normalize(embedding, dim=-1)
        named = torch.zeros_like(self.prior).expand(len(summary), -1).clone()  # [looks, words]
        named.index_add_(1, self.link_words, probabilities[:, self.link_classes])
        evidence = torch.where(named > 0, (named + floor).log() - floor.log(), 0.0)
        scores = cosine * (embedding @ self.word_embeddings.T) + class_weight * evidence
        return Seen(directions, embedding, (scores + self.prior).log_softmax(dim=-1))

    def flops(self) -> int:
        """Operations for one look."""
        matrices = [self.reduce, self.centres, self.answers, self.class_embeddings.T,
                    self.word_embeddings]  # fmt: skip
        if self.config.direct:
            matrices.append(self.direct)
        return sum(product_flops(1, *reversed(each.shape)) for each in matrices)


@dataclass(frozen=True, kw_only=True)
class WordProjectorConfig:
    """Tokens of a picture.

    whole: for words about the whole picture; quarter: about each quarter. colours, counts: how
    many names of colours and of numbers the two attribute tokens choose from.
    """

    whole: int
    quarter: int
    colours: int
    counts: int

    @property
    def tokens(self) -> int:
        """Image tokens of a picture: one for what was seen, colour, number, then the words."""
        return 3 + self.whole + (LOOKS - 1) * self.quarter


class WordProjector(nn.Module):
    """What was seen → the language model's image tokens."""

    colour_ids: Tensor
    count_ids: Tensor

    def __init__(self, config: WordProjectorConfig, namer: NamerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.seen = nn.Linear(namer.directions + namer.dimension, width)
        self.colour = nn.Linear(namer.directions, config.colours)
        self.count = nn.Linear(LOOKS * namer.directions, config.counts)
        self.places = nn.Parameter(torch.zeros(config.tokens, width))
        self.word_start = nn.Parameter(torch.zeros(width))
        self.doubt = nn.Parameter(torch.zeros(width))
        self.empty = nn.Parameter(torch.zeros(width))
        self.register_buffer("colour_ids", torch.zeros(config.colours, dtype=torch.int32))
        self.register_buffer("count_ids", torch.zeros(config.counts, dtype=torch.int32))

    def forward(self, seen: Seen, namer: Namer, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """A picture's looks → [tokens, width]. embed: the language model's, of token ids."""
        whole = torch.cat([seen.directions[0], seen.embedding[0]])
        colour = self.colour(seen.directions[0]).softmax(dim=-1)
        count = self.count(seen.directions.flatten()).softmax(dim=-1)
        rows = [
            self.seen(whole)[None],
            (colour @ embed(self.colour_ids.long()))[None],
            (count @ embed(self.count_ids.long()))[None],
        ]
        for look, scores in enumerate(seen.words):
            rows.append(self._words(scores, look, namer, embed))
        return torch.cat(rows) + self.places

    def chosen(self, scores: Tensor, look: int, namer: Namer) -> list[tuple[float, list[int]]]:
        """The best words for a look that its slots hold: log-probability and token ids of each."""
        slots = self.config.quarter if look else self.config.whole
        best = scores.topk(min(3 * slots, len(scores)))
        found: list[tuple[float, list[int]]] = []
        for score, padded in zip(
            best.values.tolist(), namer.word_ids[best.indices].tolist(), strict=True
        ):
            word = [token for token in padded if token >= 0]
            if len(word) <= slots:
                found.append((score, word))
                slots -= len(word)
        return found

    def _words(
        self, scores: Tensor, look: int, namer: Namer, embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The chosen words, one after another: [slots, width]."""
        found = self.chosen(scores, look, namer)
        ids = [token for _, word in found for token in word]
        starts = [float(place == 0) for _, word in found for place in range(len(word))]
        doubts = [-score / 4 for score, word in found for _ in word]
        slots = self.config.quarter if look else self.config.whole
        device = scores.device
        rows = embed(torch.tensor(ids, dtype=torch.long, device=device))  # [tokens, width]
        rows = rows + torch.tensor(starts, device=device)[:, None] * self.word_start
        rows = rows + torch.tensor(doubts, device=device)[:, None] * self.doubt
        return torch.cat([rows, self.empty.expand(slots - len(ids), -1)])

    def flops(self) -> int:
        """Operations for one picture."""
        layers = (self.seen, self.colour, self.count)
        return sum(product_flops(1, each.in_features, each.out_features) for each in layers)
