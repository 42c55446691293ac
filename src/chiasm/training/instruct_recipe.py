"""The recipe of a vision-language model's training. Importing it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from chiasm.errors import ConfigurationError
from chiasm.training.conversations_recipe import ConversationsRecipe
from chiasm.training.recipe import LoopRecipe, OptimizerRecipe


@dataclass(frozen=True, kw_only=True)
class NewModelRecipe:
    """A new vision-language model, put together from two that are trained.

    image_tower: a CLIP or SigLIP checkpoint, whose image tower it takes.
    language_model: a Llama, Qwen2 or Qwen3 checkpoint with a chat template.
    projector: mlp is LLaVA-1.5's: two layers with a GELU between them.
    image_token: stands for pictures in the text; added to the vocabulary if it is not in it.
    feature_layer: after which of the tower's blocks it is read; −1 is the last, −2 the one before,
        which LLaVA found to keep more of the details.
    """

    image_tower: str = ""
    language_model: str = ""
    projector: Literal["mlp"] = "mlp"
    image_token: str = "<image>"
    feature_layer: int = -2


@dataclass(frozen=True, kw_only=True)
class InstructModelRecipe:
    """Which network is trained.

    start: a vision-language checkpoint to go on from: a name of the catalogue, hf:owner/name, or a
        folder, such as the model of an earlier stage.
    adapters: a folder of LoRA adapters in PEFT's layout to go on from, for `start`.
    new: instead of `start`, what to put a new one together from.
    """

    start: str = ""
    adapters: str = ""
    new: NewModelRecipe | None = None

    def check(self) -> None:
        """Raise ConfigurationError unless it says what to train."""
        if bool(self.start) == bool(self.new):
            raise ConfigurationError(
                "The recipe must say what to train: either model.start or model.new.",
                param="model",
            )
        if self.new and not (self.new.image_tower and self.new.language_model):
            raise ConfigurationError(
                "A new model needs model.new.image_tower and model.new.language_model.",
                param="model.new",
            )


@dataclass(frozen=True, kw_only=True)
class TuneRecipe:
    """Which parts learn, and how fast.

    stage: align trains the projector alone, so that pictures come to mean something to a language
        model that stays as it is; instruct trains projector and language model together.
    language_model: in the stage instruct: lora adds small matrices to the frozen weights and
        needs a fraction of the memory; full trains all weights; frozen none.
    projector: whether the projector learns in the stage instruct.
    image_tower: whether the image tower learns in the stage instruct.
    projector_rate: the projector's learning rate; unset, optimizer.rate.
    image_tower_rate: the image tower's; unset, optimizer.rate. A tenth of it is usual.
    """

    stage: Literal["align", "instruct"] = "instruct"
    language_model: Literal["lora", "full", "frozen"] = "lora"
    projector: bool = True
    image_tower: bool = False
    projector_rate: Annotated[float, Field(gt=0)] | None = None
    image_tower_rate: Annotated[float, Field(gt=0)] | None = None

    @property
    def language(self) -> Literal["lora", "full", "frozen"]:
        """What happens to the language model in this stage."""
        return "frozen" if self.stage == "align" else self.language_model

    @property
    def parts(self) -> frozenset[str]:
        """Those of projector, language_model and image_tower that learn."""
        wanted = {
            "projector": self.stage == "align" or self.projector,
            "language_model": self.language != "frozen",
            "image_tower": self.stage == "instruct" and self.image_tower,
        }
        return frozenset(name for name, yes in wanted.items() if yes)


@dataclass(frozen=True, kw_only=True)
class LoRARecipe:
    """The adapters, where the language model learns by LoRA (Hu et al. 2021).

    rank: of the added matrices.
    alpha: what they add is multiplied by alpha / rank.
    targets: the linear layers that get one, by the last part of their published names.
    dropout: share of an adapter's inputs that is left out while it trains.
    """

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class RowsRecipe:
    """How many rows one update learns from.

    size: rows, over all processes together: conversations, or rows packed with several.
    micro_size: rows a process computes at once. Their gradients are added up, each answer token
        weighing the same whichever part it is in; 0 computes a process's share in one go.
    """

    size: Annotated[int, Field(ge=1)] = 32
    micro_size: Annotated[int, Field(ge=0)] = 0

    def share(self, world_size: int) -> int:
        """Rows of one process. Raises ConfigurationError if they cannot be shared evenly."""
        if self.size % world_size:
            raise ConfigurationError(
                f"batch.size, {self.size}, cannot be shared evenly by {world_size} processes.",
                param="batch.size",
            )
        return self.size // world_size


@dataclass(frozen=True, kw_only=True)
class TuningOptimizerRecipe(OptimizerRecipe):
    # What fine-tuning of language models usually begins with; the meanings are the same.
    __doc__ = OptimizerRecipe.__doc__

    rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8


@dataclass(frozen=True, kw_only=True)
class FeaturesRecipe:
    """What a frozen image tower gives for each picture, kept on the disk.

    cache: a folder for it; unset computes it anew each time. Two bytes a number.
    """

    cache: str = ""


@dataclass(frozen=True, kw_only=True)
class AnswersRecipe:
    """Held-out conversations, of which the answers' loss is measured.

    data: conversations that are not trained on.
    limit: the first so many are used.
    """

    data: ConversationsRecipe = field(default_factory=ConversationsRecipe)
    limit: Annotated[int, Field(ge=1)] = 1000


@dataclass(frozen=True, kw_only=True)
class InstructMeasureRecipe:
    """What is measured every `loop.measure_every` updates and at the end.

    answers: the mean loss of held-out answers' tokens, and its exponential, the perplexity.
    """

    answers: AnswersRecipe | None = None


@dataclass(frozen=True, kw_only=True)
class InstructRecipe:
    """A whole run.

    data: what it learns from.
    """

    data: ConversationsRecipe = field(default_factory=ConversationsRecipe)
    model: InstructModelRecipe = field(default_factory=InstructModelRecipe)
    tune: TuneRecipe = field(default_factory=TuneRecipe)
    lora: LoRARecipe = field(default_factory=LoRARecipe)
    batch: RowsRecipe = field(default_factory=RowsRecipe)
    features: FeaturesRecipe = field(default_factory=FeaturesRecipe)
    optimizer: TuningOptimizerRecipe = field(default_factory=TuningOptimizerRecipe)
    loop: LoopRecipe = field(default_factory=LoopRecipe)
    measure: InstructMeasureRecipe = field(default_factory=InstructMeasureRecipe)

    def check(self) -> None:
        """Raise ConfigurationError for values that do not go together."""
        self.model.check()
        if self.loop.accumulate != 1:
            raise ConfigurationError(
                "loop.accumulate would give batches of many and of few answer tokens one weight.",
                hint="Set batch.size to all rows of an update, and batch.micro_size to those that "
                "are computed at once.",
                param="loop.accumulate",
            )
        if not self.tune.parts:
            raise ConfigurationError("Nothing is to be trained.", param="tune")
        if self.features.cache and "image_tower" in self.tune.parts:
            raise ConfigurationError(
                "The features of an image tower that learns cannot be kept.",
                hint="Leave features.cache out, or tune.image_tower.",
                param="features.cache",
            )
        if self.model.adapters and self.tune.language != "lora":
            raise ConfigurationError(
                "model.adapters are only gone on with by LoRA.",
                hint='Set tune.language_model = "lora".',
                param="model.adapters",
            )
