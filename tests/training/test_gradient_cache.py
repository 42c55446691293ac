"""A batch in parts gives the gradients of the batch at once, dropout and all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import InvalidRequest
from chiasm.training.gradient_cache import cached_backward
from chiasm.training.losses import sigmoid_loss, softmax_loss


class Embedded(NamedTuple):
    images: Tensor | None
    texts: Tensor | None
    scale: Tensor
    bias: Tensor


class Towers(nn.Module):
    """Two towers with dropout. A part is (images, texts), each of which may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Dropout(0.4), nn.Linear(32, 8))
        self.text = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.3), nn.Linear(32, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.calls: list[tuple[int, bool]] = []  # rows, and whether there was a graph

    def forward(self, part: tuple[Tensor | None, Tensor | None]) -> Embedded:
        rows = max(0 if one is None else len(one) for one in part)
        self.calls.append((rows, torch.is_grad_enabled()))
        images, texts = (
            None if one is None else F.normalize(tower(one).float(), dim=1)
            for one, tower in zip(part, (self.image, self.text), strict=True)
        )
        return Embedded(images, texts, self.logit_scale.exp(), self.bias)


def softmax(whole: Embedded, **options: Any) -> Tensor:
    return softmax_loss(whole.images, whole.texts, whole.scale, **options)


def sigmoid(whole: Embedded, **options: Any) -> Tensor:
    return sigmoid_loss(whole.images, whole.texts, whole.scale, whole.bias, **options)


@pytest.fixture
def towers() -> Towers:
    torch.manual_seed(0)
    return Towers()


def batch(images: int = 23, texts: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(images, 10, generator=generator),
        torch.randn(texts, 6, generator=generator),
    )


def pairs(size: int) -> list[Any]:
    return list(zip(*(one.split(size) for one in batch()), strict=True))


def gradients(towers: Towers) -> dict[str, Tensor | None]:
    found = {name: one.grad for name, one in towers.named_parameters()}
    towers.zero_grad()
    return found


def at_once(towers: Towers, parts: list[Any], loss_of: Callable[[Embedded], Tensor]) -> Tensor:
    """The reference: every graph is kept, and the parts draw their dropout in the same order."""
    torch.manual_seed(7)
    embedded = [towers(part) for part in parts]
    images = [each.images for each in embedded if each.images is not None]
    texts = [each.texts for each in embedded if each.texts is not None]
    last = embedded[-1]
    loss = loss_of(Embedded(torch.cat(images), torch.cat(texts), last.scale, last.bias))
    loss.backward()
    return loss.detach()


def assert_same(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    assert wanted.keys() == found.keys()
    for name, one in wanted.items():
        if one is None or not one.any():
            assert found[name] is None or not found[name].any()
            continue
        difference = (found[name] - one).abs().max() / one.abs().max()
        assert difference <= 1e-5, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("tile", [None, 6])
@pytest.mark.parametrize("loss", [softmax, sigmoid])
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_parts_have_the_gradients_of_the_whole(
    towers: Towers, size: int, loss: Callable[..., Tensor], tile: int | None
) -> None:
    def loss_of(whole: Embedded) -> Tensor:
        return loss(whole, tile=tile)

    wanted_loss = at_once(towers, pairs(size), loss_of)
    wanted = gradients(towers)
    torch.manual_seed(7)
    found_loss, scale = cached_backward(towers, pairs(size), loss_of)
    assert_same(gradients(towers), wanted)
    torch.testing.assert_close(found_loss, wanted_loss)
    assert scale == towers.logit_scale.exp()
    assert not found_loss.requires_grad


def test_no_part_is_larger_than_asked_and_each_has_one_graph(towers: Towers) -> None:
    cached_backward(towers, pairs(10), softmax)
    assert towers.calls == [(10, False), (10, False), (3, False), (10, True), (10, True), (3, True)]


def test_images_and_texts_in_parts_of_their_own(towers: Towers) -> None:
    """More captions than images, and parts that have one kind only."""
    images, texts = batch(12, 31)
    groups = {"image_groups": torch.arange(12), "text_groups": torch.arange(31) % 12}
    parts: list[Any] = [(part, None) for part in images.split(5)]
    parts += [(None, part) for part in texts.split(8)]

    def loss_of(whole: Embedded) -> Tensor:
        return softmax(whole, **groups, tile=7)

    at_once(towers, parts, loss_of)
    wanted = gradients(towers)
    torch.manual_seed(7)
    cached_backward(towers, parts, loss_of)
    assert_same(gradients(towers), wanted)


@pytest.mark.parametrize("locked", ["image", "text", "logit_scale"])
def test_a_locked_part_stays_without_gradients(towers: Towers, locked: str) -> None:
    getattr(towers, locked).requires_grad_(False)
    at_once(towers, pairs(6), sigmoid)
    wanted = gradients(towers)
    torch.manual_seed(7)
    cached_backward(towers, pairs(6), sigmoid)
    assert_same(gradients(towers), wanted)


def test_gradients_add_to_those_that_are_there(towers: Towers) -> None:
    towers.eval()
    cached_backward(towers, pairs(6), sigmoid)
    once = {name: one.grad.clone() for name, one in towers.named_parameters()}
    cached_backward(towers, pairs(6), sigmoid)
    for name, one in towers.named_parameters():
        torch.testing.assert_close(one.grad, 2 * once[name])


def test_the_generator_goes_on_as_if_each_part_had_been_embedded_once(towers: Towers) -> None:
    at_once(towers, pairs(6), softmax)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    cached_backward(towers, pairs(6), softmax)
    assert torch.equal(torch.rand(3), wanted)


def test_under_autocast(towers: Towers) -> None:
    """Weights that autocast keeps from the pass without a graph would get no gradient."""
    towers.eval()
    with torch.autocast("cpu", torch.bfloat16):
        at_once(towers, pairs(6), softmax)
        wanted = gradients(towers)
        cached_backward(towers, pairs(6), softmax)
    found = gradients(towers)
    for name, one in wanted.items():
        if one is None or not one.any():
            continue
        assert (found[name] - one).abs().max() <= 0.02 * one.abs().max(), name


def test_only_the_last_part_is_told_to_exchange(towers: Towers) -> None:
    told: list[bool] = []

    @contextmanager
    def exchanging(last: bool) -> Iterator[None]:
        told.append(last)
        yield

    cached_backward(towers, pairs(10), softmax, exchanging=exchanging)
    assert told == [False, False, False, True]  # the pass without a graph, then part by part


def test_no_parts(towers: Towers) -> None:
    with pytest.raises(InvalidRequest, match="no parts"):
        cached_backward(towers, [], softmax)
