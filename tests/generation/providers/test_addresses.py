"""`openai:model` and its like: from a setting to a generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiasm.errors import ConfigurationError, ProviderKeyRefused
from chiasm.generation import load_generator
from chiasm.generation.providers.address import Address, is_remote, parse_address
from chiasm.generation.providers.loading import make_generator
from chiasm.generation.providers.vllm import VLLMGenerator
from chiasm.settings import ProviderSettings, Settings
from tests.generation.providers.asking import answers, asked, said
from tests.generation.providers.fake_openai import FakeOpenAI, Reply, chat_answer, responses_answer
from tests.generation.providers.fake_vllm import FakeVLLM


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        fake.script = lambda asked: Reply(
            responses_answer("By responses.")
            if asked.path.endswith("/responses")
            else chat_answer("By chat.")
        )
        yield fake


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("openai:gpt-5-mini", Address((), "gpt-5-mini", "openai")),
        ("openai:ft:gpt-4.1:org::id", Address((), "ft:gpt-4.1:org::id", "openai")),
        ("openai:http://h:1#m", Address(("http://h:1/v1",), "m", "openai")),
        ("openai:http://h:1/#org/m", Address(("http://h:1/v1",), "org/m", "openai")),
        ("openai:https://h/api/v3/#m", Address(("https://h/api/v3",), "m", "openai")),
        ("openai-responses:gpt-5", Address((), "gpt-5", "openai-responses")),
        ("openai-responses:http://h#m", Address(("http://h/v1",), "m", "openai-responses")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert is_remote(text)
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["default-vlm", "hf:org/name", "/folder/openai", "openai", "", "x:y"]
)
def test_what_is_run_here(text: str) -> None:
    assert not is_remote(text)


@pytest.mark.parametrize(
    "text",
    ["openai:", "openai: ", "openai:http://h:1", "openai:http://h:1#", "openai:http://a,http://b#m",
     "openai:http://user:secret@h#m", "openai:http://h:x#m", "openai:http://h?q=1#m"],
)  # fmt: skip
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def settings(tmp_path: Path, generator: str) -> Settings:
    return dataclasses.replace(
        Settings(), cache_dir=tmp_path, data_dir=tmp_path, generator=generator
    )


@pytest.mark.parametrize(
    ("scheme", "words"), [("openai", "By chat."), ("openai-responses", "By responses.")]
)
def test_from_a_setting_to_an_answer(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    generator = load_generator(settings(tmp_path, f"{scheme}:{server.url}#some/model"))
    assert said(answers(generator, asked())) == words
    generator.close()
    assert server.asked[0].body["model"] == "some/model"
    assert server.asked[0].headers["authorization"] == "Bearer sk-of-the-environment"


def test_the_vendors_own_wants_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ProviderKeyRefused, match="OPENAI_API_KEY"):
        load_generator(settings(tmp_path, "openai:gpt-5-mini"))


def test_a_provider_by_its_settings(server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of its own goes there and nowhere else."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("HOUSE_KEY", "sk-of-the-house")
    provider = ProviderSettings(kind="openai", base_url=server.url, key_variable="HOUSE_KEY")
    generator = make_generator("house", provider, "m")
    assert said(answers(generator, asked())) == "By chat."
    generator.close()
    assert server.asked[0].headers["authorization"] == "Bearer sk-of-the-house"


def test_vllm_servers_by_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written with or without the path of the API, and with a key variable of their own."""
    monkeypatch.setenv("CLUSTER_KEY", "sk-of-the-cluster")
    with FakeVLLM() as one, FakeVLLM() as two:
        one.key = two.key = "sk-of-the-cluster"
        urls = f"{one.url}/v1, {two.url}/"
        provider = ProviderSettings(kind="vllm", base_url=urls, key_variable="CLUSTER_KEY")
        generator = make_generator("cluster", provider, "tiny-llava")
        assert isinstance(generator, VLLMGenerator)
        assert generator.usable_servers == 2
        assert said(answers(generator, asked())) == "A cat."
        generator.close()
