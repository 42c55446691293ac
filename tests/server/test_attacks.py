"""Attacks by what a picture holds, replayed against a running server.

Each names where it succeeded. Those by a picture's address are in `test_attacks_fetching`.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import re
import resource
import signal
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import torch

from chiasm.generation import NativeGenerator
from chiasm.media import sandbox
from chiasm.media.limits import Limits
from chiasm.media.sandbox import Sandbox
from chiasm.server import create_app
from tests.generation.providers.fake_vllm import FakeVLLM
from tests.generation.tiny_models import tiny_llava
from tests.media.picture_files import bombs, encode, exif, one_of_each, png, png_chunk, scene
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    data_url,
    error_of,
    image_part,
    make_settings,
    picture,
)

ASKED = {"type": "text", "text": "What is this?"}
RED = picture("red")
SENTENCES = re.compile(
    r"(messages|input)[\w\[\].]*: (it is damaged or cut short\."
    r"|its header is damaged or of an unusual kind\.|it is empty\."
    r"|this is not a picture\. Pictures are read as JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF\."
    r"|it has [\d,]+ frames, of which a model sees one\. Send the frame that you mean as a still"
    r" picture\.)"
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("attacked")
    generator = NativeGenerator(tiny_llava(folder / "model"))
    settings = dataclasses.replace(make_settings(folder), media=Limits(max_seconds=2))
    app = create_app(settings, embedder=ColourEmbedder(), generator=generator)
    with LiveServer(app) as live:
        yield live


@pytest.fixture
def door(attacked: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=attacked.url, timeout=60) as client:
        yield client


def ask(client: httpx.Client, *pictures: bytes, **more: Any) -> httpx.Response:
    content = [*map(image_part, pictures), ASKED]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3, **more}
    return client.post("/v1/chat/completions", json=body)


def embed(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": [image_part(data)]})


def still_answers(client: httpx.Client) -> None:
    answer = ask(client, RED)
    assert answer.status_code == 200, answer.text


# Another user's picture answered ----------------------------------------------------------------


def indexed(palette: list[int], mode: str = "P") -> bytes:
    """Always the same indices, drawn with the colours of `palette`."""
    rows = (np.indices((40, 48)).sum(axis=0) // 8 % 2).astype(np.uint8)
    drawn = PIL.Image.fromarray(rows, "L") if mode == "L" else PIL.Image.fromarray(rows, mode)
    if mode == "P":
        drawn.putpalette(palette)
    return encode(drawn, "PNG")


def same_bytes(size: tuple[int, int]) -> bytes:
    """Pictures of different shape whose pixels, in a row, are the same bytes."""
    values = np.arange(48 * 40 * 3, dtype=np.uint64) * 2654435761 % 251
    return encode(PIL.Image.fromarray(values.astype(np.uint8).reshape(*size[::-1], 3)), "PNG")


COLLISIONS = {
    "palette": (indexed([255, 0, 0, 0, 0, 255]), indexed([0, 255, 0, 255, 255, 0])),
    "mode": (indexed([255, 255, 255, 0, 0, 0]), indexed([], "L")),
    "size": (same_bytes((48, 40)), same_bytes((40, 48))),
}


@pytest.mark.parametrize("what", COLLISIONS)
def test_the_cache_answered_with_anothers_picture(door: httpx.Client, what: str) -> None:
    """vLLM, CVE-2025-46722 and GHSA-c65p-x677-fgj6; LMCache, issue 3301."""

    def answered(data: bytes, tenant: str) -> tuple[Any, int]:
        answer = ask(door, data, logprobs=True, top_logprobs=5, cache_salt=tenant).json()
        probabilities = [
            [(top["token"], round(top["logprob"], 4)) for top in token["top_logprobs"]]
            for token in answer["choices"][0]["logprobs"]["content"]
        ]
        return probabilities, answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    mine, theirs = COLLISIONS[what]
    alone, _ = answered(theirs, f"{what}: nobody else")
    first, _ = answered(mine, f"{what}: tenant")
    # The same tenant, then another one, with the picture that was taken for mine.
    for tenant in (f"{what}: tenant", f"{what}: another"):
        after, cached = answered(theirs, tenant)
        assert after == alone
        assert after != first
        assert cached < 16  # of the picture, nothing: it has 16 tokens, behind the first words
    # That something is remembered at all, and for whom.
    again, cached = answered(mine, f"{what}: tenant")
    assert again == first
    assert cached > 0
    _, cached = answered(mine, f"{what}: a stranger")
    assert cached == 0


def test_embeddings_tell_palettes_apart(door: httpx.Client) -> None:
    vectors = [embed(door, data).json()["data"][0]["embedding"] for data in COLLISIONS["palette"]]
    assert vectors[0] != vectors[1]


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 3000), (3000, 1), (2, 30_000)])
def test_a_tiny_picture_stopped_the_engine(door: httpx.Client, size: tuple[int, int]) -> None:
    """vLLM, CVE-2026-22773."""
    for mode in ("RGB", "L", "1", "RGBA"):
        answer = ask(door, encode(PIL.Image.new(mode, size), "PNG"))
        assert answer.status_code in (200, 400), answer.text
    still_answers(door)


def test_one_bad_request_ended_the_others(attacked: LiveServer, door: httpx.Client) -> None:
    bad = [RED[:60], png(1, 1, rows=b""), bombs()["png"], b"no picture", one_of_each()["gif"]]
    body = {"messages": [{"role": "user", "content": [image_part(RED), ASKED]}]}
    body |= {"max_tokens": 60, "stream": True}
    pieces = []
    with door.stream("POST", "/v1/chat/completions", json=body) as streamed:
        for line in streamed.iter_lines():
            if len(pieces) < len(bad):
                with httpx.Client(base_url=attacked.url, timeout=60) as other:
                    assert ask(other, bad[len(pieces)]).status_code in (400, 413)
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:]))
    assert len(pieces) > 20
    assert pieces[-1]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("which", bombs())
def test_a_small_file_became_an_enormous_picture(door: httpx.Client, which: str) -> None:
    """Decompression bombs, in every format."""
    before = peak()
    for answer in (ask(door, bombs()[which]), embed(door, bombs()[which])):
        assert answer.status_code == 413
        error = error_of(answer)
        assert error["code"] == "image_too_large"
        assert "more than the limit of 120,000,000 pixels" in error["message"]
    assert peak() - before < 30_000
    still_answers(door)


def test_a_side_without_end(door: httpx.Client) -> None:
    answer = ask(door, png(100_000, 1, rows=bytes(100_001)))
    assert answer.status_code == 413
    assert "pixels a side" in error_of(answer)["message"]


def peak() -> int:
    """Kilobytes that this process, and so the server, has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Bytes ------------------------------------------------------------------------------------------


def test_a_data_url_of_133_megabytes(
    attacked: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    """SGLang, issue 28587: 110 seconds and a gigabyte, and base64 in the logs."""
    caplog.set_level(logging.DEBUG)
    payload = base64.b64encode(RED + bytes(99_750_000)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{payload}"}}
    body = json.dumps({"messages": [{"role": "user", "content": [part, ASKED]}]}).encode()
    assert len(body) > 133_000_000
    del part
    held = []
    for _ in range(2):
        answer = sent(attacked, body)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'"code":"image_too_large"' in answer
        assert b"67,108,864 bytes" in answer
        assert len(answer) < 2000
        gc.collect()
        held.append(resident())
    assert held[1] - held[0] < 100_000_000  # not another 133 MB for another request
    start = payload[:24]
    for record in caplog.records:
        text = record.getMessage()
        assert len(text) < 2000
        assert start not in text
        assert "A" * 40 not in text


def sent(live: LiveServer, body: bytes) -> bytes:
    """The answer to a chat request, by a plain socket: clients take seconds for such a body."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.sendall(head.encode())
        connection.sendall(body)
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def resident() -> int:
    """Bytes that this process, and so the server, holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_a_body_that_says_how_long_it_is_is_not_read(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, max_request_bytes=1_000_000)
    with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n"
        head += b"content-type: application/json\r\n"
        for how in (b"content-length: 133000000", b"transfer-encoding: chunked"):
            with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
                connection.sendall(head + how + b"\r\n\r\n")
                if how.startswith(b"transfer"):
                    with contextlib.suppress(OSError):  # once it is enough, it hangs up
                        for _ in range(30):
                            connection.sendall(b"186a0\r\n" + b"A" * 100_000 + b"\r\n")
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_hundreds_of_pictures(door: httpx.Client) -> None:
    answer = ask(door, *[picture(size=(8, 8))] * 700)
    assert answer.status_code == 400
    assert "more than 600 pictures" in error_of(answer)["message"]
    assert ask(door, *[picture(size=(8, 8))] * 100).status_code == 400
    still_answers(door)


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:,",
        "data:image/png;base64,iVBORw0KGgo",
        "data:image/png;base64,iVBORw0KGg*",
        "data:image/png;base64,====",
        "data:image/png;base64,😀",
        *(data_url(RED)[: len(data_url(RED)) * share // 8] for share in range(1, 7)),
        data_url(RED) + "AAAA",
        data_url(RED).replace("base64", "base32"),
    ],
)
def test_data_urls_that_are_cut_short(door: httpx.Client, url: str) -> None:
    for body in (
        {"input": [{"type": "image_url", "image_url": {"url": url}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
            ]
        },
    ):
        path = "/v1/embeddings" if "input" in body else "/v1/chat/completions"
        answer = door.post(path, json=body)
        if url.endswith("AAAA") and answer.status_code == 200:
            continue  # bytes behind a picture are nobody's harm, and are left behind
        assert answer.status_code == 400, answer.text
        assert url[22:60] not in answer.text or len(url) < 60


# Decoders ---------------------------------------------------------------------------------------


def damaged() -> dict[str, bytes]:
    """A file of each kind whose inside is overwritten, and one that is cut."""
    files = {}
    for kind, data in one_of_each().items():
        middle = len(data) // 2
        noise = np.random.default_rng(middle).bytes(min(40, middle))
        files[kind] = data[: middle - 20] + noise + data[middle - 20 + len(noise) :]
        files[f"{kind} cut"] = data[: len(data) * 2 // 3]
    return files


@pytest.mark.parametrize("which", damaged())
def test_a_decoders_message_gave_an_address_away(
    door: httpx.Client, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    """vLLM, CVE-2026-22778."""
    caplog.set_level(logging.DEBUG, logger="chiasm")
    for answer in (ask(door, damaged()[which]), embed(door, damaged()[which])):
        if answer.status_code == 200:
            continue  # some damage is only noise in the pixels
        assert answer.status_code in (400, 413), answer.text
        message = error_of(answer)["message"]
        assert SENTENCES.fullmatch(message) or "than the limit of" in message, message
        for word in ("0x", "object at", "PIL", "Traceback", "BytesIO", "/"):
            assert word not in message
    assert not [record for record in caplog.records if record.exc_info]


def test_frames_without_bound(door: httpx.Client) -> None:
    """vLLM, CVE-2026-34755."""
    frame = b"," + bytes(4) + struct.pack("<HH", 4, 4) + b"\0\2\2\x44\1\0"
    head = b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x80\0\0" + bytes(6)
    many = head + frame * 500_000 + b";"
    before = peak()
    answer = ask(door, many)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "animated_image"
    assert "10,000 frames" in error_of(answer)["message"]
    assert embed(door, many).status_code in (200, 400)  # the first frame, or none
    assert peak() - before < 200_000
    for kind in ("gif", "apng", "webp-animated", "tiff-pages"):
        error = error_of(ask(door, one_of_each()[kind]))
        assert error["code"] == "animated_image"
        assert "3 frames" in error["message"]
        assert "Send the frame that you mean as a still picture." in error["message"]
        assert embed(door, one_of_each()[kind]).status_code == 200


def test_frames_that_are_only_stated(door: httpx.Client) -> None:
    control = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    assert ask(door, png(8, 8, rows=bytes(72), before=control)).status_code == 200
    pictures = [scene().rotate(turn) for turn in (0, 90, 180)]
    avif = encode(pictures[0], "AVIF", save_all=True, append_images=pictures[1:])
    at = avif.index(b"stts") + 12
    before = peak()
    assert ask(door, avif[:at] + b"\0\xff\xff\xff" + avif[at + 4 :]).status_code == 400
    assert peak() - before < 20_000


def test_scans_without_end(door: httpx.Client) -> None:
    """A progressive JPEG of fifty thousand scans, each a pass over every block."""
    data = encode(scene(64, 64), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 14)]
    hostile = data[:start] + scan * 50_000 + data[start:]
    for answer in (ask(door, hostile), embed(door, hostile)):
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "broken_image"


def test_a_decoder_that_never_returned(
    door: httpx.Client, attacked: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes it so: its process stands still here."""
    room = Sandbox(workers=2)
    monkeypatch.setattr(sandbox, "_shared", room)
    webp = picture("blue", kind="WEBP")
    assert ask(door, webp).status_code == 200
    (worker,) = room._idle
    os.kill(worker._process.pid, signal.SIGSTOP)
    late: list[httpx.Response] = []

    def stuck() -> None:
        with httpx.Client(base_url=attacked.url, timeout=60) as client:
            late.append(ask(client, webp))

    asking = threading.Thread(target=stuck)
    asking.start()
    while room._idle:
        pass
    for _ in range(3):
        assert ask(door, picture("green", kind="WEBP")).status_code == 200
    asking.join(30)
    assert late[0].status_code == 400
    assert error_of(late[0])["code"] == "decode_timeout"
    assert "limit of 2 seconds" in error_of(late[0])["message"]
    room.close()


# What goes along with a picture -----------------------------------------------------------------


def laden(kind: str) -> bytes:
    """A picture with a position, a description, a thumbnail of sorts, and an archive behind it."""
    tags = exif(1)
    tags.get_ifd(0x8825)[1] = "N"
    tags.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)
    tags[0x010E] = "a secret description"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as within:
        within.writestr("secret.txt", "secret")
    options: dict[str, Any] = {"comment": b"a secret comment"} if kind == "JPEG" else {}
    drawn = PIL.Image.open(io.BytesIO(RED))
    return encode(drawn, kind, exif=tags, **options) + archive.getvalue()


def is_clean(data: bytes) -> bool:
    shown = PIL.Image.open(io.BytesIO(data))
    extra = set(shown.info) & {"exif", "icc_profile", "xmp", "comment", "photoshop"}
    return not (
        shown.getexif() or extra or b"secret" in data or zipfile.is_zipfile(io.BytesIO(data))
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_metadata_and_hidden_files_were_stored(door: httpx.Client, kind: str) -> None:
    data = laden(kind)
    assert zipfile.is_zipfile(io.BytesIO(data))
    path = f"/v1/collections/kept-{kind.lower()}"
    assert door.post("/v1/collections", json={"name": path.rpartition("/")[2]}).status_code == 201
    added = door.post(f"{path}/items", json={"items": [{"image": data_url(data)}]}).json()
    item = added["data"][0]["id"]
    for name in ("image", "thumbnail"):
        stored = door.get(f"{path}/items/{item}/{name}")
        assert stored.status_code == 200
        assert is_clean(stored.content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_metadata_and_hidden_files_were_sent_on(tmp_path: Path, kind: str) -> None:
    with FakeVLLM() as vllm:
        settings = dataclasses.replace(make_settings(tmp_path), generator=f"vllm:{vllm.url}")
        with (
            LiveServer(create_app(settings, embedder=ColourEmbedder())) as live,
            httpx.Client(base_url=live.url, timeout=60) as client,
        ):
            answer = ask(client, laden(kind))
            assert answer.status_code == 200, answer.text
        sent = [
            part["image_url"]["url"]
            for body in vllm.bodies
            for message in body.get("messages", [])
            for part in message["content"]
            if part["type"] == "image_url"
        ]
    assert sent
    for url in sent:
        assert is_clean(base64.b64decode(url.partition(",")[2]))
