"""The default embedder: two pretrained towers, locked, and two small heads trained on top.

The plan is LiT's (Zhai et al. 2022, arXiv:2111.07991) with both towers locked: EfficientNet-Lite0
sees, MiniLM reads, and only the heads learned to meet, in `recipes/default_embedder`. The image
head has two roads. One regresses from what the tower saw onto sentence embeddings, as in DeViSE
(Frome et al. 2013). The other weighs the embeddings of the 1000 ImageNet classes' names by their
probabilities, as in ConSE (Norouzi et al. 2014, arXiv:1312.5650), so that what the tower already
knows by name needs no alignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models import built_in, catalog, checkpoint
from chiasm.models.bert import BERT
from chiasm.models.efficientnet_lite import CONFIGS, FEATURES, EfficientNetLite, load_published
from chiasm.models.json_files import read_json
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.skeleton import without_weights
from chiasm.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from chiasm.models.catalog import Progress

SHIPPED = Path(str(files("chiasm.models") / "default_embedder"))
CONFIG = "config.json"
HEADS = "heads.safetensors"
MODEL_TYPE = "aligned-dual-encoder"
IMAGE_TOWER, TEXT_TOWER = "image_tower", "text_tower"


@dataclass(frozen=True)
class HeadsConfig:
    """Sizes of the heads.

    summary: values that describe a picture, see `summary`. directions: what they are reduced to.
    centres: of the regression. classes: of the image tower's classifier. adapters: whether each
    head has a linear residual to be fine-tuned.
    """

    summary: int
    directions: int
    centres: int
    classes: int
    dimension: int
    adapters: bool = False


class ImageHead(nn.Module):
    """A picture's summary and its class logits → the shared space.

    The regression is a radial one: every centre pulls towards its own answer, by how near the
    picture is to it. All pictures' answers are shifted by one offset, so that their mean is the
    texts' mean, zero: without it the gap between the modalities makes some pictures everybody's
    neighbours.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.summary))
        self.register_buffer("deviation", torch.ones(config.summary))
        self.reduce = nn.Linear(config.summary, config.directions, bias=False)
        self.centres = nn.Parameter(torch.zeros(config.centres, config.directions))
        self.reach = nn.Parameter(torch.ones(()))
        self.answers = nn.Linear(config.centres, config.dimension)
        self.class_embeddings = nn.Parameter(torch.zeros(config.classes, config.dimension))
        self.class_share = nn.Parameter(torch.ones(()))
        self.class_temperature = nn.Parameter(torch.ones(()))
        # Against classes that the tower sees in everything: priors other than ImageNet's (Saerens
        # et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities").
        self.class_bias = nn.Parameter(torch.zeros(config.classes))
        self.adapter = _adapter(config.summary, config) if config.adapters else None

    def forward(self, summary: Tensor, logits: Tensor) -> Tensor:
        """summary: [batch, values]; logits: [batch, classes] → [batch, dimension]."""
        standard = self.standardised(summary)  # [batch, values]
        nearness = self.nearness(self.reduce(standard))  # [batch, centres]
        scores = logits / self.class_temperature + self.class_bias  # [batch, classes]
        named = scores.softmax(dim=-1) @ self.class_embeddings  # [batch, dimension]
        embedding: Tensor = self.answers(nearness) + self.class_share * named
        if self.adapter is None:
            return embedding
        # Brought to about unit length, as a sentence is: one learning rate then suits both heads.
        residual: Tensor = self.adapter(standard / standard.shape[1] ** 0.5)
        return embedding + residual

    def standardised(self, summary: Tensor) -> Tensor:
        """Every value in deviations from its mean: [batch, values] → [batch, values]."""
        # Cut at six deviations: one odd value must not carry a picture away from every centre.
        return ((summary - self.mean) / self.deviation).clamp(-6, 6)

    def reduced(self, summary: Tensor) -> Tensor:
        """[batch, values] → [batch, directions]."""
        directions: Tensor = self.reduce(self.standardised(summary))
        return directions

    def nearness(self, reduced: Tensor) -> Tensor:
        """exp(−distance² / reach) to every centre: [batch, directions] → [batch, centres]."""
        distance = (
            reduced.square().sum(dim=1, keepdim=True)
            + self.centres.square().sum(dim=1)
            - 2 * reduced @ self.centres.T
        )
        return torch.exp(-distance.clamp_min(0) / self.reach)


class TextHead(nn.Module):
    """A sentence embedding, centred. Anything that bends it more makes unseen words worse."""

    mean: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.dimension))
        self.adapter = _adapter(config.dimension, config) if config.adapters else None

    def forward(self, sentence: Tensor) -> Tensor:
        """sentence: [batch, dimension], unit length → [batch, dimension]."""
        centred = sentence - self.mean
        return centred if self.adapter is None else centred + self.adapter(centred)


def _adapter(width: int, config: HeadsConfig) -> nn.Linear:
    """A linear residual that adds nothing until it is trained: it begins at zero."""
    adapter = nn.Linear(width, config.dimension, bias=False)
    nn.init.zeros_(adapter.weight)
    return adapter


class AlignedDualEncoder(nn.Module):
    """Pictures and texts in one space, by pretrained towers and trained heads.

    description: the entries of the `config.json` that it was read from. origins: for each tower
    that was read from the catalogue's files and not from the heads' own, where those lie.
    """

    def __init__(
        self, image_tower: EfficientNetLite, text_tower: BERT, config: HeadsConfig
    ) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_head = ImageHead(config)
        self.text_head = TextHead(config)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.dimension = config.dimension
        self.description: dict[str, Any] = {}
        self.origins: dict[str, Path] = {}

    def encode_image(self, pixels: Tensor) -> Tensor:
        """float32 [batch, 3, height, width] → [batch, dimension], not normalised."""
        described = summary(self.image_tower, pixels)
        logits = self.image_tower.classifier(head_mean(described))
        embedding: Tensor = self.image_head(described, logits)
        return embedding

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """int64 and bool [batch, tokens] → [batch, dimension], not normalised."""
        tokens = self.text_tower(ids, mask)  # [batch, tokens, text width]
        embedding: Tensor = self.text_head(F.normalize(mean_pooled(tokens, mask), dim=-1))
        return embedding


def stages(tower: EfficientNetLite, pixels: Tensor) -> Iterator[Tensor]:
    """The maps of all stages, then the head's, each when it is asked for."""
    # Depthwise convolutions on the CPU are more than twice as fast with channels last.
    return tower.stages(pixels.contiguous(memory_format=torch.channels_last))


def summary(tower: EfficientNetLite, pixels: Tensor) -> Tensor:
    """What `summary_of` makes of pictures: [batch, 3, height, width] → [batch, values]."""
    return summary_of(list(stages(tower, pixels)))


def summary_of(maps: Sequence[Tensor]) -> Tensor:
    """Means over space of all stages' maps and of the head's, then the head's maxima.

    The early stages keep what the classifier was taught to forget, such as colours.
    """
    means = [each.mean(dim=(2, 3)) for each in maps]
    return torch.cat([*means, maps[-1].amax(dim=(2, 3))], dim=1)


def head_mean(described: Tensor) -> Tensor:
    """The part of a summary that the tower's own classifier reads."""
    width = described.shape[1]
    return described[:, width - 2 * FEATURES : width - FEATURES]


def mean_pooled(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens that are no padding: [batch, tokens, width] → [batch, width]."""
    if mask is None:
        return tokens.mean(dim=1)
    share = mask.to(tokens.dtype)[..., None]
    return (tokens * share).sum(dim=1) / share.sum(dim=1)


# Loading ----------------------------------------------------------------------------------------


def load(
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
    shipped: Path = SHIPPED,
    adapters: bool = False,
) -> checkpoint.DualEncoderCheckpoint:
    """The embedder whose heads lie in `shipped`, or in a folder that `save` wrote.

    Towers that the folder does not hold are pulled by name. adapters: give the heads residuals
    to be fine-tuned, which add nothing yet, where they have none.

    Raises UnsupportedCheckpoint if the heads cannot be read or do not fit the towers, and what
    `catalog.pull` raises if a tower cannot be had.
    """
    config = read_json(shipped / CONFIG)
    try:
        image, text = config["image_tower"], config["text_tower"]
        heads = HeadsConfig(**config["heads"])
        scale, preprocessing = CONFIGS[image["scale"]], config["preprocessor"]
        image_name, image_file = image["catalog"], image["file"]
        text_name, text_tokens = text["catalog"], text["max_length"]
        stored = frozenset(config.get("stored", ()))
        name = config["name"]
    except (KeyError, TypeError):
        raise UnsupportedCheckpoint(
            f"{shipped / CONFIG} does not describe an embedder with aligned heads.",
            hint=built_in.mend(shipped, SHIPPED),
        ) from None
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "progress": progress,
        "catalogs": catalogs,
    }
    # The text tower's folder is needed for its tokenizer, whoever holds the weights.
    origins = {TEXT_TOWER: catalog.pull(text_name, **options)}
    if IMAGE_TOWER not in stored:
        origins[IMAGE_TOWER] = catalog.pull(image_name, **options) / image_file
    text_tower = checkpoint.load_model(origins[TEXT_TOWER])
    assert isinstance(text_tower, BERT)
    text_tower.pooler = None  # sentences are means over tokens; it would be trained by nothing
    wanted = replace(heads, adapters=heads.adapters or adapters)
    with without_weights():
        image_tower = EfficientNetLite(scale).fold_batch_norms()
        model = AlignedDualEncoder(image_tower, text_tower, wanted)
    if IMAGE_TOWER in origins:
        model.image_tower = load_published(origins[IMAGE_TOWER], scale).fold_batch_norms()
    _load_heads(model, shipped, stored, new_adapters=adapters and not heads.adapters)
    model.image_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.description = config
    model.origins = {tower: path for tower, path in origins.items() if tower not in stored}
    referenced = [
        name
        for tower, name in ((IMAGE_TOWER, image_name), (TEXT_TOWER, text_name))
        if tower not in stored
    ]
    return checkpoint.DualEncoderCheckpoint(
        model=model.eval().requires_grad_(False),
        preprocessor=ImagePreprocessor.from_config(preprocessing),
        tokenizer=Tokenizer.from_folder(origins[TEXT_TOWER], max_length=text_tokens),
        name=name,
        digest=built_in.digest("chiasm-aligned-1", shipped, (CONFIG, HEADS), referenced, catalogs),
    )


def _load_heads(
    model: AlignedDualEncoder, folder: Path, stored: frozenset[str], *, new_adapters: bool
) -> None:
    """Fill the model with the tensors of `folder`: the heads', and those of the `stored` towers."""
    path = folder / HEADS
    tensors = built_in.read_weights(path, shipped=SHIPPED)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if (part := name.partition(".")[0]) not in (IMAGE_TOWER, TEXT_TOWER) or part in stored
    }
    if new_adapters:
        tensors |= {
            name: torch.zeros(tensor.shape) for name, tensor in state.items() if ".adapter." in name
        }
    if not built_in.same_shapes(state, tensors):
        raise UnsupportedCheckpoint(
            f"{path} holds other tensors than its {CONFIG} describes.",
            hint=built_in.mend(folder, SHIPPED),
        )
    # Shipped in half precision, which costs nothing that can be measured; computed in single.
    single = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    model.load_state_dict(single, strict=False, assign=True)


# Saving -----------------------------------------------------------------------------------------


def save(folder: Path, model: AlignedDualEncoder) -> None:
    """Write what `load_dual_encoder(folder)` reads: the heads, and the towers that were trained.

    A tower that is still, number for number, the catalogue's is referenced by its name; one that
    differs from it is written beside the heads. Each file appears complete or not at all, the
    weights last. Raises NoSpace.
    """
    stored = [tower for tower in (IMAGE_TOWER, TEXT_TOWER) if _is_trained(model, tower)]
    # The text tower's entry is needed for its tokenizer, whoever holds the weights.
    needed = [
        tower for tower in (IMAGE_TOWER, TEXT_TOWER) if tower not in stored or tower == TEXT_TOWER
    ]
    heads = {**model.description["heads"], "adapters": model.image_head.adapter is not None}
    entries = {
        **model.description,
        "model_type": MODEL_TYPE,
        "name": "fine-tuned",
        "heads": heads,
        "stored": stored,
        "needs": [model.description[tower]["catalog"] for tower in needed],
    }
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
        if (part := name.partition(".")[0]) not in (IMAGE_TOWER, TEXT_TOWER) or part in stored
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / CONFIG, entries)
    checkpoint.write_tensors(folder / HEADS, tensors)


def _is_trained(model: AlignedDualEncoder, tower: str) -> bool:
    """Whether the tower's tensors are others than those of the files it was read from."""
    origin = model.origins.get(tower)
    if origin is None:
        return True
    try:
        if tower == TEXT_TOWER:
            before: nn.Module = checkpoint.load_model(origin)
        else:
            before = load_published(origin, model.image_tower.config).fold_batch_norms()
    except UnsupportedCheckpoint:
        return True  # the cache was cleared meanwhile: what cannot be compared is kept
    read = before.state_dict()
    return not all(
        torch.equal(read[name], tensor.detach().to("cpu", torch.float32))
        for name, tensor in getattr(model, tower).state_dict().items()
    )
