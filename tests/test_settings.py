from __future__ import annotations

from pathlib import Path

import pytest

from chiasm.errors import ConfigurationError
from chiasm.settings import Settings, config_file, origins


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chiasm.toml of the developer's own may be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_need_nothing() -> None:
    settings = Settings.load(environment={})
    assert settings.embedder == "default"
    assert settings.server.host == "127.0.0.1", "a fresh server is not reachable from outside"
    assert settings.cache_dir.is_absolute()


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path / "chiasm.toml", "[server]\nport = 1\nhost = 'file'\n[media]\nmax_side=9")
    settings = Settings.load(
        {"server.port": 3, "offline": None},
        environment={"CHIASM_SERVER_PORT": "2", "CHIASM_SERVER_HOST": "env"},
        file=file,
    )
    assert (settings.server.port, settings.server.host) == (3, "env")
    assert settings.media.max_side == 9
    assert settings.offline is False, "a flag that was not given changes nothing"


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("true", True), ("no", False), ("", False), ("OFF", False)]
)
def test_booleans_in_the_environment(text: str, expected: bool) -> None:
    assert Settings.load(environment={"CHIASM_OFFLINE": text}).offline is expected


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.load(environment={"CHIASM_DATA_DIR": "~/pictures"})
    assert settings.data_dir == tmp_path / "pictures"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = ", ["chiasm.toml", "TOML"]),
        ("[server]\nprot = 1", ["server.prot", "server.port"]),
        ("[server]\nport = 'x'", ["server.port", "whole number", "'x'"]),
        ("[server]\nport = true", ["server.port", "whole number"]),
        ("offline = 1", ["offline", "true or false"]),
        ("server = 5", ["server"]),
    ],
)
def test_a_bad_file_is_named_with_the_field(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path / "chiasm.toml", text)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environment={}, file=file)
    for word in [str(file), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"), [("CHIASM_SERVER_PORT", "eighty"), ("CHIASM_OFFLINE", "perhaps")]
)
def test_a_bad_variable_is_named(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        Settings.load(environment={variable: text})


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    assert config_file({}) is None
    user = tmp_path / "config" / "chiasm"
    user.mkdir(parents=True)
    write(user / "chiasm.toml", "offline = true")
    assert Settings.load(environment={}).offline is True
    write(tmp_path / "chiasm.toml", "offline = false")
    assert Settings.load(environment={}).offline is False, "the working folder's file comes first"
    named = write(tmp_path / "other.toml", "embedder = 'x'")
    assert Settings.load(environment={"CHIASM_CONFIG": str(named)}).embedder == "x"
    with pytest.raises(ConfigurationError, match=r"missing\.toml"):
        Settings.load(environment={"CHIASM_CONFIG": str(tmp_path / "missing.toml")})


def test_every_value_says_where_it_came_from(tmp_path: Path) -> None:
    file = write(tmp_path / "chiasm.toml", 'embedder = "file"\n[server]\nport = 1\n')
    environment = {"CHIASM_CONFIG": str(file), "CHIASM_SERVER_PORT": "2", "CHIASM_DEVICE": "cpu"}
    settings = Settings.load({"offline": True}, environment=environment)
    found = origins(settings, environment=environment)
    assert found["embedder"] == ("file", str(file))
    assert found["server.port"] == (2, "CHIASM_SERVER_PORT")
    assert found["device"] == ("cpu", "CHIASM_DEVICE")
    assert found["offline"] == (True, "flag")
    assert found["server.host"] == ("127.0.0.1", "default")


TABLES = """
[providers.openai]
[providers.cluster]
kind = "vllm"
base_url = "http://a:8000,http://b:8000"
first_token_seconds = 20
[models.fast]
targets = ["openai/gpt-5-mini", "cluster/qwen"]
choose = "cheapest"
[prices."cluster/qwen2.5"]
input = 0.1
"""


def test_tables_whose_entries_the_user_names(tmp_path: Path) -> None:
    settings = Settings.load(environment={}, file=write(tmp_path / "chiasm.toml", TABLES))
    assert list(settings.providers) == ["openai", "cluster"]
    assert settings.providers["cluster"].first_token_seconds == 20.0
    assert settings.models["fast"].targets == ("openai/gpt-5-mini", "cluster/qwen")
    assert settings.prices["cluster/qwen2.5"].input == 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[providers.x]\nkinds = 'vllm'", ["providers.x.kinds", "base_url"]),
        ("[providers]\nx = 1", ["providers.x", "[providers.x]"]),
        ("providers = 3", ["providers", "table"]),
        ("[models.a]\ntargets = 'one'", ["models.a.targets", "list of texts"]),
        ("[models.a]\nretries = 1.5", ["models.a.retries", "whole number"]),
        ("[models.a]\nhedge_seconds = 'soon'", ["models.a.hedge_seconds", "a number"]),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environment={}, file=write(tmp_path / "chiasm.toml", text))
    assert all(word in str(caught.value) for word in words)
