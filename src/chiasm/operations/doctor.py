"""What `chiasm doctor` finds: what is installed and used, what is missing, and what mends it.

Each finding is plain data; nothing is printed and nothing is changed here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from chiasm import __version__
from chiasm.errors import ChiasmError, Offline, WeightsError
from chiasm.generation.providers.address import is_remote, parse_address
from chiasm.models import catalog
from chiasm.settings import Settings, config_file, origins

Status = Literal["ok", "warning", "problem"]

_LITTLE_SPACE = 1_000_000_000  # bytes; the default embedder takes a tenth of it


@dataclass(frozen=True)
class Check:
    """One finding. fix: the command, or the sentence, that mends it."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Setting:
    """A setting in effect, and where it came from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Report:
    """Every finding, in the order to read them in."""

    checks: tuple[Check, ...]
    settings: dict[str, Setting] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing keeps chiasm from working; warnings do not."""
        return all(check.status != "problem" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        settings = {name: asdict(setting) for name, setting in self.settings.items()}
        for setting in settings.values():
            if isinstance(setting["value"], Path):
                setting["value"] = str(setting["value"])
        return {
            "healthy": self.healthy,
            "checks": [asdict(check) for check in self.checks],
            "settings": settings,
        }


def examine(settings: Settings) -> Report:
    """Look at everything that chiasm needs. Fetches nothing; needs some seconds for torch."""
    effective = {name: Setting(*found) for name, found in origins(settings).items()}
    if settings.database:
        from chiasm.operations.database import shown

        effective["database"] = replace(effective["database"], value=shown(settings.database))
    looks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("machine", _machine),
        ("packages", _packages),
        ("pip", _pip),
        ("device", lambda: _device(settings.device)),
        ("embedder", lambda: _model("embedder", settings.embedder, settings)),
        ("generator", lambda: _model("generator", settings.generator, settings)),
        ("cache folder", lambda: _folder("cache folder", settings.cache_dir, "cache_dir")),
        ("data folder", lambda: _folder("data folder", settings.data_dir, "data_dir")),
        ("configuration", lambda: _configuration(effective)),
        ("collections", lambda: _collections(settings)),
        ("port", lambda: _port(settings.server.host, settings.server.port)),
        ("extras", _extras),
    )
    return Report(tuple(_looked(name, look) for name, look in looks), effective)


def _looked(name: str, look: Callable[[], Check]) -> Check:
    """What `look` finds; an error meant for the user is a finding too."""
    try:
        return look()
    except ChiasmError as error:
        return Check(name, "problem", error.message, error.hint)


# Software ---------------------------------------------------------------------------------------


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = (
        f"chiasm {__version__}, Python {platform.python_version()} ({sys.executable}), "
        f"{platform.system()} {platform.machine()}, {cores} cores"
    )
    if memory := _memory():
        detail += f", {_size(memory)} of memory"
    return Check("machine", "ok", detail)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # not every system says


def _packages() -> Check:
    """Whether what the package requires is installed, in versions that it accepts."""
    found, wanting = [], []
    for requirement in _requirements():
        version = _version(requirement.name)
        if version is None:
            wanting.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wanting.append(f"{requirement.name} {version} does not fit {requirement.specifier}")
        else:
            found.append(f"{requirement.name} {version}")
    if wanting:
        return Check("packages", "problem", "; ".join(wanting), "pip install --upgrade chiasm")
    return Check("packages", "ok", ", ".join(found))


def _extras() -> Check:
    """Which optional sets of packages are installed. None of them is needed."""
    parts = []
    for extra in sorted(importlib.metadata.metadata("chiasm").get_all("Provides-Extra") or ()):
        missing = [wanted.name for wanted in _requirements(extra) if _version(wanted.name) is None]
        if missing:
            command = f'pip install "chiasm[{extra}]"'
            parts.append(f"{extra}: without {', '.join(missing)} ({command})")
        else:
            parts.append(f"{extra}: installed")
    return Check("extras", "ok", "; ".join(parts) or "there are none")


def _requirements(extra: str = "") -> Iterable[Requirement]:
    """What the package needs here, or what `extra` adds to that."""
    for text in importlib.metadata.requires("chiasm") or ():
        requirement = Requirement(text)
        if requirement.name == "chiasm":
            continue  # one extra naming another
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if extra:
            if not always and requirement.marker and requirement.marker.evaluate({"extra": extra}):
                yield requirement
        elif always:
            yield requirement


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip() -> Check:
    if importlib.util.find_spec("pip") is None:
        return Check(
            "pip",
            "warning",
            "is not installed in this environment; weights on the package index cannot be fetched",
            f"{shlex.quote(sys.executable)} -m ensurepip --upgrade",
        )
    return Check("pip", "ok", f"pip {_version('pip')}")


# Device and weights -----------------------------------------------------------------------------


def _device(wanted: str) -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            "device",
            "problem",
            f"torch cannot be loaded ({type(error).__name__})",
            "pip install --force-reinstall torch",
        )
    from chiasm.models.device import choose_device

    device = choose_device(wanted)
    detail = f"{device} is used (device = {wanted}); torch {torch.__version__}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        detail += f", {properties.name} with {_size(properties.total_memory)}"
    if device.type == "cpu":
        detail += f", {torch.get_num_threads()} threads"
    return Check("device", "ok", detail)


def _model(role: str, name: str, settings: Settings) -> Check:
    """Whether a model's files are there and, byte for byte, what they must be."""
    catalogs = (settings.catalog,)
    if not name:
        return Check(role, "ok", "none; the setting is empty")
    if is_remote(name):
        return _servers(role, name)
    if (folder := catalog.local_folder(name, catalogs)) is not None:
        return Check(role, "ok", f"the folder {folder}")
    entry = catalog.find(name, catalogs)
    if entry.shipped is not None and not any(entry.shipped.glob("*.safetensors")):
        return Check(
            role,
            "problem",
            f"{name}: the weights that come with the package are missing",
            "pip install --force-reinstall --no-deps chiasm",
        )
    own = any(source.in_place for source in entry.sources)  # a folder, used where it stands
    fix = f"chiasm pull {shlex.quote(name)}"
    try:
        folder = catalog.pull(
            name, cache_dir=settings.cache_dir, offline=True, verify=True, catalogs=catalogs
        )
    except Offline as error:
        status: Status = "problem" if settings.offline else "warning"
        return Check(role, status, error.message, fix)
    except WeightsError as error:
        return Check(role, "problem", error.message, error.hint if own else fix)
    where = f"The folder {folder}" if own else "In the cache"
    return Check(role, "ok", f"{name}: {entry.description} {where}, verified.")


# Folders and settings ---------------------------------------------------------------------------


def _servers(role: str, address: str) -> Check:
    """Whether the servers that an address names serve a model. Vendors are not asked: it costs."""
    from chiasm.generation.providers.loading import generator_at
    from chiasm.generation.providers.vllm import VLLMGenerator

    generator = generator_at(parse_address(address))
    generator.close()
    if not isinstance(generator, VLLMGenerator):
        return Check(role, "ok", f"{generator.name}, run elsewhere; its provider was not asked")
    detail = f"{generator.name} at {generator.usable_servers} servers"
    troubles = [str(error) for error in generator.troubles]
    return Check(role, "warning" if troubles else "ok", "; ".join([detail, *troubles]))


def _folder(name: str, folder: Path, setting: str) -> Check:
    """Whether `folder` can be written, what it holds, and how much room is left."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    variable = f"CHIASM_{setting.upper()}"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError:
        return Check(
            name,
            "problem",
            f"{folder} cannot be written",
            f"Make it writable, or name another folder in {variable}.",
        )
    free = shutil.disk_usage(existing).free
    used = _bytes_below(folder)
    detail = f"{folder}: {_size(used)} used, {_size(free)} free"
    if free < _LITTLE_SPACE:
        fix = f"Free some space, or name a folder on a larger disk in {variable}."
        return Check(name, "warning", detail, fix)
    return Check(name, "ok", detail)


def _bytes_below(folder: Path) -> int:
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(home, name)).st_size  # noqa: PTH118 — it is quick
            except OSError:
                continue  # removed while we looked
    return total


def _configuration(effective: dict[str, Setting]) -> Check:
    file = config_file()
    changed = [
        f"{name} = {setting.value} ({'file' if setting.origin == str(file) else setting.origin})"
        for name, setting in effective.items()
        if setting.origin != "default"
    ]
    detail = str(file) if file else "no chiasm.toml"
    detail += f"; set: {', '.join(changed)}" if changed else "; every setting has its default"
    return Check("configuration", "ok", detail)


def _collections(settings: Settings) -> Check:
    if not (settings.data_dir / "collections").is_dir():
        return Check("collections", "ok", "none yet (chiasm index FOLDER makes one)")
    from chiasm.retrieval.library import list_collections

    damaged: list[tuple[str, ChiasmError]] = []
    infos = list_collections(
        settings.data_dir, on_damaged=lambda name, error: damaged.append((name, error))
    )
    listed = ", ".join(f"{i.name} ({i.items:,} pictures by {i.embedder.name})" for i in infos)
    if damaged:
        told = "; ".join(error.message for _, error in damaged)
        fix = f"chiasm collections delete {damaged[0][0]}, then index its pictures again"
        return Check("collections", "problem", f"{told} {listed}".strip(), fix)
    return Check("collections", "ok", listed or "none yet (chiasm index FOLDER makes one)")


def _port(host: str, port: int) -> Check:
    """Whether the server could listen where it is told to."""
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as the server does: a port just left is no port in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return Check(
            "port",
            "warning",
            f"{where} cannot be listened on: a server may be running there already",
            f"chiasm serve --port {port + 1 if port < 65535 else 8000}",
        )
    return Check("port", "ok", f"{where} is free")


def _size(count: int) -> str:
    if count < 1_000_000:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e6:,.0f} MB" if count < 10_000_000_000 else f"{count / 1e9:,.0f} GB"
