"""Decoding that can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_files import encode, exif, one_of_each, photograph, png, scene

from chiasm.errors import BrokenImage, DecodeTimeout, ImageTooLarge, NotAnImage
from chiasm.media import Image, Limits, open_image, read_encoded, sandbox
from chiasm.media.passage import WINDOW_BYTES
from chiasm.media.sandbox import Sandbox, is_quick, open_in_time

LIMITS = Limits()
SCENE = encode(scene(), "PNG")


@pytest.fixture(scope="module")
def room() -> Iterator[Sandbox]:
    room = Sandbox(workers=2)
    yield room
    room.close()


def process_of(room: Sandbox) -> int:
    """The only idle worker's process."""
    (worker,) = room._idle
    return worker._process.pid


@pytest.fixture
def one() -> Iterator[Sandbox]:
    """A sandbox with one process, which is idle."""
    one = Sandbox(workers=1)
    one.open(SCENE, limits=LIMITS)
    yield one
    one.close()


@pytest.mark.parametrize("which", one_of_each())
def test_pictures_are_the_same_as_without_it(room: Sandbox, which: str) -> None:
    data = one_of_each()[which]
    image = room.open(data, limits=LIMITS, name="a name")
    expected = open_image(data)
    assert image == expected
    assert image.original_size == expected.original_size
    assert image.name == "a name"


def test_scaled_and_turned(room: Sandbox) -> None:
    data = encode(photograph(800, 600), "JPEG", exif=exif(6))
    image = room.open(data, limits=LIMITS, shortest_side=70)
    assert image == open_image(data, shortest_side=70)
    assert (image.size, image.original_size) == ((75, 100), (600, 800))


def test_more_than_the_window_holds(room: Sandbox) -> None:
    side = 4160
    assert side * side * 3 > WINDOW_BYTES
    data = png(side, side, bits=1, rows=(b"\0" + b"\xf0" * (side // 8)) * side)
    for _ in range(2):
        assert room.open(data, limits=LIMITS) == open_image(data)
    assert room.open(SCENE, limits=LIMITS) == open_image(SCENE)


def test_errors_are_the_same_as_without_it(room: Sandbox) -> None:
    cases = {
        BrokenImage: (SCENE[:100], LIMITS),
        NotAnImage: (b"no picture", LIMITS),
        ImageTooLarge: (SCENE, Limits(max_pixels=100)),
    }
    for kind, (data, limits) in cases.items():
        with pytest.raises(kind) as without:
            open_image(data, limits=limits, name="picture")
        with pytest.raises(kind) as within:
            room.open(data, limits=limits, name="picture")
        assert type(within.value) is type(without.value)
        assert str(within.value) == str(without.value)
        assert within.value.hint == without.value.hint


def test_a_decoder_that_never_returns_is_stopped(one: Sandbox) -> None:
    stuck = process_of(one)
    os.kill(stuck, signal.SIGSTOP)
    with pytest.raises(DecodeTimeout, match=r"picture: .* limit of 1 seconds"):
        one.open(SCENE, limits=Limits(max_seconds=1), name="picture")
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)
    assert one.open(SCENE, limits=LIMITS) == open_image(SCENE)
    assert process_of(one) != stuck


def test_a_decoder_that_crashes_is_replaced(one: Sandbox) -> None:
    crashing = process_of(one)
    os.kill(crashing, signal.SIGSTOP)
    ended: list[Exception] = []

    def ask() -> None:
        with pytest.raises(BrokenImage, match="its decoder failed") as caught:
            one.open(SCENE, limits=LIMITS)
        ended.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    while one._idle:  # until the process has been taken
        pass
    os.kill(crashing, signal.SIGKILL)
    asking.join(10)
    assert ended
    assert one.open(SCENE, limits=LIMITS) == open_image(SCENE)


def test_a_process_that_ended_while_idle_is_nobodys_error(one: Sandbox) -> None:
    os.kill(process_of(one), signal.SIGKILL)
    one._idle[0]._process.wait()
    assert one.open(SCENE, limits=LIMITS) == open_image(SCENE)


def test_one_that_is_stuck_does_not_disturb_the_others() -> None:
    room = Sandbox(workers=2)
    room.open(SCENE, limits=LIMITS)
    stuck = process_of(room)
    os.kill(stuck, signal.SIGSTOP)
    late: list[Exception] = []

    def ask() -> None:
        try:
            room.open(SCENE, limits=Limits(max_seconds=2))
        except DecodeTimeout as error:
            late.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while room._idle:
        pass
    for _ in range(3):
        assert room.open(SCENE, limits=LIMITS) == open_image(SCENE)
    assert not late
    asking.join(20)
    assert late
    room.close()


def test_many_threads_share_few_processes(room: Sandbox) -> None:
    files = list(one_of_each().values())
    opened: dict[int, Image] = {}

    def work(number: int) -> None:
        opened[number] = room.open(files[number], limits=LIMITS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [opened[number] for number in range(len(files))] == list(map(open_image, files))
    assert len(room._idle) <= 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_a_process_holds_no_socket_and_no_key_of_the_server(
    one: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PROVIDERS_KEY", "sk-secret")
    with open("/dev/null") as other:  # noqa: PTH123
        os.set_inheritable(other.fileno(), True)
        one.close()
        one.open(SCENE, limits=LIMITS)
        process = Path(f"/proc/{process_of(one)}")
        links = [os.readlink(entry) for entry in (process / "fd").iterdir()]  # noqa: PTH115
    sockets = [link for link in links if link.startswith("socket:")]
    assert len(sockets) == 1  # to us
    assert links.count("/dev/null") == 3
    environment = (process / "environ").read_bytes()
    assert b"secret" not in environment
    limits = (process / "limits").read_text()
    (address_space,) = [line for line in limits.splitlines() if "address space" in line]
    assert "unlimited" not in address_space.split()[3]


def test_processes_end_with_the_one_that_started_them() -> None:
    script = (
        "from chiasm.media import Limits, sandbox\n"
        "room = sandbox.Sandbox()\n"
        "import sys, os\n"
        "room.open(sys.stdin.buffer.read(), limits=Limits())\n"
        "print(room._idle[0]._process.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=SCENE, stdout=subprocess.PIPE)
    process = int(done.stdout)
    for _ in range(1000):
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat")
            if state.exists() and state.read_text().split(")")[1].split()[0] == "Z":
                return
        except ProcessLookupError:
            return
        threading.Event().wait(0.01)
    pytest.fail("the process lives on")


# What needs no process --------------------------------------------------------------------------


QUICK = {
    "PNG": True,
    "BMP": True,
    "JPEG": True,
    "WEBP": False,
    "AVIF": False,
    "GIF": False,
    "TIFF": False,
}


@pytest.mark.parametrize("kind", QUICK)
def test_small_pictures_of_plain_formats_need_no_process(kind: str) -> None:
    assert is_quick(encode(scene(), kind), kind, (64, 48)) == QUICK[kind]


def test_what_is_not_quick() -> None:
    progressive = encode(scene(), "JPEG", progressive=True)
    assert not is_quick(progressive, "JPEG", (64, 48))
    assert not is_quick(SCENE, "PNG", (1001, 1000))
    assert not is_quick(SCENE + bytes(256 * 1024), "PNG", (64, 48))
    assert not is_quick(b"\xff\xd8\xff\xe0\0\0", "JPEG", (64, 48))


def test_undecoded_pictures_are_opened_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Sandbox(workers=1)
    monkeypatch.setattr(sandbox, "_shared", one)
    webp = encode(scene(), "WEBP")
    image = read_encoded(webp, limits=LIMITS, name="picture")
    assert image.open(LIMITS) == open_image(webp)
    os.kill(process_of(one), signal.SIGSTOP)
    with pytest.raises(DecodeTimeout):
        image.open(Limits(max_seconds=1))
    assert open_in_time(SCENE, kind="PNG", size=(64, 48), limits=LIMITS) == open_image(SCENE)
    assert not one._idle
    one.close()
