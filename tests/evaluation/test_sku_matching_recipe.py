"""The recipe of product matching: which cut-outs become products, and what its report counts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from chiasm.media import Image
from chiasm.training.data_recipe import Columns

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def recipes_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folders = [str(RECIPES / name) for name in ("sku_matching", "default_embedder")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    names = ("build", "evaluate", "recipe", "pictures", "views")  # other recipes have such, too
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


# Products ---------------------------------------------------------------------------------------


def test_looking_alike_is_passed_on_along_a_chain() -> None:
    from build import alike

    random = np.random.default_rng(0)
    hashes = [int(value) for value in random.integers(0, 2**20, size=60)]
    found = alike(hashes, 3)
    # By the definition: whatever a walk over near pairs reaches from a hash.
    for start in range(60):
        reached, waiting = {start}, [start]
        while waiting:
            here = waiting.pop()
            near = {i for i in range(60) if (hashes[here] ^ hashes[i]).bit_count() <= 3}
            waiting += near - reached
            reached |= near
        assert {i for i in range(60) if found[i] == found[start]} == reached
    assert 1 < len(set(found)) < 60


def cut_out(path: Path, *, filled: bool = True) -> Path:
    picture = PIL.Image.new("RGBA", (100, 80), (0, 0, 0, 0))
    if filled:
        PIL.ImageDraw.Draw(picture).ellipse((20, 10, 90, 70), fill=(200, 30, 30, 255))
    picture.save(path)
    return path


def test_products_differ_in_looks_and_in_titles(tmp_path: Path) -> None:
    from pictures import Picture

    from build import products

    def picture(name: str, caption: str, looks: int, *, filled: bool = True) -> Any:
        path = cut_out(tmp_path / f"{name}.png", filled=filled)
        return Picture(path, "stamp", caption, hash=looks)

    candidates = [
        picture("a", "A shoe.", 0),
        picture("b", "Another shoe.", 0b111),  # looks like a
        picture("c", "a shoe", (1 << 40) - 1),  # is called as a is
        picture("d", "A hat.", ((1 << 20) - 1) << 40),
        picture("e", "Nothing.", ((1 << 20) - 1) << 20, filled=False),
    ]
    chosen = {each.path.stem for each in products(candidates, 2)}
    assert "d" in chosen or chosen == {"b", "c"}
    assert "e" not in chosen
    assert not {"a", "b"} <= chosen
    assert not {"a", "c"} <= chosen
    with pytest.raises(SystemExit, match="different cut-outs"):
        products(candidates, 5)


def test_views_are_jpegs_of_the_size_and_come_out_the_same_again(tmp_path: Path) -> None:
    from pictures import Picture

    from build import write_views

    product = Picture(cut_out(tmp_path / "a.png"), "stamp", "A ball.")
    contents = []
    for run in ("one", "two"):
        folder = tmp_path / run
        (folder / "pictures").mkdir(parents=True)
        names = write_views(3, product, folder=folder, views=3, side=120)
        assert names == [f"pictures/sku-00003-{view}.jpg" for view in range(3)]
        for name in names:
            picture = PIL.Image.open(folder / name)
            assert picture.format == "JPEG"
            assert 90 <= min(picture.size) <= max(picture.size) <= 120
        contents.append([(folder / name).read_bytes() for name in names])
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 3


# The report -------------------------------------------------------------------------------------


class ByColour:
    """Sees a picture's mean colour, and knows three words. Blurred, it mixes green and blue."""

    name, digest, dimension, decode_side = "colours", "0", 3, 8

    def __init__(self, *, blurred: bool = False) -> None:
        self._blurred = blurred

    def embed_images(self, images: Sequence[Image]) -> Any:
        rows = np.array([image.pixels.mean(axis=(0, 1)) for image in images]).reshape(-1, 3)
        return self._unit(rows)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        words = ("red", "green", "blue")
        return self._unit(np.array([[255.0 * (word in text) for word in words] for text in texts]))

    def count_tokens(self, text: str) -> int:
        return len(text)

    def _unit(self, rows: Any) -> Any:
        if self._blurred:
            rows = np.stack([rows[:, 0], rows[:, 1:].sum(axis=1), 0 * rows[:, 0]], axis=1)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two pictures each of a red, a green and a blue product, and rows that cannot be used."""
    lines = ["file,title,sku"]
    for colour, value in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        for view in range(2):
            shade = tuple(max(0, part - 20 * view) for part in value)
            PIL.Image.new("RGB", (16, 16), shade).save(tmp_path / f"{colour}{view}.png")
            lines.append(f"{colour}{view}.png,a {colour} shirt,{colour}")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines += ["broken.png,a hat,hat", "red0.jpg,,red", "green1.jpg,a cap,"]
    path = tmp_path / "test.csv"
    path.write_text("\n".join(lines))
    return path


def test_the_report_counts_by_hand(table: Path) -> None:
    import evaluate

    shots, passed_over = evaluate.read_shots(table, Columns())
    assert passed_over == Counter({"no caption": 1, "no SKU": 1})
    sharp, blurred = ByColour(), ByColour(blurred=True)
    opened, pictures = evaluate.embed_pictures(blurred, shots, passed_over)
    assert len(opened) == 6
    assert sum(passed_over.values()) == 3
    again, clear = evaluate.embed_pictures(sharp, opened, passed_over)
    assert again == opened
    lines = evaluate.compare(
        evaluate.rankings(blurred, opened, pictures), evaluate.rankings(sharp, opened, clear)
    )
    found = {(line.task, line.measure): line for line in lines}
    one = found["image → image", "recall@1"]
    # Blurred, green and blue pictures tie with the others' and a tie counts against us.
    assert (one.queries, one.before.value, one.after.value) == (6, pytest.approx(1 / 3), 1.0)
    assert one.difference.value == pytest.approx(2 / 3)
    titles = found["title → image", "recall@1"]
    assert (titles.queries, titles.before.value, titles.after.value) == (3, pytest.approx(1 / 3), 1)
    # Right answers at places 3 and 4, behind two wrong ones that tie with them: (1/3 + 2/4) / 2.
    expected = (1 + 2 * (1 / 3 + 2 / 4) / 2) / 3
    assert found["title → image", "mAP"].before.value == pytest.approx(expected)
    assert "| image → image | recall@1 | 6 | 0.333" in "\n".join(evaluate.as_table(lines))


def test_one_embedder_alone_is_reported_without_a_difference(table: Path) -> None:
    import evaluate

    shots, passed_over = evaluate.read_shots(table, Columns())
    opened, pictures = evaluate.embed_pictures(ByColour(), shots, passed_over)
    lines = evaluate.compare(evaluate.rankings(ByColour(), opened, pictures), None)
    assert all(line.after is None and line.difference is None for line in lines)
    assert len(evaluate.as_table(lines)) == 2 + 6
