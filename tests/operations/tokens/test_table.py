"""Names and what they mean; dates and sources."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import pytest

from chiasm.operations.tokens import ImageRule, known_models, rule_for, rules_for


def known(model: str) -> ImageRule:
    rule = rule_for(model)
    assert rule is not None, model
    return rule


SAME = {
    "gpt-5-mini": ["openai/gpt-5-mini", "gpt-5-mini-2025-08-07", "openai/gpt-5-mini-2025-08-07",
                   "openrouter/openai/gpt-5-mini", "GPT-5-mini"],
    "gpt-4o": ["gpt-4o-2024-11-20", "chatgpt-4o-latest", "azure/gpt-4o"],
    "gpt-4o-mini": ["gpt-4o-mini-2024-07-18"],
    "gpt-5": ["gpt-5-2025-08-07", "gpt-5-chat-latest"],
    "gpt-4.1-nano": ["gpt-4.1-nano-2025-04-14"],
    "gpt-5.6-sol": ["gpt-5.6", "openai/gpt-5.6-terra", "gpt-6-astra"],
    "claude-opus-4-7": ["anthropic/claude-opus-4-7", "claude-opus-4-7-20260416",
                        "claude-opus-4-7@20260416", "anthropic/claude-opus-4.7",
                        "anthropic.claude-opus-4-7-20260416-v1:0", "claude-sonnet-5-5",
                        "us.anthropic.claude-opus-4-7-v1:0", "claude-fable-5", "claude-mythos-5"],
    "claude-sonnet-4-5": ["claude-sonnet-4-20250514", "claude-3-7-sonnet-latest",
                          "claude-3-haiku-20240307", "claude-haiku-4-5-20251001",
                          "claude-opus-4-1-20250805", "claude-sonnet-4.6"],
    "gemini-2.5-flash": ["models/gemini-2.5-flash", "google/gemini-2.5-pro",
                         "gemini-2.5-flash-preview-09-2025"],
    "gemini-3-pro-preview": ["gemini/gemini-3-flash-preview", "gemini-3.5-flash"],
    "Qwen2.5-VL-7B-Instruct": ["Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "qwen2.5-vl-3b-instruct",
                               "Qwen/Qwen2-VL-2B-Instruct"],
    "Qwen3-VL-8B-Instruct": ["Qwen/Qwen3-VL-30B-A3B-Instruct"],
    "llava-1.5-7b-hf": ["llava-hf/llava-1.5-13b-hf", "liuhaotian/llava-v1.5-7b"],
    "llava-v1.6-mistral-7b-hf": ["llava-hf/llava-v1.6-vicuna-7b-hf"],
    "InternVL3-8B-hf": ["OpenGVLab/InternVL2_5-8B", "OpenGVLab/InternVL3-78B"],
    "SmolVLM-256M-Instruct": ["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"],
    "SmolVLM-Instruct": ["HuggingFaceTB/SmolVLM2-2.2B-Instruct"],
    "pixtral-12b": ["mistral/pixtral-large-latest", "mistral-community/pixtral-12b"],
    "Llama-4-Scout-17B-16E-Instruct": ["meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "spelling"), [(name, each) for name, spellings in SAME.items() for each in spellings]
)
def test_spellings_of_a_model_have_one_rule(name: str, spelling: str) -> None:
    assert rules_for(spelling) == rules_for(name)


DIFFERENT = [
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4.1", "gpt-4.1-mini"),
    ("gpt-4.1-mini", "gpt-4.1-nano"),
    ("gpt-5", "gpt-5-mini"),
    ("gpt-5", "gpt-5.2"),
    ("gpt-5.4", "gpt-5.5"),
    ("o3", "o4-mini"),
    ("claude-opus-4-6", "claude-opus-4-7"),
    ("claude-sonnet-4-6", "claude-sonnet-5"),
    ("gemini-2.5-flash", "gemini-3-flash-preview"),
    ("SmolVLM-256M-Instruct", "SmolVLM-Instruct"),
    ("llava-1.5-7b-hf", "llava-v1.6-mistral-7b-hf"),
    ("paligemma2-3b-mix-224", "paligemma2-3b-mix-448"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_models_that_differ_are_told_apart(one: str, other: str) -> None:
    assert known(one).name != known(other).name


@pytest.mark.parametrize(
    "model",
    ["", "nobody/knows-this", "o3-mini", "gpt-3.5-turbo", "text-embedding-3-small", "llama-3-8b"],
)
def test_what_nobody_has_stated_is_none(model: str) -> None:
    assert rule_for(model) is None
    assert rules_for(model) == []


def test_the_newest_statement_counts_and_the_older_can_be_asked_for() -> None:
    for model in known_models():
        stated = rules_for(model.name)
        assert stated, model.name
        assert stated == sorted(stated, key=lambda rule: rule.read, reverse=True)
        assert rule_for(model.name) is stated[0]
        for rule in stated:
            assert known_as_of(model.name, rule.read).read == rule.read
        assert rule_for(model.name, as_of=date(2020, 1, 1)) is None


def known_as_of(model: str, day: date) -> ImageRule:
    rule = rule_for(model, as_of=day)
    assert rule is not None
    return rule


@pytest.mark.parametrize(
    "model", ["gpt-5-mini", "gpt-5-nano", "gpt-5.4-mini", "gpt-4.1-mini", "gemini-3-pro-preview",
              "Qwen2-VL-7B-Instruct"]
)  # fmt: skip
def test_sources_that_disagree_are_both_kept(model: str) -> None:
    newest, older = rules_for(model)
    detail = newest.details[0] if newest.details else "auto"
    assert newest.cost(2048, 2048, detail) != older.cost(2048, 2048, detail)
    assert newest.source != older.source


def test_every_rule_says_where_it_is_from() -> None:
    names = set()
    for model in known_models():
        for rule in rules_for(model.name):
            assert rule.source
            assert rule.evidence in ("document", "bill", "code")
            assert date(2026, 1, 1) <= rule.read <= date(2026, 12, 31)
            names.add((rule.name, rule.source))
    assert len({name for name, _ in names}) == len(names)  # costs are remembered by the name


def test_the_known_models() -> None:
    found = known_models()
    assert len(found) == len({model.name for model in found}) >= 45
    assert {model.provider for model in found} == {"openai", "anthropic", "google", "open"}
    for family in ("gpt", "claude", "gemini", "llava", "qwen", "idefics", "smolvlm", "internvl",
                   "paligemma", "pixtral", "llama-4", "default-vlm"):  # fmt: skip
        assert any(family in model.name.lower() for model in found), family


def test_importing_it_is_light() -> None:
    script = (
        "import sys, chiasm.operations.tokens as t; t.rule_for('gpt-4o').cost(9, 9);"
        "heavy = ('numpy', 'torch', 'transformers', 'pydantic', 'PIL');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
