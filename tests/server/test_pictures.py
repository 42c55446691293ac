"""How much is decoded at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from chiasm.errors import BrokenImage, ImageError, NotAnImage
from chiasm.media.limits import Limits
from chiasm.server.pictures import Encoded, PictureOpener, from_data_url
from tests.server.conftest import data_url, picture

SIDE = 200
COST = 8 * (SIDE + 1) ** 2


def encoded(data: bytes, name: str = "picture") -> Encoded:
    return Encoded(name, lambda: data)


def test_requests_share_one_budget() -> None:
    opener = PictureOpener(Limits(), decoded_bytes=4 * COST)
    data = picture(size=(SIDE, SIDE))
    open_now, most = 0, 0

    async def request(count: int) -> int:
        nonlocal open_now, most
        total = 0
        pictures = [encoded(data)] * count
        async with aclosing(opener.open_groups(pictures, shortest_side=None)) as groups:
            async for group in groups:
                open_now += len(group)
                most = max(most, open_now)
                await asyncio.sleep(0.005)
                total += len(group)
                open_now -= len(group)
        return total

    async def all_requests() -> list[int]:
        return await asyncio.gather(*(request(count) for count in (1, 5, 20, 2, 40)))

    assert asyncio.run(all_requests()) == [1, 5, 20, 2, 40]
    assert 2 <= most <= 4


def test_one_picture_above_the_whole_budget_is_let_in_alone() -> None:
    opener = PictureOpener(Limits(), decoded_bytes=COST // 2)
    data = picture(size=(SIDE, SIDE))

    async def request() -> list[int]:
        groups = opener.open_groups([encoded(data)] * 3, shortest_side=None)
        return [len(group) async for group in groups]

    assert asyncio.run(request()) == [1, 1, 1]


def test_a_jpeg_costs_what_it_is_decoded_at() -> None:
    big = picture(size=(1600, 1600), kind="JPEG")
    opener = PictureOpener(Limits(), decoded_bytes=8 * 210 * 210 * 8)

    async def request(shortest_side: int | None) -> list[tuple[int, int]]:
        groups = opener.open_groups([encoded(big)] * 4, shortest_side=shortest_side)
        return [(len(group), group[0].image.width) async for group in groups if group[0].image]

    assert asyncio.run(request(200)) == [(4, 200)]
    assert asyncio.run(request(None)) == [(1, 1600)] * 4


def test_a_budget_is_given_back_when_a_request_ends_early() -> None:
    opener = PictureOpener(Limits(), decoded_bytes=COST)
    data = picture(size=(SIDE, SIDE))

    async def requests() -> None:
        for _ in range(3):
            async with aclosing(
                opener.open_groups([encoded(data)] * 5, shortest_side=None)
            ) as groups:
                async for _ in groups:
                    break
        async with asyncio.timeout(5):
            async for group in opener.open_groups([encoded(data)], shortest_side=None):
                assert group[0].image is not None

    asyncio.run(requests())


def test_errors_stand_in_their_place() -> None:
    opener = PictureOpener(Limits())
    whole = picture(size=(100, 100), seed=1)
    pictures = [
        encoded(whole, "a"),
        encoded(b"nothing", "b"),
        encoded(whole[: len(whole) // 2], "c"),
        from_data_url(data_url(whole), limits=Limits(), name="d"),
        from_data_url("data:image/png;base64,@", limits=Limits(), name="e"),
    ]

    async def request() -> list[object]:
        groups = opener.open_groups(pictures, shortest_side=None)
        return [one.error or one.image async for group in groups for one in group]

    a, b, c, d, e = asyncio.run(request())
    assert a == d
    assert isinstance(b, NotAnImage)
    assert isinstance(c, BrokenImage)
    assert isinstance(e, ImageError)
    assert str(c).startswith("c: ")


@pytest.mark.parametrize("url", ["/etc/passwd", "cat.png", "file:///x", "", "https://a/b.png"])
def test_only_data_urls_are_pictures(url: str) -> None:
    with pytest.raises(ImageError):
        from_data_url(url, limits=Limits(), name="x")


def test_a_data_url_above_the_limit_is_refused_by_its_length() -> None:
    limits = Limits(max_bytes=1000)
    url = "data:image/png;base64," + "A" * 2000
    with pytest.raises(ImageError, match="1,000 bytes"):
        from_data_url(url, limits=limits, name="x").read()
