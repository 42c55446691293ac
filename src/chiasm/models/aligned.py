"""The default embedder: two pretrained towers, locked, and two small heads trained on top.

The plan is LiT's (Zhai et al. 2022, arXiv:2111.07991) with both towers locked: EfficientNet-Lite0
sees, MiniLM reads, and only the heads learned to meet, in `recipes/default_embedder`. The image
head has two roads. One regresses from what the tower saw onto sentence embeddings, as in DeViSE
(Frome et al. 2013). The other weighs the embeddings of the 1000 ImageNet classes' names by their
probabilities, as in ConSE (Norouzi et al. 2014, arXiv:1312.5650), so that what the tower already
knows by name needs no alignment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models import catalog, checkpoint
from chiasm.models.bert import BERT
from chiasm.models.efficientnet_lite import CONFIGS, FEATURES, EfficientNetLite, load_published
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.skeleton import without_weights
from chiasm.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from chiasm.models.catalog import Progress

SHIPPED = Path(str(files("chiasm.models") / "default_embedder"))
CONFIG = "config.json"
HEADS = "heads.safetensors"


@dataclass(frozen=True)
class HeadsConfig:
    """Sizes of the heads.

    summary: values that describe a picture, see `summary`. directions: what they are reduced to.
    centres: of the regression. classes: of the image tower's classifier.
    """

    summary: int
    directions: int
    centres: int
    classes: int
    dimension: int


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

    def forward(self, summary: Tensor, logits: Tensor) -> Tensor:
        """summary: [batch, values]; logits: [batch, classes] → [batch, dimension]."""
        nearness = self.nearness(self.reduced(summary))  # [batch, centres]
        probabilities = (logits / self.class_temperature).softmax(dim=-1)
        named = probabilities @ self.class_embeddings  # [batch, dimension]
        embedding: Tensor = self.answers(nearness) + self.class_share * named
        return embedding

    def reduced(self, summary: Tensor) -> Tensor:
        """[batch, values] → [batch, directions]."""
        # Cut at six deviations: one odd value must not carry a picture away from every centre.
        directions: Tensor = self.reduce(((summary - self.mean) / self.deviation).clamp(-6, 6))
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

    def forward(self, sentence: Tensor) -> Tensor:
        """sentence: [batch, dimension], unit length → [batch, dimension]."""
        return sentence - self.mean


class AlignedDualEncoder(nn.Module):
    """Pictures and texts in one space, by locked towers and trained heads."""

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


def summary(tower: EfficientNetLite, pixels: Tensor) -> Tensor:
    """Means over space of all stages' maps and of the head's, then the head's maxima.

    The early stages keep what the classifier was taught to forget, such as colours.
    [batch, 3, height, width] → [batch, values].
    """
    # Depthwise convolutions on the CPU are more than twice as fast with channels last.
    maps = list(tower.stages(pixels.contiguous(memory_format=torch.channels_last)))
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
) -> checkpoint.DualEncoderCheckpoint:
    """The embedder whose heads lie in `shipped`, on towers pulled by name.

    Raises UnsupportedCheckpoint if the heads cannot be read or do not fit the towers, and what
    `catalog.pull` raises if a tower cannot be had.
    """
    config = checkpoint.read_json(shipped / CONFIG)
    try:
        image, text = config["image_tower"], config["text_tower"]
        heads = HeadsConfig(**config["heads"])
        scale, preprocessing = CONFIGS[image["scale"]], config["preprocessor"]
        image_name, image_file = image["catalog"], image["file"]
        text_name, text_tokens = text["catalog"], text["max_length"]
    except (KeyError, TypeError):
        raise UnsupportedCheckpoint(
            f"{shipped / CONFIG} does not describe an embedder with aligned heads.",
            hint="Install chiasm again.",
        ) from None
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "progress": progress,
        "catalogs": catalogs,
    }
    image_folder, text_folder = (catalog.pull(name, **options) for name in (image_name, text_name))
    text_tower = checkpoint.load_model(text_folder)
    assert isinstance(text_tower, BERT)
    with without_weights():
        model = AlignedDualEncoder(EfficientNetLite(scale), text_tower, heads)
    model.image_tower = load_published(image_folder / image_file, scale).fold_batch_norms()
    _load_heads(model, shipped / HEADS)
    model.image_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return checkpoint.DualEncoderCheckpoint(
        model=model.eval().requires_grad_(False),
        preprocessor=ImagePreprocessor.from_config(preprocessing),
        tokenizer=Tokenizer.from_folder(text_folder, max_length=text_tokens),
        name=config["name"],
        digest=_digest(shipped, (image_name, text_name), catalogs),
    )


def _load_heads(model: AlignedDualEncoder, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        raise UnsupportedCheckpoint(
            f"{path} could not be read.", hint="Install chiasm again."
        ) from None
    expected = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if not name.startswith(("image_tower.", "text_tower."))
    }
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise UnsupportedCheckpoint(
            f"{path} holds other tensors than its {CONFIG} describes.", hint="Install chiasm again."
        )
    # Shipped in half precision, which costs nothing that can be measured; computed in single.
    state = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)


def _digest(shipped: Path, towers: tuple[str, ...], catalogs: Sequence[Path]) -> str:
    """SHA-256 over the heads' files and the towers' digests, which `pull` has verified."""
    whole = hashlib.sha256(b"chiasm-aligned-1\n")
    for name in (CONFIG, HEADS):
        whole.update(
            f"{name} {hashlib.sha256((shipped / name).read_bytes()).hexdigest()}\n".encode()
        )
    for tower in towers:
        for path, file in sorted(catalog.find(tower, catalogs).files.items()):
            whole.update(f"{tower}/{path} {file.sha256}\n".encode())
    return whole.hexdigest()
