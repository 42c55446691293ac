"""What a run measures on the way, on data it does not learn from: zero-shot and retrieval."""

from __future__ import annotations

import json
import logging
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from chiasm.errors import ConfigurationError, ImageError, UnusableData
from chiasm.evaluation.retrieval import both_directions
from chiasm.evaluation.zero_shot import class_embeddings, classify
from chiasm.media import open_image
from chiasm.models.preprocess import AnyPreprocessor
from chiasm.models.tokenizer import Tokenizer
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.distributed import World
from chiasm.training.in_order import samples_in_order
from chiasm.training.recipe import MeasureRecipe, RetrievalRecipe, ZeroShotRecipe
from chiasm.training.samples import Sample

log = logging.getLogger("chiasm.training")
T = TypeVar("T")

_AT_ONCE = 128
_DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Prompts:
    """How classes are asked for. classes: label → the names it goes by. templates: with `{}`."""

    classes: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...]


def read_prompts(path: Path) -> Prompts:
    """A TOML or JSON file with `classes` and `templates`. Raises ConfigurationError."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no prompts file {path}.") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ConfigurationError(f"{path} is neither valid TOML nor valid JSON.") from None
    classes, templates = content.get("classes"), content.get("templates")
    if isinstance(classes, list):
        classes = {name: [name] for name in classes}
    if not classes or not templates:
        raise ConfigurationError(f"{path} needs `classes` and `templates`.")
    named = {
        str(label): (names,) if isinstance(names, str) else tuple(names)
        for label, names in classes.items()
    }
    return Prompts(named, tuple(templates))


class Measuring:
    """Call it to measure the network as it is. False where nothing is to be measured."""

    def __init__(
        self,
        recipe: MeasureRecipe,
        network: Any,
        preprocessor: AnyPreprocessor,
        tokenizer: Tokenizer,
        *,
        world: World,
    ) -> None:
        self._recipe = recipe
        self._network = network
        self._preprocessor = preprocessor
        self._tokenizer = tokenizer
        self._world = world

    def __bool__(self) -> bool:
        return bool(self._recipe.zero_shot or self._recipe.retrieval)

    def __call__(self) -> dict[str, float]:
        """Figures by name; the same on every rank."""
        # The generator is left as it was found: measuring must not change the run.
        before = torch.get_rng_state()
        self._network.eval()
        figures: dict[str, float] = {}
        with torch.no_grad():
            if self._recipe.zero_shot:
                figures |= self._zero_shot(self._recipe.zero_shot)
            if self._recipe.retrieval:
                figures |= self._retrieval(self._recipe.retrieval)
        self._network.train()
        torch.set_rng_state(before)
        return figures

    def _zero_shot(self, recipe: ZeroShotRecipe) -> dict[str, float]:
        prompts = read_prompts(Path(recipe.prompts))
        # No caption is read here; the label stands in, so that pictures without one count.
        columns = recipe.data.columns
        labelled = replace(columns, captions=(columns.label or "label",))
        images, samples = self._embedded_images(replace(recipe.data, columns=labelled), None)
        numbers = {label: number for number, label in enumerate(prompts.classes)}
        labels = [_number(sample, numbers, recipe) for sample in samples]
        names = [name for each in prompts.classes.values() for name in each]
        owners = [number for number, each in enumerate(prompts.classes.values()) for _ in each]
        rows = class_embeddings(self._encode_texts, names, prompts.templates)  # [names, d]
        # A class of several names is their mean.
        classes = F.normalize(
            torch.zeros(len(numbers), rows.shape[1]).index_add_(0, torch.tensor(owners), rows),
            dim=-1,
        )
        found = classify(images, classes, torch.tensor(labels))
        return {"zero_shot_accuracy": found.accuracy(), "zero_shot_top5": found.accuracy(5)}

    def _retrieval(self, recipe: RetrievalRecipe) -> dict[str, float]:
        images, samples = self._embedded_images(recipe.data, recipe.limit)
        captions = [caption for sample in samples for caption in sample.captions]
        owners = [number for number, sample in enumerate(samples) for _ in sample.captions]
        texts = torch.cat(
            [
                self._encode_texts(captions[start : start + _AT_ONCE])
                for start in range(0, len(captions), _AT_ONCE)
            ]
        )
        to_text, to_image = both_directions(images, texts, range(len(samples)), owners)
        return {
            f"{direction}_recall@{depth}": float(ranking.found(depth).mean())
            for direction, ranking in (("image_to_text", to_text), ("text_to_image", to_image))
            for depth in _DEPTHS
        }

    def _encode_texts(self, texts: list[str]) -> Tensor:
        """Unit length, float32 [texts, dimension], on the CPU."""
        tokens = self._tokenizer(texts).to(self._world.device)
        rows: Tensor = self._network(ids=tokens.ids, mask=tokens.mask).texts
        return rows.cpu()

    def _embedded_images(self, data: DataRecipe, limit: int | None) -> tuple[Tensor, list[Sample]]:
        """Unit length, float32 [samples, dimension], on the CPU, and what was embedded.

        The processes take turns over the batches. Under FSDP all must call the network equally
        often, so in a last round with fewer batches some repeat another's and keep nothing.
        """
        found: list[tuple[int, Tensor, list[Sample]]] = []
        stream = _batched(samples_in_order(data, limit), _AT_ONCE)
        for number, batches in enumerate(_batched(stream, self._world.size)):
            rank = min(self._world.rank, len(batches) - 1)
            pixels, samples = self._opened(batches[rank], data)
            rows = self._network(pixels=pixels.to(self._world.device)).images
            if rank == self._world.rank:
                found.append((number * self._world.size + rank, rows.cpu(), samples))
        everything = sorted(
            (each for part in self._world.gather(found) for each in part), key=lambda each: each[0]
        )
        if not everything:
            raise UnusableData(f"There is nothing to measure with in {data.source}.")
        rows = torch.cat([each for _, each, _ in everything])
        return rows, [sample for _, _, samples in everything for sample in samples]

    def _opened(self, samples: Sequence[Sample], data: DataRecipe) -> tuple[Any, list[Sample]]:
        """Pixels as the network reads them, and the samples, without their pictures."""
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            fitted = list(pool.map(lambda sample: self._fitted(sample, data), samples))
        good = [
            (pixels, sample)
            for pixels, sample in zip(fitted, samples, strict=True)
            if pixels is not None
        ]
        if not good:
            raise UnusableData(
                f"None of {len(samples)} pictures beginning with {samples[0].key} can be opened."
            )
        kept = [replace(sample, picture=b"") for _, sample in good]
        return self._preprocessor.batch([pixels for pixels, _ in good]), kept

    def _fitted(self, sample: Sample, data: DataRecipe) -> Any:
        try:
            image = open_image(
                sample.picture,
                limits=data.limits,
                shortest_side=self._preprocessor.decode_side,
                name=sample.key,
            )
        except ImageError as error:
            log.warning("Not measured: %s", error)
            return None
        return self._preprocessor.fit(image)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _number(sample: Sample, numbers: Mapping[str, int], recipe: ZeroShotRecipe) -> int:
    """The class of a sample, whose label may be a class's name or its number."""
    label = sample.label
    if label is not None and label in numbers:
        return numbers[label]
    if label is not None and label.isdecimal() and int(label) < len(numbers):
        return int(label)
    raise UnusableData(
        f"{sample.key} has the label {label!r}, which is no class of {recipe.prompts}.",
        hint="Name the label column in measure.zero_shot.data.columns.label.",
    )
