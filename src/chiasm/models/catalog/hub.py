"""Checkpoints from the Hugging Face hub, through `huggingface_hub`.

Files are kept in the hub's own cache layout: under `HF_HUB_CACHE` or `HF_HOME` where one is set,
shared with every other program that uses the hub, else under chiasm's cache. `HF_TOKEN`,
`HF_ENDPOINT`, `HF_HUB_OFFLINE` and the hub's other variables mean what they mean elsewhere.

The first fetch of a repository records the commit that its revision stood for and the digests
that the hub states for its files; the files are held to them from then on, and later opens need
neither the network nor `huggingface_hub`.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chiasm.errors import DownloadFailed, Offline, UnknownModel
from chiasm.models.catalog.cache import (
    MANIFEST,
    digest_of,
    disk_errors,
    is_whole,
    locked,
    mismatch,
    require_space,
    write_atomically,
    write_manifest,
)
from chiasm.models.catalog.entry import Entry, Source, is_safe_path
from chiasm.models.catalog.progress import Progress, Silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What a checkpoint consists of; examples, other frameworks' weights and pictures stay where
# they are.
_CONFIGURATION = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "1_Pooling/config.json",
)
_SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_SAFETENSORS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "heads.safetensors",  # of the default embedder, fine-tuned
)
_TRIES = 3


@dataclass(frozen=True)
class _Remote:
    """A file of a repository: its size in bytes and its digest as `cache.digest_of` writes it."""

    path: str
    bytes: int
    digest: str


def fetch_hf(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    verify: bool = False,
) -> Path:
    """A folder with the checkpoint `repo` (owner/name): configuration, tokenizer, weights.

    revision: a branch, a tag or a commit; None is the repository's default branch. A branch is
        looked up once and stays at the commit it had then.
    verify: hash every file, even where size and time of change are as recorded.

    Raises Offline, DownloadFailed, DigestMismatch, NoSpace.
    """
    progress = progress or Silent()
    home = cache_dir / "hub" / _safe_name(repo, revision)
    if (folder := _recorded(home, cache_dir, verify=verify)) is not None:
        return folder
    command = f"chiasm pull hf:{repo}{f'@{revision}' if revision else ''}"
    if offline:
        raise Offline(
            f"hf:{repo} is not in the cache, and fetching it is forbidden (offline).",
            hint=f"With a network connection, run: {command}",
        )
    with disk_errors(cache_dir), locked(home, repo, progress):
        if (folder := _recorded(home, cache_dir, verify=verify)) is not None:
            return folder  # another process fetched it while this one waited
        home.mkdir(exist_ok=True)
        with _hub_errors(repo, revision, command):
            commit, files = _list_files(repo, revision)
            folder = _download(repo, commit, files, cache_dir, progress)
        digests = {file.path: file.digest for file in files}
        write_manifest(folder, digests, manifest=home / MANIFEST)
        _write_record(home, cache_dir, folder, commit, digests)
    return folder


def collect(
    source: Source, entry: Entry, downloads: Path, cache_dir: Path, progress: Progress
) -> Path:
    """Download the files that `entry` states digests for from a hub `source`.

    Returns the folder that holds them. Partial downloads stay in it and are resumed.
    """
    repo, revision = source.repository()
    folder = downloads / _safe_name(repo, revision)
    with _hub_errors(repo, revision, f"chiasm pull {entry.name}"):
        for path, file in entry.files.items():
            require_space(_existing(folder), file.bytes, cache_dir)
            with _bar(progress, f"{entry.name}: {path}") as bar:
                _hub_file(repo, source.path_of(path), revision, bar, local_dir=folder)
    return folder


# What was fetched before ------------------------------------------------------------------------


def _recorded(home: Path, cache_dir: Path, *, verify: bool) -> Path | None:
    """The folder recorded in `home`, if its files are still what the hub said they are."""
    try:
        record = json.loads((home / "record.json").read_bytes())
        folder, digests = cache_dir / record["folder"], dict(record["digests"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never fetched, or the record is damaged: fetch again
    whole = is_whole(folder, digests, verify=verify, manifest=home / MANIFEST)
    return folder if whole else None


def _write_record(
    home: Path, cache_dir: Path, folder: Path, commit: str, digests: dict[str, str]
) -> None:
    if folder.is_relative_to(cache_dir.resolve()):
        folder = folder.relative_to(cache_dir.resolve())  # the cache may be moved as a whole
    record = {"folder": str(folder), "commit": commit, "digests": digests}
    write_atomically(home / "record.json", json.dumps(record, indent=1).encode())


def _safe_name(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision or 'default'}".replace("/", "--")


def _hub_cache(cache_dir: Path) -> Path | None:
    """Where the hub keeps its files; None leaves it to the hub's own variables."""
    if os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME"):
        return None
    return cache_dir / "hub"


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


# Asking the hub ---------------------------------------------------------------------------------


def _list_files(repo: str, revision: str | None) -> tuple[str, list[_Remote]]:
    """The commit that `revision` stands for, and the files of the checkpoint in it."""
    from huggingface_hub import HfApi

    api: HfApi = HfApi(endpoint=_endpoint())
    info = api.model_info(repo, revision=revision, files_metadata=True)
    stated = {file.rfilename: file for file in info.siblings or ()}
    files = []
    for path in _needed(stated):
        file = stated[path]
        digest = file.lfs.sha256 if file.lfs else f"git:{file.blob_id}"
        files.append(_Remote(path, file.size, digest))
    return info.sha, files


def _needed(stated: Mapping[str, Any]) -> list[str]:
    patterns = [*_CONFIGURATION, *_SAFETENSORS]
    if "tokenizer.json" not in stated:
        patterns += _SENTENCEPIECE
    return [path for path in stated if _matches(path, patterns) and is_safe_path(path)]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _download(
    repo: str, commit: str, files: list[_Remote], cache_dir: Path, progress: Progress
) -> Path:
    """Every file, verified, in the folder of its commit."""
    if not any(file.path.endswith(".safetensors") for file in files):
        raise DownloadFailed(
            f"hf:{repo} holds no weights as safetensors at this revision.",
            hint="Often a pull request of the repository holds them converted: "
            f"write hf:{repo}@refs/pr/ and its number.",
        )
    for file in files:
        place = _download_file(repo, commit, file, cache_dir, progress)
    return place.parents[file.path.count("/")]  # every file has the same one, its commit's


def _download_file(
    repo: str,
    commit: str,
    file: _Remote,
    cache_dir: Path,
    progress: Progress,
) -> Path:
    hub_cache = _hub_cache(cache_dir)
    require_space(_existing(hub_cache or cache_dir), file.bytes, cache_dir)
    got = ""
    # Twice: what the hub's cache holds already is taken as it is, and may be damaged.
    for _ in range(2):
        with _bar(progress, f"{repo}: {file.path}") as bar:
            place = _hub_file(repo, file.path, commit, bar, cache_dir=hub_cache)
        got = digest_of(place, file.digest)
        if got == file.digest:
            return place
        place.resolve().unlink(missing_ok=True)  # the content; `place` itself may be a link to it
        place.unlink(missing_ok=True)
    raise mismatch(f"hf:{repo}, {file.path}", file.digest, got)


def _hub_file(repo: str, path: str, revision: str | None, bar: type, **place: Path | None) -> Path:
    """One file by the hub's own library; a connection that is cut is taken up again.

    place: `cache_dir` or `local_dir`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    for left in reversed(range(_TRIES)):
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo, path, revision=revision, endpoint=_endpoint(), tqdm_class=bar, **place
                )
            )
        except errors.HTTPError as error:
            # A status is an answer. The library goes on after a cut by itself only since 2.0.
            if isinstance(error, errors.HfHubHTTPError) or not left:
                raise
    raise AssertionError("the last try returns or raises")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that is there, to ask for free space."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


@contextmanager
def _bar(progress: Progress, label: str) -> Iterator[type]:
    """A class that the hub takes for its progress bar and that reports to `progress`."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    started = False

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            nonlocal started
            options.pop("name", None)
            super().__init__(*args, **(options | {"disable": True}))
            started = True
            progress.start(label, options.get("total"))
            progress.advance(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

    yield Bar
    if started:
        progress.finish()


@contextmanager
def _hub_errors(repo: str, revision: str | None, command: str) -> Iterator[None]:
    """Turn what the hub and the way to it say into errors for a user."""
    from huggingface_hub import errors

    where = f"hf:{repo}"
    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if isinstance(error, errors.OfflineModeIsEnabled) or _is_offline():
            raise Offline(
                f"{where} is not in the cache, and HF_HUB_OFFLINE forbids fetching it.",
                hint=f"Unset HF_HUB_OFFLINE and run: {command}",
            ) from error
        raise _unreachable(where) from error
    except errors.GatedRepoError as error:
        raise DownloadFailed(
            f"{where} is gated: its owner wants its terms accepted first.",
            hint="Accept them on the repository's page, put an access token into HF_TOKEN, "
            f"and run: {command}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadFailed(
            f"The hub knows no repository {repo}, or does not show it to this account.",
            hint="Check the name; for a private repository put an access token into HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadFailed(
            f"{where} has no revision {revision!r}.", hint="Name a branch, a tag or a commit."
        ) from error
    except errors.EntryNotFoundError as error:
        raise DownloadFailed(f"{where} lacks a file that its listing or entry names.") from error
    except errors.HFValidationError as error:
        raise UnknownModel(
            f"{repo!r} is no name of a repository.", hint="Write owner/name."
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in {401, 403}:
            raise DownloadFailed(
                f"The hub does not let this account read {repo}.",
                hint="Put an access token that may read it into HF_TOKEN.",
            ) from error
        raise DownloadFailed(
            f"The hub answered the request for {repo} with status {error.response.status_code}.",
            hint="Try again later.",
        ) from error
    except errors.HTTPError as error:  # the HTTP library's own: no connection, a time-out, a cut
        raise _unreachable(where) from error
    except json.JSONDecodeError as error:
        raise DownloadFailed(
            f"{where} could not be looked up: what is asked does not answer as a hub does.",
            hint="Check HF_ENDPOINT and the proxy (HTTPS_PROXY).",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's, not the hub's
        raise _unreachable(where) from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _unreachable(where: str) -> DownloadFailed:
    from chiasm.models.catalog.download import host_of

    host = host_of(_endpoint() or "") or "the hub"
    return DownloadFailed(
        f"{where} could not be fetched: {host} cannot be reached, or closed the connection.",
        hint="Check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT, and run it again: "
        "what has come so far is kept.",
    )
