"""Train the two heads on what the locked towers said, and write them into the package.

    python recipes/default_embedder/train.py

The loss is CLIP's (Radford et al. 2021, arXiv:2103.00020) with softer targets: two pictures of one
object are no negatives of each other, and near-synonyms are pushed apart only as far as the text
tower itself holds them apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import phrases
import recipe
import torch
import torch.nn.functional as F
from pictures import Picture
from safetensors.torch import save_file
from torch import Tensor, nn

from chiasm.models.aligned import HEADS, HeadsConfig, ImageHead, TextHead, head_mean


@dataclass
class Cache:
    """What the towers said.

    views: a round each, float16 [pictures, values]; a row of zeros where a picture has fewer.
    classifier: the tower's weight [classes, features] and bias [classes].
    """

    pictures: list[Picture]
    views: list[Tensor]
    has_view: Tensor  # bool [rounds, pictures]
    texts: dict[str, int]
    embeddings: Tensor  # [texts, 384], unit length
    class_phrases: list[list[str]]
    classifier: tuple[Tensor, Tensor]

    def logits(self, summary: Tensor) -> Tensor:
        """Class logits from summaries."""
        weight, bias = self.classifier
        return head_mean(summary) @ weight.T + bias

    def text(self, texts: Sequence[str]) -> Tensor:
        """Cached sentence embeddings."""
        return self.embeddings[[self.texts[text] for text in texts]]


def load_cache(settings: dict[str, Any]) -> Cache:
    """Everything features.py wrote."""
    work = Path(settings["work"])
    pictures = recipe.pictures(settings)
    views = [torch.from_numpy(np.load(path)) for path in sorted(work.glob("views-*.npy"))]
    with np.load(work / "texts.npz") as kept:
        texts = {text: row for row, text in enumerate(kept["texts"].tolist())}
        embeddings = torch.from_numpy(kept["embeddings"])
    tower, _, _ = recipe.towers()
    return Cache(
        pictures,
        views,
        torch.stack([view[:, 0] != 0 for view in views]),
        texts,
        embeddings,
        phrases.imagenet(work / "fetched/timm/data/_info"),
        (tower.classifier.weight.detach(), tower.classifier.bias.detach()),
    )


class Reduction:
    """Standardise a picture's summary and turn it onto its main directions, whitened.

    Training on these is quick; `into` folds them into the head's first layer afterwards.
    """

    def __init__(self, summaries: Tensor, directions: int, floor: float) -> None:
        self.mean = summaries.mean(dim=0)
        self.deviation = summaries.std(dim=0) + 1e-3
        standard = self.standard(summaries)
        covariance = standard.T @ standard / len(standard)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[:directions], vectors.flip(1)[:, :directions]
        # Whitened, but the weak directions are not blown up to the strength of the strong ones.
        self.turn = vectors / torch.sqrt(values + floor * values[0])  # [values, directions]

    def standard(self, summaries: Tensor) -> Tensor:
        return ((summaries - self.mean) / self.deviation).clamp(-6, 6)

    def __call__(self, summaries: Tensor) -> Tensor:
        return self.standard(summaries) @ self.turn

    @torch.no_grad()
    def into(self, small: ImageHead, head: ImageHead) -> None:
        """Copy a head that was trained on reduced summaries into one for whole summaries."""
        head.load_state_dict(
            small.state_dict()
            | {
                "mean": self.mean,
                "deviation": self.deviation,
                "hidden.weight": small.hidden.weight @ self.turn.T,
            }
        )


class Drawer:
    """Draws one of several numbered things for each row, with given weights."""

    def __init__(
        self, choices: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]
    ) -> None:
        longest = max(len(row) for row in choices)
        self.choices = torch.zeros(len(choices), longest, dtype=torch.int64)
        self.weights = torch.zeros(len(choices), longest)
        for i, (row, weight) in enumerate(zip(choices, weights, strict=True)):
            self.choices[i, : len(row)] = torch.tensor(row)
            self.weights[i, : len(row)] = torch.tensor(weight)

    def __call__(self, rows: Tensor) -> Tensor:
        picked = torch.multinomial(self.weights[rows], 1)
        return self.choices[rows].gather(1, picked)[:, 0]


def fit(
    cache: Cache, chosen: Sequence[int], rules: dict[str, Any], *, seed: int = 0
) -> tuple[ImageHead, TextHead, float]:
    """Train both heads on the pictures `chosen`: heads for whole summaries, and the logit scale."""
    torch.manual_seed(seed)
    pictures = [cache.pictures[i] for i in chosen]

    # ---- what is seen: every view of every chosen picture, reduced once -------------------------
    summaries, views_of = [], [[] for _ in chosen]
    row = 0
    for view, has in zip(cache.views, cache.has_view, strict=True):
        have = [n for n, i in enumerate(chosen) if has[i]]
        summaries.append(view[[chosen[n] for n in have]].float())
        for n in have:
            views_of[n].append(row)
            row += 1
    seen = torch.cat(summaries)
    reduction = Reduction(seen, rules["directions"], rules["whitening_floor"])
    reduced, logits = reduction(seen), cache.logits(seen)
    plain_share = rules["plain_share"]
    draw_view = Drawer(
        views_of,
        [[plain_share * max(1, len(v) - 1), *([1 - plain_share] * (len(v) - 1))] for v in views_of],
    )

    # ---- what is said ----------------------------------------------------------------------------
    said = [phrases.of_picture(picture) for picture in pictures]
    draw_phrase = Drawer(
        [[cache.texts[phrase.text] for phrase in each] for each in said],
        [[phrase.weight for phrase in each] for each in said],
    )
    labels = _labels([min(picture.objects) + picture.caption.lower() for picture in pictures])
    drawn_as = torch.tensor([rules["source_weights"][picture.source] for picture in pictures])

    # ---- anchors: the ImageNet classes as the classifier's own weights know them -----------------
    anchors, anchor_logits = class_summaries(cache, seen, rules["anchor_strength"])
    reduced_anchors = reduction(anchors)
    draw_name = Drawer(
        [[cache.texts[text] for text in each] for each in cache.class_phrases],
        [[1.0] * len(each) for each in cache.class_phrases],
    )
    noise = (reduced[: len(reduced)] - reduced.mean(dim=0)).std(dim=0) * rules["anchor_noise"]

    # ---- the heads -------------------------------------------------------------------------------
    width = cache.embeddings.shape[1]
    small = ImageHead(
        HeadsConfig(rules["directions"], 1000, width, rules["image_hidden"], 1, width)
    )
    text_head = TextHead(HeadsConfig(1, 1, width, 1, rules["text_hidden"], width))
    with torch.no_grad():
        text_head.mean.copy_(cache.embeddings[draw_phrase(torch.arange(len(chosen)))].mean(dim=0))
        nn.init.zeros_(text_head.output.weight)
        nn.init.zeros_(text_head.output.bias)
        names = torch.stack([cache.text(each).mean(dim=0) for each in cache.class_phrases])
        small.class_embeddings.copy_(names - names.mean(dim=0))
        small.class_temperature.fill_(1.5)
        small.output.weight.mul_(0.3)
    scale = nn.Parameter(torch.tensor(float(np.log(rules["logit_scale"]))))
    groups = [
        {
            "params": [*small.hidden.parameters(), *small.output.parameters()],
            "lr": rules["image_rate"],
        },
        {"params": [small.class_embeddings], "lr": rules["class_rate"], "weight_decay": 0.0},
        {"params": [small.class_share, small.class_temperature], "lr": 1e-3, "weight_decay": 0.0},
        {"params": text_head.parameters(), "lr": rules["text_rate"]},
        {"params": [scale], "lr": 1e-3, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=rules["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=rules["steps"], pct_start=0.1
    )
    modules = nn.ModuleList([small, text_head])
    average = torch.optim.swa_utils.AveragedModel(
        modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(rules["averaging"])
    )

    # ---- the steps -------------------------------------------------------------------------------
    for _ in range(rules["steps"]):
        picked = torch.multinomial(drawn_as, rules["batch"], replacement=True)
        classes = torch.randint(0, len(anchors), (rules["anchors"],))
        view = draw_view(picked)
        inputs = torch.cat(
            [
                reduced[view],
                reduced_anchors[classes] + noise * torch.randn(len(classes), len(noise)),
            ]
        )
        inputs = inputs + rules["noise"] * torch.randn_like(inputs)
        inputs = F.dropout(inputs, rules["dropout"])
        sentence = cache.embeddings[torch.cat([draw_phrase(picked), draw_name(classes)])]
        group = torch.cat([labels[picked], -1 - classes])
        image = F.normalize(
            small.from_standard(inputs, torch.cat([logits[view], anchor_logits[classes]])), dim=-1
        )
        text = F.normalize(text_head(sentence), dim=-1)
        target = soft_targets(sentence - text_head.mean, group, rules)
        loss = contrastive_loss(scale.exp() * image @ text.T, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            scale.clamp_(max=float(np.log(100)))
        average.update_parameters(modules)

    small, text_head = average.module
    full = ImageHead(HeadsConfig(seen.shape[1], 1000, width, rules["image_hidden"], 1, width))
    reduction.into(small, full)
    return full.eval(), text_head.eval(), float(scale.detach())


def soft_targets(sentence: Tensor, group: Tensor, rules: dict[str, Any]) -> Tensor:
    """Rows that sum to one: [batch, batch]. The same words or the same object share the weight."""
    same = (group[:, None] == group[None, :]).float()
    hard = same / same.sum(dim=1, keepdim=True)
    unit = F.normalize(sentence, dim=-1)
    near = (unit @ unit.T / rules["target_temperature"]).softmax(dim=1)
    return (1 - rules["target_softness"]) * hard + rules["target_softness"] * near


def contrastive_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of both directions' cross entropies. logits, target: [batch, batch]."""
    return (
        F.cross_entropy(logits, target)
        + F.cross_entropy(logits.T, target.T / target.T.sum(dim=1, keepdim=True))
    ) / 2


def class_summaries(cache: Cache, seen: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """What a typical picture of each ImageNet class would look like to the tower.

    If the classes' features are normal with one covariance Σ, the weights of the best linear
    classifier are w = Σ⁻¹ (mean of the class − mean of all): so mean + Σ w is the class's mean.
    """
    weight, _ = cache.classifier
    centred = seen - seen.mean(dim=0)
    covariance = centred.T @ head_mean(centred) / len(seen)  # [values, features]
    shift = (weight - weight.mean(dim=0)) @ covariance.T  # [classes, values]
    length = head_mean(centred).norm(dim=1).mean() / head_mean(shift).norm(dim=1, keepdim=True)
    anchors = seen.mean(dim=0) + strength * length * shift
    return anchors, cache.logits(anchors)


def _labels(keys: Sequence[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def write(
    image_head: ImageHead, text_head: TextHead, scale: float, rules: dict[str, Any], folder: Path
) -> None:
    """The two shipped files: heads in half precision, and config.json that says everything."""
    config = HeadsConfig(
        summary=image_head.hidden.in_features,
        classes=image_head.class_embeddings.shape[0],
        text_width=text_head.hidden.in_features,
        image_hidden=image_head.hidden.out_features,
        text_hidden=text_head.hidden.out_features,
        dimension=image_head.output.out_features,
    )
    tensors = {"logit_scale": torch.tensor(scale)}
    for prefix, head in (("image_head", image_head), ("text_head", text_head)):
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in head.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / HEADS, metadata={"format": "pt"})
    (folder / HEADS).chmod(0o644)  # it is written readable by its owner alone
    described = {
        "model_type": "aligned-dual-encoder",
        "name": "default",
        "image_tower": {
            "catalog": "efficientnet-lite0",
            "file": "efficientnet-lite0-57934424.pth",
            "scale": "lite0",
        },
        "text_tower": {"catalog": "minilm-l6", "max_length": 256, "pooling": "mean"},
        "preprocessor": {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": 224, "width": 224},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [127 / 255] * 3,
            "image_std": [128 / 255] * 3,
        },
        "heads": asdict(config),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
