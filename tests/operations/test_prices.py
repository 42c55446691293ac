"""Prices, against the list's own arithmetic and by hand."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import genai_prices
import pytest

from chiasm.operations.price_list import PriceList
from chiasm.operations.prices import Prices, Rate, Tokens
from chiasm.settings import PriceSettings, ProviderSettings

MODELS = [
    ("openai/gpt-4o", "openai", "gpt-4o"),
    ("openai/gpt-5-mini", "openai", "gpt-5-mini"),
    ("openai/o3", "openai", "o3"),  # its price changed on a day
    ("anthropic/claude-opus-4-7", "anthropic", "claude-opus-4-7"),
    ("anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5"),  # dearer when long
    ("gemini/gemini-2.5-pro", "google", "gemini-2.5-pro"),  # dearer when long
    ("google/gemini-2.5-flash", "google", "gemini-2.5-flash"),
]


@pytest.mark.parametrize(("target", "vendor", "model"), MODELS)
@pytest.mark.parametrize("prompt", [0, 1, 1500, 199_999, 200_000, 200_001, 900_000])
def test_as_the_list_itself_counts(target: str, vendor: str, model: str, prompt: int) -> None:
    cached, written = prompt // 3, prompt // 7
    spent = Tokens(prompt, answer_tokens=321, cached_tokens=cached, written_tokens=written)
    usage = genai_prices.Usage(
        input_tokens=prompt,
        output_tokens=321,
        cache_read_tokens=cached,
        cache_write_tokens=written,
    )
    own = genai_prices.calc_price(usage, model, provider_id=vendor).total_price
    assert Prices().price_of(target, spent) == own


def test_a_tier_begins_above_its_number() -> None:
    rate = Rate(Decimal(1), ((100, Decimal(2)), (200, Decimal(3))))
    assert [rate.at(n) for n in (0, 100, 101, 200, 201)] == [1, 1, 2, 2, 3]


def test_what_nobody_knows_has_no_price() -> None:
    prices = Prices(providers={"cluster": ProviderSettings(kind="vllm", base_url="http://a")})
    tokens = Tokens(1000, 100)
    for target in ("cluster/gpt-4o", "openai/no-such", "Qwen/Qwen2.5-VL-7B-Instruct", "", "/"):
        assert prices.price_of(target, tokens) is None, target


def test_a_model_of_this_server_is_free() -> None:
    assert Prices(free=frozenset({"default-vlm"})).price_of("default-vlm", Tokens(9, 9)) == 0


def test_own_prices_are_exact_and_come_first() -> None:
    own = PriceSettings(input=0.1, output=0.3)
    cached = PriceSettings(input=0.1, cached_input=0.01, output=0.3)
    prices = Prices({"openai/gpt-4o": own, "x/y": cached})
    tokens = Tokens(1_000_000, 1_000_000, cached_tokens=1_000_000)
    # One tenth is no float; and what has no price of its own is read at the full one.
    assert prices.price_of("openai/gpt-4o", tokens) == Decimal("0.4")
    assert prices.price_of("x/y", tokens) == Decimal("0.31")


def test_a_provider_by_another_name_has_its_vendors_prices() -> None:
    providers = {
        "work": ProviderSettings(kind="openai"),
        "proxy": ProviderSettings(kind="anthropic", base_url="http://localhost:1/anthropic"),
        "other": ProviderSettings(kind="openai", base_url="https://api.groq.com/openai/v1"),
    }
    prices, tokens = Prices(providers=providers), Tokens(1000, 10)
    assert prices.price_of("work/gpt-4o", tokens) == prices.price_of("openai/gpt-4o", tokens)
    claude = prices.price_of("anthropic/claude-haiku-4-5", tokens)
    assert prices.price_of("proxy/claude-haiku-4-5", tokens) == claude
    # At a vendor's own address it is that vendor who is paid, whoever's API it speaks.
    assert prices.price_of("other/gpt-4o", tokens) is None


def test_prices_of_another_day() -> None:
    def at(month: int) -> Decimal:
        rates = PriceList().look("openai", "o3", at=datetime(2025, month, 1, tzinfo=UTC)).rates
        assert rates is not None
        return rates.input.base

    assert (at(5), at(8)) == (Decimal(10), Decimal(2))  # OpenAI, 2025-06-10


def test_a_list_that_is_kept_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "new" / "prices.json"
    names = [(vendor, model) for _, vendor, model in MODELS]
    names += [("openai", "no-such"), ("", "gpt-4o"), ("", "no-such")]
    first = PriceList(file)
    looked_up = [first.look(*name) for name in names]
    assert looked_up == [PriceList().look(*name) for name in names]
    first.save()
    script = (
        "import sys, pathlib\nfrom chiasm.operations.price_list import PriceList\n"
        f"kept = PriceList(pathlib.Path({str(file)!r}))\n"
        f"print([kept.look(*name) for name in {names!r}])\n"
        "assert 'genai_prices' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == repr(looked_up)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"stamp": "of another day"}'])
def test_a_damaged_memory_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(content)
    assert PriceList(file).look("openai", "gpt-4o") == PriceList().look("openai", "gpt-4o")
    shown = PriceList(tmp_path)  # a folder
    shown.look("openai", "gpt-4o")
    shown.save()
