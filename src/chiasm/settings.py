"""One settings object: defaults < `chiasm.toml` < environment < flags.

Each default stands here and nowhere else. A TOML file has the same names as the dataclasses
below (`offline = true`, `[server]` / `port = 9000`); an environment variable is the upper-case
path with `CHIASM_` in front (`CHIASM_OFFLINE=1`, `CHIASM_SERVER_PORT=9000`). Tables with names of
the user's own (`[providers.NAME]`, `[models.NAME]`, `[prices."NAME"]`) stand in a file alone.

The file is looked for at `$CHIASM_CONFIG`, then `./chiasm.toml`, then in the user's
configuration directory. The first one found is read; files are not merged.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import platformdirs

from chiasm.errors import ConfigurationError
from chiasm.media.limits import Limits

_APP = "chiasm"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server listens, and to whom.

    allowed_hosts: names, separated by commas, that the Host header may hold. On a loopback
        address they come on top of the loopback names; on any other, none means any.
    max_waiting: questions that may wait for the generator; the next are refused with 429.
    require_keys: answer to none but holders of a key (`chiasm keys create`). Without it a key is
        asked for as soon as there is one.
    ledger_content: keep each request's texts and its pictures' digests with its row in the ledger.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_request_bytes: int = 256 * 1024 * 1024
    allowed_hosts: str = ""
    max_waiting: int = 128
    require_keys: bool = False
    ledger_content: bool = False


@dataclass(frozen=True, slots=True)
class IndexingSettings:
    """How a folder is taken in. `decode_threads = 0` means one a core."""

    batch_size: int = 32
    decode_threads: int = 0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the product's own engine runs language models.

    precision: of the weights, `int8`, `float32` or `bfloat16`; `auto` is int8 on a CPU, bfloat16 on
        a GPU that computes in it, and else float32. cache_bytes: for keys and values; 0 means 512
        MiB on a CPU and most of what is free on a GPU. running: questions that are worked on at
        once; 0 means as many as this machine does without making each answer slow.
    compile: let torch compile the layers on a GPU; minutes at the start for faster answers.
    """

    precision: str = "auto"
    cache_bytes: int = 0
    running: int = 0
    compile: bool = False


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Whence pictures may be fetched that callers name by an address.

    hosts: names, separated by commas; none means that nothing is ever fetched
        (`chiasm.media.address.read_hosts`). max_seconds: for one picture, redirects included.
    """

    hosts: str = ""
    max_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """`[providers.NAME]`: where models answer that are run elsewhere. Callers ask for `NAME/model`.

    kind: `openai`, `openai-responses`, `anthropic`, `gemini` or `vllm`; empty is the name itself.
    base_url: empty is the vendor's own; of vLLM servers several, with commas between.
    key_variable: the environment variable with the key; empty is the vendor's usual one.
    models: those that may be asked for by `NAME/model`; none means any.
    connect_seconds, first_token_seconds, between_seconds: how long it is waited for.
    places: questions that it is asked at once. failures: in a row, after which it is left alone
        for `rest_seconds`.
    """

    kind: str = ""
    base_url: str = ""
    key_variable: str = ""
    models: tuple[str, ...] = ()
    connect_seconds: float = 5.0
    first_token_seconds: float = 120.0
    between_seconds: float = 60.0
    places: int = 64
    failures: int = 5
    rest_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`[models.NAME]`: a name for callers, and which models answer to it.

    targets: `provider/model`, or a generator of this server; the next is asked where one fails.
    choose: the order in which they are asked: `first` as they stand, `cheapest` by the plan of the
        request, `fastest` by what was measured. evaluation, min_accuracy: only those whose measured
        accuracy on that evaluation is at least so much.
    retries: how often one target is asked again, before the next. first_token_seconds,
        between_seconds: tighter than the provider's own; 0 is the same. restart: begin anew with
        the next target although words have been sent; the caller sees where.
    hedge_seconds: ask the next target, too, when the first is silent for so long; 0 is never.
    cache_seconds: how long the same question has the same answer; 0 is not at all.
    max_tokens: of an answer, where the caller says nothing; 0 leaves it to the model.
    max_image_tokens: pictures of a request are scaled down to take no more; 0 is no bound.
    """

    targets: tuple[str, ...] = ()
    choose: str = "first"
    evaluation: str = ""
    min_accuracy: float = 0.0
    retries: int = 2
    first_token_seconds: float = 0.0
    between_seconds: float = 0.0
    restart: bool = False
    hedge_seconds: float = 0.0
    cache_seconds: float = 0.0
    max_tokens: int = 0
    max_image_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """`[prices."provider/model"]`: USD per million tokens, before the published price lists."""

    input: float = 0.0
    cached_input: float = 0.0
    output: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Paths are absolute once `load` has returned them.

    database: of keys, budgets and the ledger, as SQLAlchemy writes it (`postgresql+psycopg://…`);
        empty is a file in `data_dir`.
    """

    cache_dir: Path = field(default_factory=lambda: Path(platformdirs.user_cache_dir(_APP)))
    data_dir: Path = field(default_factory=lambda: Path(platformdirs.user_data_dir(_APP)))
    embedder: str = "default"
    generator: str = "default-vlm"
    device: str = "auto"
    offline: bool = False
    database: str = ""
    media: Limits = field(default_factory=Limits)
    server: ServerSettings = field(default_factory=ServerSettings)
    indexing: IndexingSettings = field(default_factory=IndexingSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    providers: Mapping[str, ProviderSettings] = field(default_factory=dict)
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    prices: Mapping[str, PriceSettings] = field(default_factory=dict)

    @property
    def catalog(self) -> Path:
        """The user's own catalogue of models; its entries win over the shipped ones."""
        return self.data_dir / "catalog.toml"

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        file: Path | None = None,
    ) -> Settings:
        """Read file and environment; `flags` (None values are ignored) win over both.

        flags: dotted names, as in `{"offline": True, "server.port": 9000}`.
        """
        environment = os.environ if environment is None else environment
        file = file or _find_file(environment)
        values: dict[str, tuple[Any, str]] = {}
        if file is not None:
            values |= {key: (value, str(file)) for key, value in _read_file(file).items()}
        for name, kind in _leaves(cls).items():
            variable = _variable(name)
            if variable in environment:
                values[name] = (_from_text(environment[variable], kind, variable), variable)
        for name, value in (flags or {}).items():
            if value is not None:
                values[name] = (value, f"flag for {name}")
        settings: Settings = _build(cls, "", values)
        if values:
            name, (_, where) = next(iter(values.items()))
            raise ConfigurationError(
                f"{where}: there is no setting called {name!r}.",
                hint=f"Settings are: {', '.join(_leaves(cls))}.",
            )
        return settings


def config_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """The configuration file that `Settings.load` would read, or None."""
    return _find_file(os.environ if environment is None else environment)


def origins(
    settings: Settings, *, environment: Mapping[str, str] | None = None
) -> dict[str, tuple[Any, str]]:
    """Dotted name → (value in effect, where it came from: a file, a variable, a flag, default)."""
    environment = os.environ if environment is None else environment
    without_flags = Settings.load(environment=environment)
    file = _find_file(environment)
    in_file = _read_file(file) if file is not None else {}
    found = {}
    for name in _leaves(Settings):
        value = attrgetter(name)(settings)
        where = "default"
        if value != attrgetter(name)(without_flags):
            where = "flag"
        elif _variable(name) in environment:
            where = _variable(name)
        elif name in in_file:
            where = str(file)
        found[name] = (value, where)
    return found


def _variable(name: str) -> str:
    return f"CHIASM_{name.replace('.', '_').upper()}"


def _find_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get("CHIASM_CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigurationError(
                f"CHIASM_CONFIG names {named}, which is not a file.",
                hint="Point it at a chiasm.toml, or unset it.",
            )
        return Path(named)
    candidates = (Path("chiasm.toml"), Path(platformdirs.user_config_dir(_APP)) / "chiasm.toml")
    return next((path for path in candidates if path.is_file()), None)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from None
    return _flatten(table)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in _tables():
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _tables() -> dict[str, Any]:
    """Name → class of the entries of each table whose entries the user names."""
    hints = get_type_hints(Settings)
    return {name: get_args(kind)[1] for name, kind in hints.items() if _is_table(kind)}


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is Mapping


def _leaves(cls: type, prefix: str = "") -> dict[str, type]:
    """Dotted name → type of every setting below `cls`, but for those in tables."""
    leaves: dict[str, type] = {}
    for name, kind in get_type_hints(cls).items():
        if _is_table(kind):
            continue
        if isinstance(kind, type) and is_dataclass(kind):
            leaves |= _leaves(kind, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = kind
    return leaves


def _build(cls: Any, prefix: str, values: dict[str, tuple[Any, str]]) -> Any:
    """Make `cls` from the values that belong to it, taking them out of `values`."""
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for item in fields(cls):
        kind, name = hints[item.name], f"{prefix}{item.name}"
        if is_dataclass(kind):
            arguments[item.name] = _build(kind, f"{name}.", values)
        elif _is_table(kind):
            if name in values:
                value, where = values.pop(name)
                arguments[item.name] = _build_table(value, get_args(kind)[1], name, where)
        elif name in values:
            value, where = values.pop(name)
            arguments[item.name] = _checked(value, kind, name, where)
    return cls(**arguments)


def _build_table(value: Any, kind: Any, name: str, where: str) -> dict[str, Any]:
    """The entries of a table, each made as its dataclass has it."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: {name} must be a table.", param=name)
    built = {}
    for key, entry in value.items():
        place = f"{name}.{key}"
        if not isinstance(entry, Mapping):
            raise ConfigurationError(
                f"{where}: {place} must be a table.", hint=f"Write [{place}].", param=place
            )
        hints = get_type_hints(kind)
        if unknown := sorted(set(entry) - set(hints)):
            raise ConfigurationError(
                f"{where}: there is no setting called '{place}.{unknown[0]}'.",
                hint=f"Settings of [{place}] are: {', '.join(hints)}.",
                param=place,
            )
        checked = {
            each: _checked(entry[each], hints[each], f"{place}.{each}", where) for each in entry
        }
        built[key] = kind(**checked)
    return built


def _checked(value: Any, kind: Any, name: str, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(kind) is tuple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise ConfigurationError(
            f"{where}: {name} must be a list of texts, not {value!r}.", param=name
        )
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser().absolute()
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigurationError(
        f"{where}: {name} must be {_article(kind)}, not {value!r}.", param=name
    )


def _from_text(text: str, kind: type, variable: str) -> Any:
    if kind is bool:
        lowered = text.strip().lower()
        if lowered in {"1", "true", "yes", "on"}:
            return True
        if lowered in {"0", "false", "no", "off", ""}:
            return False
        raise ConfigurationError(f"{variable} must be 1 or 0, not {text!r}.")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigurationError(f"{variable} must be a whole number, not {text!r}.") from None
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigurationError(f"{variable} must be a number, not {text!r}.") from None
    return text


def _article(kind: type) -> str:
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Path: "a path",
    }[kind]
