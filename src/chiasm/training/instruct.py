"""Training of a vision-language model, from a recipe to a model on the disk.

In two stages, after LLaVA (Liu et al. 2023, arXiv 2304.08485, section 4.2): `align` trains the
projector alone on pictures and captions; `instruct` trains projector and language model on
conversations. Read it from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import torch

from chiasm.media import Image
from chiasm.models.decoder import DecoderLayer
from chiasm.models.transformer import Block
from chiasm.training.answer_network import (
    AnswerNetwork,
    InstructTrainee,
    let_learn,
    part_of,
    unreached,
)
from chiasm.training.answers import ConversationEncoder
from chiasm.training.conversation_loader import ConversationLoader
from chiasm.training.conversations import open_conversations
from chiasm.training.distributed import World, spread
from chiasm.training.export import blueprint
from chiasm.training.instruct_recipe import InstructRecipe
from chiasm.training.instruct_start import Begun, begin, with_adapters, write_result
from chiasm.training.loop import Report, train
from chiasm.training.measuring_answers import Measure, MeasuringAnswers
from chiasm.training.picture_features import (
    FeatureCache,
    Loaded,
    picture_loader,
    tower_identity,
)
from chiasm.training.recipe import OptimizerRecipe
from chiasm.training.recipe_file import as_table
from chiasm.training.run import (
    MODEL,
    START,
    Trained,
    final_weights,
    first_alone,
    names_in,
    outcome,
    write_down,
)

ADAPTERS = "adapters"


def train_vlm(
    recipe: InstructRecipe,
    folder: Path,
    *,
    world: World,
    resume: bool = False,
    cache_dir: Path,
    offline: bool = False,
    catalogs: Sequence[Path] = (),
    watch: Callable[[int, Report], None] = lambda step, report: None,
    stop: Event | None = None,
    beginning: Callable[[], Begun] | None = None,
    measure_model: Measure | None = None,
) -> Trained:
    """Train as `recipe` says and write the model to `folder/model`.

    Adapters, if there are any, are merged into the model, and written by themselves to
    `folder/adapters` in PEFT's layout.

    folder, resume, watch, stop: as for `train_contrastive`.
    beginning: makes the network that is trained, instead of what `recipe.model` says. It must give
        the same one when the run goes on: what does not learn is in no snapshot.
    measure_model: further figures of the model itself, such as of answers that it gives; called
        whenever measuring is due.

    Raises ConfigurationError, TrainingDiverged, TrainingInterrupted, NoSpace, and what reading the
    data or the starting model raises. No error loses a snapshot.
    """
    if beginning is None:
        recipe.check()
    torch.manual_seed(recipe.loop.seed)

    # The model ----------------------------------------------------------------------------------
    def found() -> Begun:
        if beginning is not None:
            return beginning()
        return begin(
            recipe.model,
            kept=folder / START,
            seed=recipe.loop.seed,
            cache_dir=cache_dir,
            offline=offline,
            catalogs=catalogs,
        )

    begun = first_alone(world, found)
    torch.manual_seed(recipe.loop.seed)  # the adapters' first values are every process's
    with_adapters(begun.model, recipe)
    let_learn(begun.model, recipe.tune.parts, lora=recipe.tune.language == "lora")
    idle = _idle(begun)
    for name in unreached(begun.model, idle):
        begun.model.get_parameter(name).requires_grad_(False)
    trained = [name for name, each in begun.model.named_parameters() if each.requires_grad]
    empty = blueprint(begun.model)
    cache = None
    if recipe.features.cache:
        identity = tower_identity(begun.model.image_tower, begun.images)
        cache = FeatureCache(Path(recipe.features.cache), identity)
    answers = AnswerNetwork(begun.model, precision=recipe.loop.precision, cache=cache)
    if recipe.loop.compile:
        for module in answers.modules():
            if isinstance(module, Block | DecoderLayer):
                module.compile(dynamic=True)
    # The tower is gathered as a whole: how often it is called differs between processes.
    network = spread(answers.to(world.device), world, recipe.loop.sharding, (DecoderLayer,))
    trainee = InstructTrainee(network, world, micro_size=recipe.batch.micro_size, idle=idle)

    # The data -----------------------------------------------------------------------------------
    rows = recipe.batch.share(world.size)
    pad_id = _pad_id(begun)
    load = picture_loader(begun.images, recipe.data.limits, cache)
    loader = ConversationLoader(
        recipe.data,
        open_conversations(recipe.data),
        _encoder(begun, recipe.data.max_tokens, recipe),
        load,
        rows=rows,
        pad_id=pad_id,
        rank=world.rank,
        world_size=world.size,
        seed=recipe.loop.seed,
    )
    held_out = recipe.measure.answers
    measure = MeasuringAnswers(
        recipe.measure,
        network,
        _encoder(begun, (held_out.data if held_out else recipe.data).max_tokens, recipe),
        load,
        rows=recipe.batch.micro_size or rows,
        pad_id=pad_id,
        world=world,
        more=measure_model,
    )

    # The run ------------------------------------------------------------------------------------
    write_down(recipe, folder, world)
    average = train(
        trainee,
        loader,
        recipe.loop,
        _with_rates(recipe, trained),
        folder=folder,
        # Weights that do not learn are in no snapshot: they must be the same ones.
        recipe={**as_table(recipe), "starting_weights": begun.digest},
        world=world,
        samples_per_update=recipe.batch.size,
        resume=resume,
        measure=measure if measure else None,
        watch=watch,
        names_of=names_in,
        stop=stop,
        frozen_in_snapshots=False,
    )

    # The result ---------------------------------------------------------------------------------
    weights = final_weights(network, average)
    if world.first:
        write_result(folder / MODEL, folder / ADAPTERS, empty, weights, begun, trained)
    return outcome(folder, recipe.loop.steps, world, loader.skipped, shortened=loader.shortened)


def _encoder(begun: Begun, max_tokens: int, recipe: InstructRecipe) -> ConversationEncoder:
    context = begun.model.decoder.config.max_position_embeddings
    return ConversationEncoder(
        begun.tokenizer,
        begun.images,
        max_tokens=min(max_tokens, context),
        limits=recipe.data.limits,
    )


def _with_rates(recipe: InstructRecipe, trained: Sequence[str]) -> OptimizerRecipe:
    """The optimizer's recipe, with the rates of parts as factors on their parameters."""
    tune, optimizer = recipe.tune, recipe.optimizer
    factors: dict[str, float] = {}
    for part, rate in (("projector", tune.projector_rate), ("image_tower", tune.image_tower_rate)):
        if rate is not None:
            names = [name for name in trained if part_of(name) == part]
            factors |= dict.fromkeys((f"model.{name}" for name in names), rate / optimizer.rate)
    return replace(optimizer, rate_factors={**factors, **_prefixed(optimizer.rate_factors)})


def _prefixed(factors: Mapping[str, float]) -> dict[str, float]:
    return {f"model.{name}": factor for name, factor in factors.items()}


def _idle(begun: Begun) -> Loaded:
    """A grey picture."""
    grey = Image(np.full((32, 32, 3), 128, dtype=np.uint8), original_size=(32, 32))
    inputs = begun.images.prepare(grey)
    return Loaded(inputs.size, inputs=inputs)


def _pad_id(begun: Begun) -> int:
    """Any token will do that stands for no picture: nothing looks at padding."""
    return 0 if begun.model.image_token_id != 0 else 1
