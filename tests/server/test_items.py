"""Collections and the pictures in them, over HTTP."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import PIL.Image
import pytest

from tests.server.conftest import (
    LiveServer,
    add,
    data_url,
    error_of,
    make_server,
    picture,
)

# Collections ------------------------------------------------------------------------------------


def test_a_collections_life(client: httpx.Client) -> None:
    made = client.post("/v1/collections", json={"name": "holiday"})
    assert made.status_code == 201
    assert made.json()["object"] == "collection"
    assert made.json()["items"] == 0
    assert made.json()["embedder"] == {"name": "colours", "digest": "c" * 64, "dimension": 64}

    again = client.post("/v1/collections", json={"name": "holiday"})
    assert again.status_code == 409
    assert error_of(again)["code"] == "collection_exists"

    listed = client.get("/v1/collections").json()
    assert listed["object"] == "list"
    assert made.json() in listed["data"]
    assert client.get("/v1/collections/holiday").json() == made.json()

    gone = client.delete("/v1/collections/holiday")
    assert gone.json() == {"object": "collection.deleted", "name": "holiday", "deleted": True}
    for response in (
        client.get("/v1/collections/holiday"),
        client.delete("/v1/collections/holiday"),
        client.get("/v1/collections/holiday/items"),
        client.post("/v1/collections/holiday/search", json={"text": "red"}),
    ):
        assert response.status_code == 404
        assert error_of(response)["code"] == "collection_not_found"


@pytest.mark.parametrize(
    "name", ["../outside", "..", "a/b", "a\\b", "/etc", "A", "", "x" * 65, "é"]
)
def test_names_that_could_leave_the_folder_are_refused(client: httpx.Client, name: str) -> None:
    response = client.post("/v1/collections", json={"name": name})
    assert response.status_code == 400
    assert error_of(response)["param"] == "name"


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "%2e%2e", "..%5c..", "a%00b"])
def test_paths_that_could_leave_the_folder_are_refused(client: httpx.Client, name: str) -> None:
    for response in (
        client.get(f"/v1/collections/{name}"),
        client.delete(f"/v1/collections/{name}"),
        client.get(f"/v1/collections/{name}/items"),
    ):
        assert response.status_code in (400, 404, 405)
        error_of(response)


# Adding -----------------------------------------------------------------------------------------


def test_a_form_with_one_broken_file_adds_the_others(client: httpx.Client, collection: str) -> None:
    names = [f"{n}.png" for n in range(6)]
    contents = [picture("red", seed=n, size=(64, 64)) for n in range(6)]
    contents[3] = contents[3][: len(contents[3]) // 2]
    files = [("files", pair) for pair in zip(names, contents, strict=True)]
    response = client.post(
        f"{collection}/items", files=files, data={"metadata": json.dumps({"shelf": 7})}
    )
    assert response.status_code == 200
    assert response.json()["object"] == "list"
    results = response.json()["data"]
    assert [result["name"] for result in results] == names
    assert [result["status"] for result in results] == [
        "failed" if n == 3 else "added" for n in range(6)
    ]
    assert results[3]["error"]["code"] == "broken_image"
    assert results[3]["error"]["message"].startswith("3.png: ")
    assert "id" not in results[3]
    listed = client.get(f"{collection}/items").json()["data"]
    assert [item["source"] for item in listed] == names[:3] + names[4:]
    assert all(item["metadata"] == {"shelf": 7} for item in listed)
    assert [item["id"] for item in listed] == [r["id"] for r in results if r["status"] == "added"]


def test_more_files_than_are_decoded_at_once(client: httpx.Client, collection: str) -> None:
    results = add(client, collection, *(picture("blue", seed=n, size=(64, 64)) for n in range(40)))
    assert [result["status"] for result in results] == ["added"] * 40
    assert client.get(collection).json()["items"] == 40


def test_a_duplicate_is_reported_and_not_stored(client: httpx.Client, collection: str) -> None:
    data = picture("green", seed=1)
    first, second = add(client, collection, data, data)
    (third,) = add(client, collection, data)
    assert first["status"] == "added"
    assert (second["status"], second["of"]) == ("duplicate", first["id"])
    assert (third["status"], third["of"]) == ("duplicate", first["id"])
    assert client.get(collection).json()["items"] == 1


def test_the_same_picture_uploaded_at_once_is_added_once(
    client: httpx.Client, collection: str
) -> None:
    data = picture("yellow", seed=9, size=(200, 200))

    def upload(n: int) -> str:
        response = client.post(f"{collection}/items", files=[("files", (f"{n}.png", data))])
        return str(response.json()["data"][0]["status"])

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(upload, range(12)))
    assert sorted(statuses) == ["added"] + ["duplicate"] * 11
    assert client.get(collection).json()["items"] == 1


def test_fields_of_an_item(client: httpx.Client, collection: str) -> None:
    (result,) = add(
        client,
        collection,
        picture("red", size=(50, 30)),
        text="ein roter Fleck 🔴",
        metadata={"größe": 3, "tags": ["a"]},
        id="my-own-id",
    )
    assert result["id"] == "my-own-id"
    item = client.get(f"{collection}/items/my-own-id").json()
    assert item["object"] == "item"
    assert (item["width"], item["height"]) == (50, 30)
    assert item["text"] == "ein roter Fleck 🔴"
    assert item["metadata"] == {"größe": 3, "tags": ["a"]}
    assert item["duplicate_of"] is None


def test_unicode_and_hostile_file_names(client: httpx.Client, collection: str) -> None:
    names = ["катя и 猫 🐈.png", "../../etc/passwd", "folder/picture.png"]
    files = [("files", (name, picture("red", seed=n))) for n, name in enumerate(names)]
    results = client.post(f"{collection}/items", files=files).json()["data"]
    assert [result["name"] for result in results] == names
    assert {result["status"] for result in results} == {"added"}
    # A name is a label: the picture is what was sent, whatever file the name could point at.
    for result in results:
        image = client.get(f"{collection}/items/{result['id']}/image")
        assert image.headers["content-type"] == "image/jpeg"


def test_one_bad_item_among_good_ones_in_json(client: httpx.Client, collection: str) -> None:
    good = data_url(picture("red", seed=1))
    items = [
        {"image": good, "id": "first"},
        {"image": "https://example.com/x.png", "source": "x.png"},
        {"image": data_url(picture("blue", seed=2)), "id": "not an id"},
        {"image": data_url(picture("green", seed=3))},
    ]
    results = client.post(f"{collection}/items", json={"items": items}).json()["data"]
    assert [result["status"] for result in results] == ["added", "failed", "failed", "added"]
    assert "not fetched" in results[1]["error"]["message"]
    assert results[2]["error"]["param"] == "id"
    assert client.get(collection).json()["items"] == 2


def test_an_animated_gif_gives_its_first_frame(client: httpx.Client, collection: str) -> None:
    frames = [PIL.Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "blue")]
    import io

    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=50, loop=0)
    (result,) = add(client, collection, buffer.getvalue())
    image = client.get(f"{collection}/items/{result['id']}/image").content
    red, _, blue = PIL.Image.open(io.BytesIO(image)).convert("RGB").getpixel((20, 20))  # type: ignore[misc]
    assert red > 200
    assert blue < 60


def test_a_decompression_bomb_is_refused_by_its_header(
    client: httpx.Client, collection: str
) -> None:
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk))
    body = zlib.compress(bytes(30_001 * 300))
    bomb += struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT"))
    (result,) = add(client, collection, bomb)
    assert result["status"] == "failed"
    assert result["error"]["code"] == "image_too_large"
    response = client.post(f"{collection}/search", json={"image": data_url(bomb)})
    assert response.status_code == 413
    assert error_of(response)["code"] == "image_too_large"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [{}]}, "items[0].image"),
        ({"items": [{"image": 7}]}, "items[0].image"),
        ({"items": [{"image": "x", "metadata": "y"}]}, "items[0].metadata"),
        ({"items": [{"image": "x", "colour": "y"}]}, "items[0].colour"),
        ({"picture": "x"}, "items"),
    ],
)
def test_bodies_that_make_no_sense(
    client: httpx.Client, collection: str, body: object, param: str
) -> None:
    response = client.post(f"{collection}/items", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_forms_that_make_no_sense(client: httpx.Client, collection: str) -> None:
    url, file = f"{collection}/items", ("a.png", picture())
    for answer, param in (
        (client.post(url, files=[("file", file)]), "file"),
        (client.post(url, files=[("files", file)], data={"metadata": "[1]"}), "metadata"),
        (client.post(url, files=[("files", file)], data={"metadata": "{"}), "metadata"),
        (client.post(url, files=[("metadata", ("m", b"{}"))]), "metadata"),
        (client.post(url, files=[("files", ("", b""))]), "files"),
    ):
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["param"] == param
    headers = {"content-type": "multipart/form-data"}
    response = client.post(url, content=b"--x\r\nnonsense", headers=headers)
    assert response.status_code == 400
    error_of(response)


# Looking and changing ---------------------------------------------------------------------------


def test_pages_stay_put_while_pictures_are_added(client: httpx.Client, collection: str) -> None:
    add(client, collection, *(picture("red", seed=n) for n in range(5)))
    first = client.get(f"{collection}/items", params={"limit": 3}).json()
    assert first["has_more"] is True
    add(client, collection, *(picture("blue", seed=n) for n in range(5, 9)))
    seen, after = first["data"], first["next"]
    while after:
        page = client.get(f"{collection}/items", params={"limit": 3, "after": after}).json()
        seen += page["data"]
        after = page["next"]
        assert page["has_more"] is (after is not None)
    assert len(seen) == 9
    assert len({item["id"] for item in seen}) == 9
    assert seen == client.get(f"{collection}/items", params={"limit": 100}).json()["data"]

    newest, after = [], ""
    while after is not None:
        query = {"limit": 4, "order": "desc"} | ({"after": after} if after else {})
        page = client.get(f"{collection}/items", params=query).json()
        newest += page["data"]
        after = page["next"]
    assert newest == seen[::-1]
    refused = client.get(f"{collection}/items", params={"order": "random"})
    assert error_of(refused)["param"] == "order"


@pytest.mark.parametrize("limit", ["0", "1001", "many"])
def test_limits_of_a_page(client: httpx.Client, collection: str, limit: str) -> None:
    response = client.get(f"{collection}/items", params={"limit": limit})
    assert response.status_code == 400
    assert error_of(response)["param"] == "limit"


def test_filtered_listing(client: httpx.Client, collection: str) -> None:
    for price in range(4):
        add(client, collection, picture("red", seed=price), metadata={"price": price})
    found = client.get(
        f"{collection}/items", params={"filter": json.dumps({"price": {"gte": 2}})}
    ).json()["data"]
    assert [item["metadata"]["price"] for item in found] == [2, 3]
    for bad in ("{", "[]", '{"price": {"near": 2}}'):
        response = client.get(f"{collection}/items", params={"filter": bad})
        assert response.status_code == 400
        error_of(response)


def test_update_replaces_what_is_given(client: httpx.Client, collection: str) -> None:
    (result,) = add(client, collection, picture(), text="old", metadata={"a": 1, "b": 2})
    path = f"{collection}/items/{result['id']}"
    assert client.patch(path, json={"text": "new"}).json()["metadata"] == {"a": 1, "b": 2}
    changed = client.patch(path, json={"metadata": {"c": 3}}).json()
    assert (changed["text"], changed["metadata"]) == ("new", {"c": 3})
    assert client.get(path).json() == changed
    for body in ({}, {"image": "x"}, {"text": 7}, []):
        response = client.patch(path, json=body)
        assert response.status_code == 400
        error_of(response)
    missing = client.patch(f"{collection}/items/nobody", json={"text": "x"})
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "item_not_found"


def test_a_deleted_item_is_gone_everywhere(client: httpx.Client, collection: str) -> None:
    (result,) = add(client, collection, picture("red"))
    path = f"{collection}/items/{result['id']}"
    assert client.delete(path).json() == {
        "object": "item.deleted", "id": result["id"], "deleted": True,
    }  # fmt: skip
    for url in (path, f"{path}/thumbnail", f"{path}/image"):
        response = client.get(url)
        assert response.status_code == 404
        assert error_of(response)["code"] == "item_not_found"
    assert client.delete(path).status_code == 404
    assert client.post(f"{collection}/search", json={"text": "red"}).json()["data"] == []


# Pictures out -----------------------------------------------------------------------------------


def test_thumbnail_and_image(client: httpx.Client, collection: str) -> None:
    import io

    (result,) = add(client, collection, picture("red", size=(900, 600), seed=3))
    item = client.get(f"{collection}/items/{result['id']}").json()
    for name, size in (("thumbnail_url", (384, 256)), ("image_url", (900, 600))):
        response = client.get(item[name])
        assert response.headers["content-type"] == "image/jpeg"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "immutable" in response.headers["cache-control"]
        assert PIL.Image.open(io.BytesIO(response.content)).size == size
        etag = response.headers["etag"]
        for sent in (etag, f'"other", W/{etag}', "*"):
            cached = client.get(item[name], headers={"if-none-match": sent})
            assert cached.status_code == 304
            assert cached.content == b""
            assert cached.headers["etag"] == etag
        assert client.get(item[name], headers={"if-none-match": '"x"'}).status_code == 200
        # Without the version in the address it might be another picture tomorrow.
        bare = client.get(item[name].partition("?")[0])
        assert "immutable" not in bare.headers["cache-control"]
        assert bare.headers["etag"] == etag


def test_no_metadata_of_the_original_survives(client: httpx.Client, collection: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x010E] = "SECRET-PLACE"
    data = picture("red", kind="JPEG", exif=exif, comment=b"SECRET-COMMENT") + b"SECRET-TAIL"
    (result,) = add(client, collection, data)
    for kind in ("thumbnail", "image"):
        content = client.get(f"{collection}/items/{result['id']}/{kind}").content
        assert b"SECRET" not in content


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    with make_server(tmp_path) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        client.post("/v1/collections", json={"name": "kept"})
        add(client, "/v1/collections/kept", picture("red", seed=1), picture("blue", seed=2))
        before = client.get("/v1/collections/kept/items").json()
        thumbnail = client.get(before["data"][1]["thumbnail_url"]).content
    with make_server(tmp_path) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        assert client.get("/v1/collections/kept/items").json() == before
        assert client.get(before["data"][1]["thumbnail_url"]).content == thumbnail
        hits = client.post("/v1/collections/kept/search", json={"text": "blue"}).json()["data"]
        assert hits[0]["item"] == before["data"][1]


def test_another_embedders_collection_can_be_seen_and_deleted_but_not_searched(
    tmp_path: Path,
) -> None:
    from tests.server.conftest import ColourEmbedder

    class OtherEmbedder(ColourEmbedder):
        name = "others"
        digest = "d" * 64

    with make_server(tmp_path) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        made = client.post("/v1/collections", json={"name": "old"}).json()
    with (
        make_server(tmp_path, embedder=OtherEmbedder()) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        assert client.get("/v1/collections/old").json() == made
        response = client.post("/v1/collections/old/search", json={"text": "red"})
        assert response.status_code == 409
        assert error_of(response)["code"] == "embedder_mismatch"
        assert client.delete("/v1/collections/old").status_code == 200
        assert client.get("/v1/collections").json()["data"] == []


def test_uploads_survive_each_other(server: LiveServer, collection: str) -> None:
    """Many callers adding at once: every picture is acknowledged once and is there."""

    def upload(n: int) -> list[str]:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            results = add(client, collection, *(picture("red", seed=100 * n + k) for k in range(5)))
            return [result["id"] for result in results]

    with ThreadPoolExecutor(6) as threads:
        ids = [id for some in threads.map(upload, range(6)) for id in some]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        there = client.get(f"{collection}/items", params={"limit": 1000}).json()["data"]
    assert len(ids) == 30
    assert {item["id"] for item in there} == set(ids)
