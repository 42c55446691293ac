"""Search over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conftest import COLOURS, add, data_url, error_of, picture


@pytest.fixture
def colours(client: httpx.Client, collection: str) -> dict[str, str]:
    """One picture of each colour: id by colour."""
    ids = {}
    for seed, colour in enumerate(COLOURS):
        (result,) = add(
            client,
            collection,
            picture(colour, seed=seed),
            metadata={"colour": colour, "place": seed},
        )
        ids[colour] = result["id"]
    return ids


def search(client: httpx.Client, collection: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"{collection}/search", json=body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


@pytest.mark.parametrize("colour", COLOURS)
def test_words_find_their_picture(
    client: httpx.Client, collection: str, colours: dict[str, str], colour: str
) -> None:
    result = search(client, collection, text=f"something {colour}", limit=3)
    assert result["object"] == "search.result"
    assert result["data"][0]["id"] == colours[colour]
    assert result["data"][0]["item"]["metadata"]["colour"] == colour
    scores = [hit["score"] for hit in result["data"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert result["usage"] == {"prompt_tokens": 2, "total_tokens": 2, "images": 0}
    assert set(result["timing"]) == {"embed_seconds", "search_seconds"}
    assert all(seconds >= 0 for seconds in result["timing"].values())


def test_a_picture_finds_its_like(
    client: httpx.Client, collection: str, colours: dict[str, str]
) -> None:
    result = search(client, collection, image=data_url(picture("blue", kind="JPEG"), "image/jpeg"))
    assert result["data"][0]["id"] == colours["blue"]
    assert result["usage"]["images"] == 1


def test_words_and_a_picture_together(
    client: httpx.Client, collection: str, colours: dict[str, str]
) -> None:
    result = search(client, collection, image=data_url(picture("blue")), text="red", limit=2)
    assert {hit["id"] for hit in result["data"]} == {colours["blue"], colours["red"]}


def test_neighbours_of_an_item_leave_it_out(
    client: httpx.Client, collection: str, colours: dict[str, str]
) -> None:
    (near,) = add(client, collection, picture("red", seed=77))
    hits = search(client, collection, item=colours["red"], limit=100)["data"]
    assert hits[0]["id"] == near["id"]
    assert colours["red"] not in {hit["id"] for hit in hits}
    assert len(hits) == len(COLOURS)
    response = client.post(f"{collection}/search", json={"item": "nobody"})
    assert response.status_code == 404
    assert error_of(response)["code"] == "item_not_found"


def test_a_filter_narrows_before_the_search(
    client: httpx.Client, collection: str, colours: dict[str, str]
) -> None:
    hits = search(client, collection, text="red", limit=1, filter={"place": {"gte": 3}})["data"]
    assert len(hits) == 1
    assert hits[0]["item"]["metadata"]["place"] >= 3


def test_offsets_continue_the_list(
    client: httpx.Client, collection: str, colours: dict[str, str]
) -> None:
    whole = search(client, collection, text="green", limit=6)["data"]
    parts = [search(client, collection, text="green", limit=2, offset=n)["data"] for n in (0, 2, 4)]
    assert [hit["id"] for part in parts for hit in part] == [hit["id"] for hit in whole]
    assert search(client, collection, text="green", offset=6)["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": "  "}, "text"),
        ({"text": 5}, "text"),
        ({"text": "red", "limit": 0}, "limit"),
        ({"text": "red", "limit": 1001}, "limit"),
        ({"text": "red", "offset": -1}, "offset"),
        ({"text": "red", "filters": {}}, "filters"),
        ({"text": "red", "filter": {"price": {"near": 1}}}, "filter"),
        ({"text": "red", "filter": [1]}, "filter"),
    ],
)
def test_searches_that_make_no_sense(
    client: httpx.Client, collection: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(f"{collection}/search", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"].partition(".")[0] == param


@pytest.mark.parametrize(
    "image", ["https://example.com/a.jpg", "/etc/passwd", "data:image/png;base64,aGVsbG8=", "x"]
)
def test_a_query_picture_is_a_data_url(client: httpx.Client, collection: str, image: str) -> None:
    response = client.post(f"{collection}/search", json={"image": image})
    assert response.status_code == 400
    assert error_of(response)["code"] in ("invalid_image", "not_an_image")
