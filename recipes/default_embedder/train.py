"""Train the two heads on what the locked towers said, and write them into the package.

    python recipes/default_embedder/train.py

Two steps. A regression (closed form) carries what the image tower saw onto the sentence embeddings
of what people would type. Then a contrastive loss, CLIP's (Radford et al. 2021, arXiv:2103.00020)
with softer targets, sets how the regression, the class names and the scale are balanced; it sees
every picture through a regression that was fitted without that picture's object, so it learns what
holds for things never seen. README.md tells what else was tried and why it lost.
"""

from __future__ import annotations

import argparse
import hashlib
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
from features import PLAIN
from pictures import Picture
from safetensors.torch import save_file
from torch import Tensor, nn

from chiasm.models.aligned import HEADS, SHIPPED, HeadsConfig, ImageHead, TextHead, head_mean

TRAINING_PARTS = {"train", "validation", "validation only"}
# Of a summary's groups: early stages, middle stages, the head's means, the head's maxima.
WIDTHS = (16 + 24 + 40 + 80 + 112, 192 + 320, 1280, 1280)


@dataclass
class Cache:
    """What the towers said.

    plain: the view that the embedder makes of a file, float16 [pictures, values].
    views: a round each, the first squashed, the others composed; a row of zeros where a picture has
    fewer. stamp_views: others on white, by name, of stamps alone.
    classifier: the tower's weight [classes, features] and bias [classes].
    """

    pictures: list[Picture]
    plain: Tensor
    views: list[Tensor]
    stamp_views: dict[str, Tensor]
    has_view: Tensor  # bool [rounds, pictures]
    texts: dict[str, int]
    embeddings: Tensor  # [texts, 384], unit length
    class_phrases: list[list[str]]
    class_kinds: list[list[phrases.Phrase]]
    classifier: tuple[Tensor, Tensor]

    def logits(self, summary: Tensor) -> Tensor:
        """Class logits from summaries."""
        weight, bias = self.classifier
        return head_mean(summary) @ weight.T + bias

    def text(self, texts: Sequence[str]) -> Tensor:
        """Cached sentence embeddings."""
        return self.embeddings[[self.texts[text] for text in texts]]

    def mean_text(self, said: Sequence[phrases.Phrase]) -> Tensor:
        """The weighted mean of phrases."""
        weights = torch.tensor([phrase.weight for phrase in said])
        rows = self.text([phrase.text for phrase in said])
        return (rows * weights[:, None]).sum(dim=0) / weights.sum()


def load_cache(settings: dict[str, Any]) -> Cache:
    """Everything features.py wrote."""
    work = Path(settings["work"])
    pictures = recipe.pictures(settings)
    views = [torch.from_numpy(np.load(path)) for path in sorted(work.glob("views-*.npy"))]
    plain = {name: torch.from_numpy(np.load(work / f"plain-{name}.npy")) for name in PLAIN}
    with np.load(work / "texts.npz") as kept:
        texts = {text: row for row, text in enumerate(kept["texts"].tolist())}
        embeddings = torch.from_numpy(kept["embeddings"])
    tower, _, _ = recipe.towers()
    return Cache(
        pictures,
        plain["letterboxed"],
        views,
        plain | {"squashed": views[0]},
        torch.stack([view[:, 0] != 0 for view in views]),
        texts,
        embeddings,
        phrases.imagenet(recipe.imagenet(settings)),
        recipe.class_kinds(settings),
        (tower.classifier.weight.detach(), tower.classifier.bias.detach()),
    )


def fit(
    cache: Cache, chosen: Sequence[int], rules: dict[str, Any]
) -> tuple[ImageHead, TextHead, float]:
    """Train both heads on the pictures `chosen`. Also gives the natural log of the logit scale."""
    head = regress(cache, chosen, rules["regression"])
    kinds = torch.stack([cache.mean_text(said) for said in cache.class_kinds])
    with torch.no_grad():
        head.class_embeddings.copy_(kinds - kinds.mean(dim=0))
    stamps = [i for i in chosen if cache.pictures[i].source == "stamp"]
    captions = cache.text([cache.pictures[i].caption for i in stamps])
    text_head = TextHead(_sizes(head))
    text_head.mean.copy_(captions.mean(dim=0))
    scale = balance(cache, chosen, rules, head, text_head)
    with torch.no_grad():
        summaries = cache.plain[stamps].float()
        head.answers.bias -= head(summaries, cache.logits(summaries)).mean(dim=0)
    return head.eval(), text_head.eval(), scale


# The regression ---------------------------------------------------------------------------------


@torch.no_grad()
def regress(cache: Cache, chosen: Sequence[int], rules: dict[str, Any]) -> ImageHead:
    """Kernel ridge regression on a subset of centres (Nyström), from views onto phrases.

    The rows are all views of the pictures, each with the mean of its phrases, and a typical
    picture of every ImageNet class, with the mean of the class's names.
    """
    torch.manual_seed(rules["seed"])
    plain = cache.plain[list(chosen)].float()
    anchors, _ = class_summaries(cache, plain, rules["anchor_strength"])
    views, owners, weights = _rows(cache, chosen, rules)
    named = torch.stack([cache.text(names).mean(dim=0) for names in cache.class_phrases])
    said = torch.stack([cache.mean_text(phrases.of_picture(cache.pictures[i])) for i in chosen])
    share = torch.tensor([rules["source_weights"][cache.pictures[i].source] for i in chosen])
    centre = (share[:, None] * said).sum(dim=0) / share.sum()
    # Half of the difference between how classes and pictures are worded is taken out.
    anchor_centre = (named.mean(dim=0) + centre) / 2
    targets = torch.cat([said[owners] - centre, named - anchor_centre])
    weights = torch.cat([weights, torch.full((len(anchors),), rules["anchor_weight"])])

    sizes = HeadsConfig(
        summary=plain.shape[1],
        directions=rules["directions"],
        centres=rules["centres"],
        classes=len(named),
        dimension=named.shape[1],
    )
    head = ImageHead(sizes)
    _reduce(head, plain, rules)
    inputs = torch.cat([head.reduced(views), head.reduced(anchors)])
    head.centres.copy_(inputs[torch.multinomial(weights, sizes.centres)])
    head.reach.fill_(rules["reach"] * float(inputs.square().sum(dim=1).mean()))
    _halve(head)
    near = head.nearness(inputs)  # [rows, centres]
    weighted = (near * weights[:, None]).T
    # In double precision: neighbouring centres make the matrix nearly singular.
    matrix = (weighted @ near + rules["ridge"] * head.nearness(head.centres)).double()
    matrix += 1e-4 * torch.eye(sizes.centres, dtype=torch.float64)
    answers = torch.linalg.solve(matrix, (weighted @ targets).double())
    head.answers.weight.copy_(answers.T.float())
    head.answers.bias.zero_()
    head.class_embeddings.copy_(named - named.mean(dim=0))
    return head


def _rows(
    cache: Cache, chosen: Sequence[int], rules: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Every view: its summary, the place in `chosen` of its picture, and its weight."""
    summaries: list[Tensor] = []
    owners: list[int] = []
    weights: list[float] = []

    def add(view: Tensor, have: list[int], share: float) -> None:
        summaries.append(view[[chosen[place] for place in have]].float())
        owners.extend(have)
        sources = (cache.pictures[chosen[place]].source for place in have)
        weights.extend(share * rules["source_weights"][source] for source in sources)

    rounds = len(cache.views) - 1
    for number, view in enumerate(cache.views):
        have = [place for place, i in enumerate(chosen) if cache.has_view[number, i]]
        add(
            cache.plain if number == 0 else view,
            have,
            1.0 if number == 0 else rules["composite_weight"] / rounds,
        )
    kinds = [cache.pictures[i] for i in chosen]
    stamps = [place for place, p in enumerate(kinds) if p.source == "stamp" and not p.glyph]
    for name, share in rules["stamp_views"].items():
        add(cache.stamp_views[name], stamps, share)
    return torch.cat(summaries), torch.tensor(owners), torch.tensor(weights)


def _reduce(head: ImageHead, summaries: Tensor, rules: dict[str, Any]) -> None:
    """Set the head to standardise summaries and turn them onto their main directions."""
    head.mean.copy_(summaries.mean(dim=0))
    head.deviation.copy_(summaries.std(dim=0) + 1e-3)
    strength = torch.cat(
        [
            torch.full((width,), value)
            for width, value in zip(WIDTHS, rules["strengths"], strict=True)
        ]
    )
    standard = ((summaries - head.mean) / head.deviation).clamp(-6, 6) * strength
    _, singular, turn = torch.pca_lowrank(standard, rules["directions"], center=False, niter=4)
    values = singular.square() / len(standard)
    # Whitened, but the weak directions are not blown up to the strength of the strong ones.
    turn = turn / torch.sqrt(values + rules["whitening_floor"] * values[0])
    head.reduce.weight.copy_((strength[:, None] * turn).T)


def _halve(head: ImageHead) -> None:
    """Round to the precision that ships before the answers are solved for, so they fit it."""
    for tensor in (head.mean, head.deviation, head.reduce.weight, head.centres, head.reach):
        tensor.copy_(tensor.half().float())


# The balance ------------------------------------------------------------------------------------


def balance(
    cache: Cache,
    chosen: Sequence[int],
    rules: dict[str, Any],
    head: ImageHead,
    text_head: TextHead,
) -> float:
    """Set the class names' share and temperature contrastively; gives the logit scale's log."""
    settings = rules["balance"]
    torch.manual_seed(settings["seed"])
    pictures = [cache.pictures[i] for i in chosen]
    objects = [min(picture.objects) for picture in pictures]
    folds = torch.tensor([_fold(name, settings["folds"]) for name in objects])
    summaries = cache.plain[list(chosen)].float()
    logits = cache.logits(summaries)
    unseen = torch.empty(len(chosen), head.answers.out_features)
    for fold in range(settings["folds"]):
        others = [i for i, its in zip(chosen, folds.tolist(), strict=True) if its != fold]
        stranger = regress(cache, others, rules["regression"])
        with torch.no_grad():
            near = stranger.nearness(stranger.reduced(summaries[folds == fold]))
            unseen[folds == fold] = stranger.answers(near)
    captions = text_head(cache.text([picture.caption for picture in pictures]))
    groups = _labels(objects)
    weights = torch.tensor([settings["source_weights"][picture.source] for picture in pictures])
    stamps = logits[torch.tensor([picture.source == "stamp" for picture in pictures])]
    share = nn.Parameter(torch.ones(()))
    temperature = nn.Parameter(torch.tensor(1.3))
    scale = nn.Parameter(torch.tensor(float(np.log(15.0))))
    optimizer = torch.optim.Adam([share, temperature, scale], lr=settings["rate"])
    for _ in range(settings["steps"]):
        picked = torch.multinomial(weights, settings["batch"])
        bias = class_bias(stamps, temperature, settings["bias_strength"])
        scores = logits[picked] / temperature + bias
        named = scores.softmax(dim=-1) @ head.class_embeddings.detach()
        image = unseen[picked] + share * named
        image = F.normalize(image - image.detach().mean(dim=0), dim=-1)
        text = captions[picked]
        target = soft_targets(text, groups[picked], settings)
        loss = contrastive_loss(scale.exp() * image @ F.normalize(text, dim=-1).T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        # Drawings set the balance; photographs are what the class names know best.
        head.class_share.copy_(share * settings["photograph_share"])
        head.class_temperature.copy_(temperature)
        head.class_bias.copy_(class_bias(stamps, temperature, settings["bias_strength"]))
    return float(scale.detach())


def class_bias(logits: Tensor, temperature: Tensor, strength: float) -> Tensor:
    """Against the classes that the tower sees in every cut-out: [pictures, classes] → [classes].

    At strength 1, classes that are as probable as any other over these pictures.
    """
    prior = (logits / temperature).softmax(dim=-1).mean(dim=0)
    return -strength * prior.clamp_min(1e-6).log()


def _fold(name: str, folds: int) -> int:
    """The same object in the same fold, in every run."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % folds


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


def write(image_head: ImageHead, text_head: TextHead, scale: float, folder: Path) -> None:
    """The two shipped files: heads in half precision, and config.json that says everything."""
    config = _sizes(image_head)
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
            "letterbox": [255, 255, 255],
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [127 / 255] * 3,
            "image_std": [128 / 255] * 3,
        },
        "heads": asdict(config),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _sizes(head: ImageHead) -> HeadsConfig:
    return HeadsConfig(
        summary=head.reduce.in_features,
        directions=head.reduce.out_features,
        centres=len(head.centres),
        classes=len(head.class_embeddings),
        dimension=head.answers.out_features,
    )


def main() -> None:
    """Train on everything but the held-out objects, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder for the heads")
    parser.add_argument(
        "--without-validation", action="store_true", help="keep the validation objects out as well"
    )
    arguments = parser.parse_args()
    settings = recipe.load()
    cache = load_cache(settings)
    parts = {"train"} if arguments.without_validation else TRAINING_PARTS
    chosen = [i for i, picture in enumerate(cache.pictures) if picture.part in parts]
    image_head, text_head, scale = fit(cache, chosen, settings["heads"])
    write(image_head, text_head, scale, arguments.output)
    print(
        f"{len(chosen)} pictures; share of class names {image_head.class_share.item():.2f}, "
        f"temperature {image_head.class_temperature.item():.2f}, "
        f"logit scale {float(np.exp(scale)):.1f}; written to {arguments.output}"
    )


if __name__ == "__main__":
    main()
