"""The losses, plain and tiled, against their formulas written out in double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chiasm.errors import InvalidRequest
from chiasm.training.losses import sigmoid_loss, softmax_loss

TILES = [None, 16, 23, 1000]


@dataclass(frozen=True)
class Case:
    images: Tensor
    texts: Tensor
    image_groups: Tensor | None = None
    text_groups: Tensor | None = None
    scale: float = 14.3
    bias: float = -3.0
    # Single precision rounds a logit to 1e-7 of its size, and the exponential sees the difference.
    tolerance: float = 1e-5


def groups_of(case: Case) -> dict[str, Any]:
    return {"image_groups": case.image_groups, "text_groups": case.text_groups}


def unit(count: int, dimension: int = 24) -> Tensor:
    return F.normalize(torch.randn(count, dimension), dim=1)


def groups(*labels: int) -> Tensor:
    return torch.tensor(labels)


def unique_pairs(count: int = 50, closeness: float = 1.2, **numbers: Any) -> Case:
    images = unit(count)
    texts = F.normalize(closeness * images + unit(count), dim=1)
    return Case(images, texts, **numbers)


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    images = unit(30)
    return {
        "unique": unique_pairs(),
        "one pair": unique_pairs(1),
        "scale 1": unique_pairs(scale=1.0),
        "scale 100": unique_pairs(scale=100.0, bias=-10.0),
        "scale 100, random": Case(unit(40), unit(40), scale=100.0, bias=-10.0),
        "scale 100, all but learnt": unique_pairs(closeness=2.0, scale=100.0, bias=-40.0),
        "scale 300": unique_pairs(scale=300.0, bias=-100.0, tolerance=5e-5),
        "longer than unit": Case(7 * unit(20), 5 * unit(20), scale=10.0, tolerance=5e-5),
        # Every text is opposite to every image: no sum survives a shift that suits the others.
        "far apart": Case(
            F.normalize(1 + 0.1 * unit(20), dim=1),
            F.normalize(-1 + 0.1 * unit(20), dim=1),
            scale=100.0,
            tolerance=5e-5,
        ),
        "one image far from all": Case(
            torch.cat([images, -images.mean(0, keepdim=True)]).contiguous(),
            torch.cat([images, -images.mean(0, keepdim=True)]).contiguous(),
            scale=1000.0,
            bias=-500.0,
            tolerance=5e-5,
        ),
        "several captions an image": Case(
            unit(20), unit(61), torch.arange(20), torch.arange(61) % 20
        ),
        "duplicates": Case(
            unit(40), unit(40), torch.arange(40) // 3 * 1000, torch.arange(40) // 3 * 1000
        ),
        "hard negatives": Case(
            unit(21),
            unit(50),
            torch.arange(21),
            torch.cat([torch.arange(21), -torch.arange(1, 30)]),
        ),
        "ten classes": Case(
            unit(64), unit(47), torch.randint(0, 10, (64,)), torch.randint(0, 10, (47,))
        ),
        "ten classes, scale 100": Case(
            unit(64), unit(47), torch.randint(0, 10, (64,)), torch.randint(0, 10, (47,)), 100.0
        ),
        "some alone on both sides": Case(
            unit(5), unit(4), groups(1, 2, 3, 3, 9), groups(3, 7, 1, 8), scale=50.0
        ),
        "more images than texts": Case(unit(61), unit(20), torch.arange(61) % 20, torch.arange(20)),
        "no positive at all": Case(unit(5), unit(6), torch.zeros(5).long(), torch.ones(6).long()),
    }


CASES = cases()


# The formulas, in double precision --------------------------------------------------------------


def softmax_formula(case: Case, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = scale * images @ texts.T
    if case.image_groups is None:
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    directions = []
    for rows, own, others in (
        (logits, case.image_groups, case.text_groups),
        (logits.T, case.text_groups, case.image_groups),
    ):
        losses = []
        for row, group in zip(rows, own, strict=True):
            targets = (others == group).double()
            if targets.sum():  # the cross-entropy with soft targets, equal over the positives
                losses.append(F.cross_entropy(row, targets / targets.sum()))
        directions.append(torch.stack(losses).mean() if losses else rows.sum() * 0)
    return sum(directions) / 2


def sigmoid_formula(
    case: Case, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    image_groups = torch.arange(len(images)) if case.image_groups is None else case.image_groups
    text_groups = torch.arange(len(texts)) if case.text_groups is None else case.text_groups
    for image, group in zip(images, image_groups, strict=True):
        z = 2.0 * (text_groups == group).double() - 1.0
        total = total - F.logsigmoid(z * (scale * texts @ image + bias)).sum()
    return total / len(images)


@cache
def softmax_wanted(name: str) -> list[Tensor]:
    case = CASES[name]
    return with_gradients(partial(softmax_formula, case), case, sigmoid=False, dtype=torch.float64)


@cache
def sigmoid_wanted(name: str) -> list[Tensor]:
    case = CASES[name]
    return with_gradients(partial(sigmoid_formula, case), case, sigmoid=True, dtype=torch.float64)


def with_gradients(
    loss: Callable[..., Tensor], case: Case, *, sigmoid: bool, dtype: torch.dtype
) -> list[Tensor]:
    """The loss, and 1.7 times its gradients at images, texts, scale and (for the sigmoid) bias."""
    leaves = [case.images.to(dtype).clone(), case.texts.to(dtype).clone()]
    leaves.append(torch.tensor(case.scale, dtype=dtype))
    if sigmoid:
        leaves.append(torch.tensor(case.bias, dtype=dtype))
    for leaf in leaves:
        leaf.requires_grad_()
    value = loss(*leaves)
    (1.7 * value).backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Relative to the largest number of each tensor."""
    names = ["loss", "images", "texts", "scale", "bias"]
    for name, one, other in zip(names, found, wanted, strict=False):
        difference = (one.double() - other.double()).abs().max()
        # A gradient may be zero but for rounding: 1e-7 is the unit embeddings' own precision.
        allowed = tolerance * other.double().abs().max() + 1e-7
        assert difference <= allowed, f"{name}: {difference:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", CASES)
def test_softmax_is_its_formula(name: str, tile: int | None) -> None:
    case = CASES[name]
    found = with_gradients(
        partial(softmax_loss, **groups_of(case), tile=tile),
        case,
        sigmoid=False,
        dtype=torch.float32,
    )
    assert_close(found, softmax_wanted(name), case.tolerance)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", CASES)
def test_sigmoid_is_its_formula(name: str, tile: int | None) -> None:
    case = CASES[name]
    found = with_gradients(
        partial(sigmoid_loss, **groups_of(case), tile=tile),
        case,
        sigmoid=True,
        dtype=torch.float32,
    )
    assert_close(found, sigmoid_wanted(name), case.tolerance)


@pytest.mark.parametrize("tile", [None, 16])
def test_no_positive_means_no_softmax_loss(tile: int | None) -> None:
    case = CASES["no positive at all"]
    numbers = torch.tensor(10.0)
    found = softmax_loss(case.images, case.texts, numbers, tile=tile, **groups_of(case))
    assert found == 0


@pytest.mark.parametrize("tile", [None, 16])
def test_double_precision_stays_double(tile: int | None) -> None:
    case = CASES["ten classes"]
    found = with_gradients(
        partial(softmax_loss, **groups_of(case), tile=tile),
        case,
        sigmoid=False,
        dtype=torch.float64,
    )
    for one, other in zip(found, softmax_wanted("ten classes"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


# What training does with them -------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["images", "texts", "scale"])
@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_gradients_of_one_input_alone(loss: Any, trained: str) -> None:
    case = CASES["unique"]
    gradients = []
    for tile in (None, 16):
        leaves = {"images": case.images.clone(), "texts": case.texts.clone()}
        leaves["scale"] = torch.tensor(case.scale)
        if loss is sigmoid_loss:
            leaves["bias"] = torch.tensor(case.bias)
        leaves[trained].requires_grad_()
        loss(**leaves, tile=tile).backward()
        assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [trained]
        gradients.append(leaves[trained].grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_learned_scale_of_any_shape(loss: Any) -> None:
    """Checkpoints keep logit_scale as a scalar or as one number in a row."""
    case = CASES["unique"]
    for shape in ((), (1,)):
        logit_scale = torch.full(shape, 2.0, requires_grad=True)
        bias = [torch.full(shape, -3.0)] if loss is sigmoid_loss else []
        value = loss(case.images, case.texts, logit_scale.exp(), *bias, tile=16)
        assert value.shape == ()
        value.backward()
        assert logit_scale.grad is not None
        assert logit_scale.grad.shape == shape


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_without_gradients(loss: Any, tile: int | None) -> None:
    case = CASES["unique"]
    numbers = [torch.tensor(5.0, requires_grad=True)]
    numbers += [torch.tensor(-3.0)] if loss is sigmoid_loss else []
    with torch.no_grad():
        value = loss(case.images, case.texts, *numbers, tile=tile)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(case.images, case.texts, *numbers, tile=tile).detach())


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_backward_twice_adds_up(loss: Any) -> None:
    case = CASES["unique"]
    images = case.images.clone().requires_grad_()
    numbers = [torch.tensor(5.0)] + ([torch.tensor(-3.0)] if loss is sigmoid_loss else [])
    value = loss(images, case.texts, *numbers, tile=16)
    value.backward(retain_graph=True)
    once = images.grad.clone()
    value.backward()
    torch.testing.assert_close(images.grad, 2 * once)


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_half_precision_is_computed_in_single(loss: Any, tile: int | None) -> None:
    """Also inside autocast, which would take the product of embeddings down to half."""
    case = CASES["scale 100"]
    images, texts = case.images.bfloat16(), case.texts.bfloat16()
    numbers = [torch.tensor(100.0)] + ([torch.tensor(-10.0)] if loss is sigmoid_loss else [])
    wanted = loss(images.double(), texts.double(), *(one.double() for one in numbers))
    with torch.autocast("cpu", torch.bfloat16):
        leaf = images.clone().requires_grad_()
        found = loss(leaf, texts, *numbers, tile=tile)
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=0)
    assert leaf.grad.dtype == torch.bfloat16


def test_tiled_memory_does_not_grow_with_the_number_of_pairs() -> None:
    """Nothing that the loss allocates, forward or backward, is as large as the matrix."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for one in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(one, Tensor):
                    largest = max(largest, one.numel())
            return made

    case = unique_pairs(600)
    for loss in (softmax_loss, sigmoid_loss):
        largest = 0
        images = case.images.clone().requires_grad_()
        numbers = [torch.tensor(5.0)] + ([torch.tensor(-3.0)] if loss is sigmoid_loss else [])
        with Watch():
            loss(images, case.texts.clone().requires_grad_(), *numbers, tile=64).backward()
        assert largest <= max(600 * 24, 64 * 64)
        with Watch():
            loss(images, case.texts, *numbers)
        assert largest >= 600 * 600  # the plain form does, so the watch sees it


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_a_loss_that_is_no_number_is_said_to_be_none(loss: Any, tile: int | None) -> None:
    """The trainer tells its user; the loss neither hangs nor hides it."""
    case = CASES["unique"]
    images = case.images.clone()
    images[7, 3] = torch.nan
    numbers = [torch.tensor(5.0)] + ([torch.tensor(-3.0)] if loss is sigmoid_loss else [])
    assert loss(images, case.texts, *numbers, tile=tile).isnan()


# Bad input --------------------------------------------------------------------------------------

A, G = torch.zeros(3, 4), torch.arange(3)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"texts": torch.zeros(4, 4)}, "texts", "3 images and 4 texts, but no groups"),
        ({"texts": torch.zeros(3, 5)}, "texts", "4 dimensions, texts in 5"),
        ({"images": torch.zeros(4)}, "images", r"float32 \[4\]"),
        ({"images": torch.zeros(3, 4).long()}, "images", r"int64 \[3, 4\]"),
        ({"images": torch.zeros(0, 4), "texts": torch.zeros(0, 4)}, "images", "no images"),
        ({"scale": torch.ones(2)}, "scale", r"scale is float32 \[2\]"),
        ({"scale": torch.tensor(2)}, "scale", "int64"),
        ({"image_groups": G}, "text_groups", "no text_groups"),
        ({"text_groups": G}, "image_groups", "no image_groups"),
        ({"image_groups": G[:2], "text_groups": G}, "image_groups", r"int64 \[2\], for 3 images"),
        ({"image_groups": G, "text_groups": G.int()}, "text_groups", "int32"),
        ({"image_groups": G, "text_groups": G[:, None]}, "text_groups", r"\[3, 1\]"),
        ({"texts": torch.zeros(3, 4, device="meta")}, "texts", "on cpu, meta"),
    ],
)
def test_what_does_not_fit(given: Any, param: str, message: str, tile: int | None) -> None:
    arguments = {"images": A, "texts": A, "scale": ONE, "tile": tile, **given}
    with pytest.raises(InvalidRequest, match=message) as caught:
        softmax_loss(**arguments)
    assert caught.value.param == param
    assert caught.value.hint
    with pytest.raises(InvalidRequest, match=message):
        sigmoid_loss(**{"bias": ONE, **arguments})


def test_a_tile_of_nothing() -> None:
    with pytest.raises(InvalidRequest, match="side 0"):
        softmax_loss(A, A, ONE, tile=0)
