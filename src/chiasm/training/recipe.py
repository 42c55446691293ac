"""The recipe of contrastive training, section by section. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from chiasm.errors import ConfigurationError
from chiasm.training.data_recipe import DataRecipe


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Which network is trained, and which parts of it.

    start: a checkpoint to go on from: a name of the catalogue, hf:owner/name, or a folder.
    new: instead of `start`, the entries of a `config.json` (model_type clip or siglip, with its
        vision_config and text_config) for a network with random weights.
    tokenizer: for a new network, the checkpoint whose tokenizer it uses; unset learns one from the
        captions.
    vocabulary: tokens of a tokenizer that is learned.
    preprocessor: for a new network, entries of a `preprocessor_config.json` that differ from the
        usual: CLIP's resize and normalisation at the network's own image size.
    locked: parts that stay as they are, such as "image_tower" (LiT); a part's part works, too.
    adapters: for the default embedder, add a linear road beside each head, zero at first.
    patch_dropout: share of the patches that a ViT leaves out while it trains (FLIP). Half of them
        costs half, at a small loss in accuracy.
    """

    start: str = ""
    new: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    vocabulary: Annotated[int, Field(ge=300)] = 4096
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    locked: tuple[str, ...] = ()
    adapters: bool = False
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def check(self) -> None:
        """Raise ConfigurationError unless it says what to train."""
        if bool(self.start) == bool(self.new):
            raise ConfigurationError(
                "The recipe must say what to train: either model.start or model.new.",
                param="model",
            )


@dataclass(frozen=True, kw_only=True)
class BatchRecipe:
    """How many pairs meet in one loss.

    size: pairs, over all processes together; a loss's quality depends on it.
    micro_size: pairs a process embeds at once; smaller needs less memory and a second forward pass,
        with the same gradients (GradCache). 0 embeds a process's share in one go.
    """

    size: Annotated[int, Field(ge=2)] = 256
    micro_size: Annotated[int, Field(ge=0)] = 0

    def share(self, world_size: int) -> int:
        """Pairs of one process. Raises ConfigurationError if they cannot be shared evenly."""
        if self.size % world_size:
            raise ConfigurationError(
                f"batch.size, {self.size}, cannot be shared evenly by {world_size} processes.",
                param="batch.size",
            )
        return self.size // world_size


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """What is asked of the two towers.

    kind: softmax is CLIP's: each picture finds its caption among the batch's, and each caption its
        picture. sigmoid is SigLIP's: each pair by itself is right or wrong, which suits small
        batches.
    tile: rows and columns of similarities that are computed at once; memory grows with batch × tile
        instead of batch × batch. 0 holds the whole matrix.
    image_image: weight of the same loss between pictures of one group, for matching pictures with
        pictures. It needs `data.per_group = 2`, so that groups come in pairs.
    scale: first value of the scale on similarities (1 / temperature); unset keeps the model's own.
    largest_scale: where the scale is cut off (CLIP, section 2.5).
    bias: first value of the sigmoid loss's bias; unset keeps the model's own, or −10.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    tile: Annotated[int, Field(ge=0)] = 1024
    image_image: Annotated[float, Field(ge=0)] = 0.0
    scale: Annotated[float, Field(gt=0)] | None = None
    largest_scale: Annotated[float, Field(gt=0)] = 100.0
    bias: float | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """How parameters move.

    rate: the learning rate at its highest.
    warmup_steps: over which the rate rises from zero in a straight line.
    schedule: cosine falls to `final_rate` at the last step; constant stays.
    final_rate: the share of `rate` that is left at the end of a cosine.
    weight_decay: AdamW's, on matrices alone: no bias, norm, scale or position is pulled to zero.
    betas: AdamW's memory of the gradient and of its square.
    epsilon: what AdamW adds to the root it divides by.
    gradient_clip: longest gradient, over all parameters; 0 clips nothing.
    rate_factors: factors on the rate of the parameters whose names begin so, for fine-tuning:
        `{ "image_tower" = 0.1 }`. The longest name that fits holds.
    """

    rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    schedule: Literal["cosine", "constant"] = "cosine"
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    rate_factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoopRecipe:
    """How long and how.

    steps: updates of the weights.
    accumulate: batches whose gradients are averaged into one update. Each batch has its own loss;
        a larger contrastive batch than memory holds is `batch.micro_size`'s business.
    precision: of the networks' arithmetic; losses and weights are fp32 always. bf16 is for GPUs:
        most CPUs are slower with it.
    sharding: of weights over processes: ddp copies them to each, fsdp splits them (FSDP2).
    compile: let torch.compile fuse the transformer blocks. A minute at the start; pays on GPUs.
    average: decay of a moving average of the weights, which is then what is measured and written at
        the end; 0 for none.
    seed: of the weights, the order and the augmentation.
    snapshot_every: updates between snapshots; the last update always makes one.
    keep_snapshots: the newest so many stay on the disk.
    report_every: updates between reports.
    measure_every: updates between measurements; 0 measures at the end alone.
    """

    steps: Annotated[int, Field(ge=1)] = 10_000
    accumulate: Annotated[int, Field(ge=1)] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    sharding: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int = 0
    snapshot_every: Annotated[int, Field(ge=1)] = 1000
    keep_snapshots: Annotated[int, Field(ge=1)] = 2
    report_every: Annotated[int, Field(ge=1)] = 10
    measure_every: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class ZeroShotRecipe:
    """Classification by the names of classes, with pictures whose label is known.

    data: the pictures; their label column holds a class's name or its number in `classes`.
    prompts: a JSON or TOML file with `classes` (a list, or a table from a label to the names it
        goes by) and `templates` that hold `{}`.
    """

    data: DataRecipe = field(default_factory=DataRecipe)
    prompts: str = ""


@dataclass(frozen=True, kw_only=True)
class RetrievalRecipe:
    """Finding pictures by their captions, and captions by their pictures.

    data: pairs that are not trained on.
    limit: the first so many are used.
    """

    data: DataRecipe = field(default_factory=DataRecipe)
    limit: Annotated[int, Field(ge=1)] = 1000


@dataclass(frozen=True, kw_only=True)
class MeasureRecipe:
    """What is measured every `loop.measure_every` updates and at the end.

    zero_shot: accuracy of naming classes.
    retrieval: recall in both directions.
    """

    zero_shot: ZeroShotRecipe | None = None
    retrieval: RetrievalRecipe | None = None


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe:
    """A whole run.

    data: what it learns from.
    """

    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    batch: BatchRecipe = field(default_factory=BatchRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    loop: LoopRecipe = field(default_factory=LoopRecipe)
    measure: MeasureRecipe = field(default_factory=MeasureRecipe)
