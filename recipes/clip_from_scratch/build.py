"""Make the recipe's data: Fashion-MNIST as captioned shards, and the prompts of the test.

    python recipes/clip_from_scratch/build.py

needs `apt-get` and `dpkg` (Debian or Ubuntu; no root): the pictures come from the package
dataset-fashion-mnist, which is downloaded and unpacked, not installed. `--package` takes a folder
that has the four idx files already. Written below build/clip_from_scratch:

    train/*.tar     60,000 pictures, PNG, each with four captions in a JSON file
    test/*.tar      10,000 pictures with their labels
    prompts.json    the classes' names and the templates that the test puts them into
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

HERE = Path(__file__).parent
PACKAGE = "dataset-fashion-mnist"
FILES = {"train": "train", "test": "t10k"}
SHARD = 5_000  # pictures in a shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="folder with the idx files, gzipped")
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build/clip_from_scratch")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    source = options.package or fetch(work / "fetched")

    texts = tomllib.loads((HERE / "captions.toml").read_text(encoding="utf-8"))
    captions = [class_captions(entry, texts["training"]["frames"]) for entry in texts["classes"]]
    prompts = {
        "classes": [entry["name"] for entry in texts["classes"]],
        "templates": texts["test"]["templates"],
    }
    check_unseen(prompts, captions)
    write_json(work / "prompts.json", prompts)

    for part in FILES:
        pixels, labels = read_part(source, FILES[part])
        rows = samples(part, pixels, labels, captions, texts["training"])
        names = write_shards(work / part, rows)
        print(f"{part}: {len(labels):,} pictures in {len(names)} shards")
    different = {caption for of_class in captions for caption in of_class}
    print(
        f"{len(different):,} different captions; "
        f"{len(prompts['classes']) * len(prompts['templates'])} prompts, none of them a caption"
    )


# Texts ------------------------------------------------------------------------------------------


def class_captions(entry: dict[str, Any], frames: list[str]) -> list[str]:
    """Every frame around every noun of a class."""
    return [frame.format(noun) for noun in entry["nouns"] for frame in frames]


def check_unseen(prompts: dict[str, list[str]], captions: list[list[str]]) -> None:
    """Stop if a prompt says, case and punctuation aside, what a training caption says."""
    seen = {plain(caption) for of_class in captions for caption in of_class}
    for name in prompts["classes"]:
        for template in prompts["templates"]:
            prompt = template.format(name)
            if plain(prompt) in seen:
                sys.exit(f"captions.toml: the prompt {prompt!r} is a training caption.")


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


# Pictures ---------------------------------------------------------------------------------------


def fetch(target: Path) -> Path:
    """Download the Debian package and unpack it without root; the folder of the idx files."""
    files = target / "usr/share/datasets/fashion-mnist"
    if files.is_dir():
        return files
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run("apt-get", "download", PACKAGE, cwd=folder)
        archive = next(Path(folder).glob("*.deb"))
        run("dpkg", "-x", str(archive), str(target))
    return files


def run(*command: str, cwd: str | None = None) -> None:
    """Run a command, and stop with its name if it fails."""
    try:
        subprocess.run(command, cwd=cwd, check=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed; it is needed to fetch the pictures.")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(command)} failed with exit status {error.returncode}.")


def read_part(folder: Path, prefix: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Pixels [pictures, 28, 28] and labels [pictures]."""
    return (
        read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"),
        read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"),
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array of bytes in LeCun's idx format: zero, zero, type, dimensions; their sizes; data."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError):
        sys.exit(f"{path} is missing or damaged.")
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        sys.exit(f"{path} is no idx file of bytes.")
    dimensions = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(tuple(shape))


def samples(
    part: str,
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    captions: list[list[str]],
    settings: dict[str, Any],
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Key, PNG and JSON of each picture. The test's pictures carry no caption."""
    chance = random.Random(settings["seed"])
    for number, (picture, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        entries: dict[str, Any] = {"label": label}
        if part == "train":
            entries["captions"] = chance.sample(captions[label], settings["captions_per_picture"])
        buffer = io.BytesIO()
        PIL.Image.fromarray(picture).save(buffer, "PNG")
        yield f"{part}{number:05d}", buffer.getvalue(), entries


def write_shards(folder: Path, rows: Iterator[tuple[str, bytes, dict[str, Any]]]) -> list[str]:
    """WebDataset shards: files of one key stand together in a tar. Equal input, equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tar"):
        stale.unlink()
    names: list[str] = []
    tar: tarfile.TarFile | None = None
    for number, (key, picture, entries) in enumerate(rows):
        if number % SHARD == 0:
            if tar is not None:
                tar.close()
            names.append(f"{folder.name}-{len(names):05d}.tar")
            tar = tarfile.open(folder / names[-1], "w")  # noqa: SIM115
        assert tar is not None
        for suffix, data in (("png", picture), ("json", json.dumps(entries).encode())):
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if tar is not None:
        tar.close()
    return names


def write_json(path: Path, entries: dict[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
