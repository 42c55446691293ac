"""The default vision-language model: two pretrained towers and what was trained between them.

EfficientNet-Lite0 looks at the picture five times, whole and in four overlapping quarters. What it
sees reaches SmolLM2-135M-Instruct as a few dozen tokens, most of them plain words: a namer ranks a
vocabulary of nouns for each look, and the best ones stand in the prompt as the language model's own
token embeddings (`namer`). So what the tower knows by name needs no alignment, and a language model
of 135 million parameters learns from a few thousand pictures what to do with it, in
`recipes/default_vlm`. The shipped folder holds the namer, the projector and low-rank adapters; both
towers are pulled by name.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models import built_in, catalog, checkpoint, lora
from chiasm.models.aligned import head_mean, stages, summary, summary_of
from chiasm.models.chat import ChatTokenizer
from chiasm.models.decoder import Decoder
from chiasm.models.efficientnet_lite import CONFIGS, EfficientNetLite, load_published
from chiasm.models.generator import SMALL_VLM, GeneratorCheckpoint
from chiasm.models.json_files import read_json
from chiasm.models.namer import Namer, NamerConfig, Seen, WordProjector, WordProjectorConfig
from chiasm.models.quarters import QuartersReader, tower_flops
from chiasm.models.skeleton import without_weights
from chiasm.models.vision_language import ImageInputs, PicturesInText

if TYPE_CHECKING:
    from chiasm.models.catalog import Progress

SHIPPED = Path(str(files("chiasm.models") / "default_vlm"))
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
TEMPLATE = "chat_template.jinja"
IMAGE_TOWER, LANGUAGE_MODEL = "image_tower", "decoder"
IMAGE_TOKEN = "<image>"
_IMAGE_PARTS = (IMAGE_TOWER, LANGUAGE_MODEL)


@dataclass(frozen=True)
class SmallVLMConfig:
    """What `config.json` says.

    image_tower: `catalog`, `file` and `scale` of an EfficientNet-Lite. language_model: `catalog`.
    side: pixels of a look. quarter: a quarter's share of the picture's width and height.
    borrowed_token: of the language model's tokenizer, one that no text uses; it becomes the image
    token. stored: towers that the folder holds itself.
    """

    model_type: ClassVar[str] = SMALL_VLM

    name: str
    image_tower: Mapping[str, str]
    language_model: Mapping[str, str]
    namer: NamerConfig
    projector: WordProjectorConfig
    side: int = 224
    quarter: float = 0.6
    borrowed_token: str = "<empty_output>"
    adapters: bool = False
    stored: tuple[str, ...] = ()

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> SmallVLMConfig:
        """From JSON. Raises KeyError or TypeError for entries that are missing or unknown."""
        known = {key: value for key, value in entries.items() if key not in ("model_type", "needs")}
        return cls(
            **known
            | {
                "namer": NamerConfig(**known["namer"]),
                "projector": WordProjectorConfig(**known["projector"]),
                "stored": tuple(known.get("stored", ())),
            }
        )

    @property
    def needs(self) -> list[str]:
        """Entries of the catalogue to fetch first."""
        # The language model's is needed for its tokenizer, whoever holds the weights.
        tower = [] if IMAGE_TOWER in self.stored else [self.image_tower["catalog"]]
        return [*tower, self.language_model["catalog"]]


class SmallVLM(PicturesInText):
    """EfficientNet-Lite, a namer, a projector and a decoder.

    config: as read, or as it is to be written. earlier: adapters that are merged into the decoder
    already, by the name of their layer: (A with the scale in it, B).
    """

    sees_in_float32 = True  # the namer tells words apart by small differences of distances

    def __init__(
        self, image_tower: EfficientNetLite, decoder: Decoder, config: SmallVLMConfig, token_id: int
    ) -> None:
        super().__init__()
        self.config = config
        self.image_tower = image_tower
        self.decoder = decoder
        self.namer = Namer(config.namer)
        self.projector = WordProjector(config.projector, config.namer, decoder.config.hidden_size)
        self.image_token_id = token_id
        self.earlier: dict[str, tuple[Tensor, Tensor]] = {}

    def encode_image(self, inputs: ImageInputs) -> Tensor:
        """One picture's tokens, [image tokens, decoder width]."""
        slices = self.encode_slices(inputs)
        while True:
            try:
                next(slices)
            except StopIteration as end:
                tokens: Tensor = end.value
                return tokens

    def encode_slices(self, inputs: ImageInputs) -> Generator[None, None, Tensor]:
        """See `PicturesInText.encode_slices`: look by look, and stage by stage of the tower."""
        looks = []
        for look in inputs.pixels.split(1):
            maps = []
            for each in stages(self.image_tower, look):
                maps.append(each)
                yield
            looks.append(summary_of(maps))
        return self.project(torch.cat(looks)[:, None], inputs.size)

    def tower_features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """[looks, 3, height, width] → what the tower says of each, [looks, 1, values]."""
        return summary(self.image_tower, pixels)[:, None]

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """One picture's looks as `tower_features` gave them → [image tokens, decoder width]."""

        def embed(ids: Tensor) -> Tensor:
            return self.decoder.embed(ids).to(self.projector.places.dtype)

        tokens: Tensor = self.projector(self._seen(features), self.namer, embed)
        return tokens

    @torch.no_grad()  # namer and classifier are as they are
    def _seen(self, features: Tensor) -> Seen:
        described = features[:, 0].to(self.namer.mean.dtype)  # [looks, values]
        logits = self.image_tower.classifier(head_mean(described))
        seen: Seen = self.namer(described, logits)
        return seen

    def words_given(self, features: Tensor) -> list[list[list[int]]]:
        """The token ids of each word that the language model is given for each look.

        features: as `tower_features` gives them.
        """
        seen = self._seen(features)
        return [
            [word for _, word in self.projector.chosen(scores, look, self.namer)]
            for look, scores in enumerate(seen.words)
        ]

    def vision_flops(self, inputs: ImageInputs) -> int:
        """Operations that `encode_image` spends in matrix products and convolutions."""
        looks, _, height, width = inputs.pixels.shape
        one = tower_flops(self.image_tower, height, width) + self.namer.flops()
        return looks * one + self.projector.flops()


# Loading ----------------------------------------------------------------------------------------


def load(
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
    shipped: Path = SHIPPED,
) -> GeneratorCheckpoint:
    """The model whose trained parts lie in `shipped`, or in a folder that `save` wrote.

    Raises UnsupportedCheckpoint if they cannot be read or do not fit the towers, and what
    `catalog.pull` raises if a tower cannot be had.
    """
    try:
        config = SmallVLMConfig.read(read_json(shipped / CONFIG))
        scale = CONFIGS[config.image_tower["scale"]]
        image_name, image_file = config.image_tower["catalog"], config.image_tower["file"]
        language_name = config.language_model["catalog"]
    except (KeyError, TypeError):
        raise UnsupportedCheckpoint(
            f"{shipped / CONFIG} does not describe a small vision-language model.",
            hint=built_in.mend(shipped, SHIPPED),
        ) from None
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "progress": progress,
        "catalogs": catalogs,
    }
    folder = checkpoint.locate(language_name, **options)
    tokenizer = _tokenizer(folder, shipped, config)
    decoder = checkpoint.load_model(folder)
    if not isinstance(decoder, Decoder):
        raise UnsupportedCheckpoint(f"{language_name} is no language model.")
    with without_weights():
        tower = EfficientNetLite(scale).fold_batch_norms()
    if IMAGE_TOWER not in config.stored:
        tower = load_published(catalog.pull(image_name, **options) / image_file, scale)
        tower.fold_batch_norms()
    with without_weights():
        model = SmallVLM(tower, decoder, config, tokenizer.token_id(IMAGE_TOKEN))
    _fill(model, shipped)
    model.image_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return GeneratorCheckpoint(
        model=model.eval().requires_grad_(False),
        images=QuartersReader(
            side=config.side,
            quarter=config.quarter,
            tokens=config.projector.tokens,
            image_token=IMAGE_TOKEN,
        ),
        tokenizer=tokenizer,
        name=config.name,
        digest=built_in.digest(
            "chiasm-small-vlm-1", shipped, (CONFIG, TEMPLATE, WEIGHTS), config.needs, catalogs
        ),
    )


def _tokenizer(folder: Path, shipped: Path, config: SmallVLMConfig) -> ChatTokenizer:
    """The language model's, with one of its unused tokens renamed and a template for pictures."""
    plain = ChatTokenizer.from_folder(folder)
    plain.token_id(config.borrowed_token)  # or there is none to rename
    written = plain.backend.to_str()
    renamed = written.replace(json.dumps(config.borrowed_token), json.dumps(IMAGE_TOKEN))
    path = shipped / TEMPLATE
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UnsupportedCheckpoint(
            f"{path} could not be read.", hint=built_in.mend(shipped, SHIPPED)
        ) from None
    return ChatTokenizer(
        Backend.from_str(renamed),
        template=template,
        eos_ids=plain.eos_ids,
        tokens=plain.tokens,
    )


def _fill(model: SmallVLM, folder: Path) -> None:
    """Fill the model with the tensors of `folder`, and merge the adapters among them."""
    path = folder / WEIGHTS
    tensors = built_in.read_weights(path, shipped=SHIPPED)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name in [name for name in tensors if ".lora_" in name]:
        layer, _, half = name.rpartition(".lora_")
        pairs.setdefault(layer, {})[half] = tensors.pop(name).to(torch.float32)
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if _part(name) not in _IMAGE_PARTS or _part(name) in model.config.stored
    }
    if not built_in.same_shapes(own, tensors) or bool(pairs) != model.config.adapters:
        raise UnsupportedCheckpoint(
            f"{path} holds other tensors than its {CONFIG} describes.",
            hint=built_in.mend(folder, SHIPPED),
        )
    # Shipped in half precision, computed in single; whole numbers stay what they are.
    single = {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(single, strict=False, assign=True)
    try:
        for layer, pair in pairs.items():
            module: Any = model.get_submodule(layer)
            with torch.no_grad():  # the file of the language model is mapped: not in place
                module.weight = nn.Parameter(module.weight + pair["b"] @ pair["a"])
            model.earlier[layer] = (pair["a"], pair["b"])
    except (AttributeError, KeyError, RuntimeError):
        raise UnsupportedCheckpoint(
            f"{path} holds adapters that do not fit the language model.",
            hint=built_in.mend(folder, SHIPPED),
        ) from None


def _part(name: str) -> str:
    return name.partition(".")[0]


# Saving -----------------------------------------------------------------------------------------


def save(folder: Path, model: SmallVLM, *, name: str = "fine-tuned", half: bool = False) -> None:
    """Write what `load_generator(folder)` reads.

    Adapters are written apart from the decoder, new ones and those merged before as one of the sum
    of their ranks. A tower of which anything but adapters was trained is written whole. half: in
    half precision. Each file appears complete or not at all, the weights last. Raises NoSpace.
    """
    stored = [
        part for part in _IMAGE_PARTS if part in model.config.stored or _is_trained(model, part)
    ]
    adapters = {} if LANGUAGE_MODEL in stored else _adapters(model)
    if LANGUAGE_MODEL in stored:
        lora.merge_lora(model)
    tensors = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if _part(key) not in _IMAGE_PARTS or _part(key) in stored
    }
    for layer, (a, b) in adapters.items():
        tensors |= {f"{layer}.lora_a": a, f"{layer}.lora_b": b}
    config = model.config
    entries = {
        "model_type": config.model_type,
        "name": name,
        "image_tower": dict(config.image_tower),
        "language_model": dict(config.language_model),
        "namer": vars(config.namer),
        "projector": vars(config.projector),
        "side": config.side,
        "quarter": config.quarter,
        "borrowed_token": config.borrowed_token,
        "adapters": bool(adapters),
        "stored": stored,
        "needs": config.needs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / CONFIG, entries)
    (folder / TEMPLATE).write_text(
        (SHIPPED / TEMPLATE).read_text(encoding="utf-8"), encoding="utf-8"
    )
    dtype = torch.float16 if half else torch.float32
    checkpoint.write_tensors(
        folder / WEIGHTS,
        {
            key: (
                tensor.detach().cpu().to(dtype) if tensor.is_floating_point() else tensor.cpu()
            ).contiguous()
            for key, tensor in tensors.items()
        },
    )


def _is_trained(model: SmallVLM, part: str) -> bool:
    """Whether anything of a tower, its adapters left aside, was let learn."""
    return any(
        parameter.requires_grad
        for name, parameter in getattr(model, part).named_parameters()
        if "lora_" not in name
    )


def _adapters(model: SmallVLM) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every layer that has any: (A, B), whose product is all that was added to its matrix."""
    found = dict(model.earlier)
    for layer, module in lora.lora_layers(model):
        a, b = module.lora_a.detach().float() * module.scaling, module.lora_b.detach().float()
        if layer in found:
            before = found[layer]
            a, b = torch.cat([before[0], a]), torch.cat([before[1], b], dim=1)
        found[layer] = (a, b)
    return found
