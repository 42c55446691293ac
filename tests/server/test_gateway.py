"""A question's whole way: key, plan, budget, provider, bill, ledger. Real clients, real wire."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import PIL.Image
import pytest

from chiasm.operations import statements
from chiasm.operations.budgets import Budget, Budgets
from chiasm.operations.database import Database, open_database
from chiasm.operations.keys import CACHE_SECONDS, Key, Keys
from chiasm.operations.ledger import Entry
from chiasm.server import create_app
from chiasm.settings import ModelSettings, PriceSettings, ProviderSettings, Settings
from tests.generation.providers.asking import file_in
from tests.generation.providers.fake_openai import (
    CUT,
    Asked,
    FakeOpenAI,
    Reply,
    bill,
    called,
    chat_answer,
    chunk,
    role,
    text,
)
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    data_url,
    error_of,
    make_settings,
    picture,
)

# A dollar for a thousand tokens, in either direction: sums that can be done in the head.
PRICE = PriceSettings(input=1000.0, output=1000.0)


@dataclasses.dataclass
class Gateway:
    """A server before two upstreams, `first` and `second`, with one priced model each."""

    server: LiveServer
    first: FakeOpenAI
    second: FakeOpenAI
    database: Database

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.server.url}/v1", api_key=key, max_retries=0, **options
        )

    def ask(self, *parts: Any, model: str = "first/gpt-4o", key: str = "none", **more: Any) -> Any:
        with self.client(key) as client:
            content = [*parts] or "What is it?"
            messages: Any = [{"role": "user", "content": content}]
            return client.chat.completions.create(model=model, messages=messages, **more)

    @contextlib.contextmanager
    def asking(self, *parts: Any, model: str = "first/gpt-4o", **more: Any) -> Iterator[Any]:
        """The same as a stream, while it is read."""
        messages: Any = [{"role": "user", "content": [*parts] or "What is it?"}]
        with (
            self.client() as client,
            client.chat.completions.create(
                model=model, messages=messages, stream=True, **more
            ) as stream,
        ):
            yield stream

    def key(self, name: str = "somebody", **scope: Any) -> tuple[str, Key]:
        return Keys(self.database).create(name, **scope)

    def rows(self) -> list[Entry]:
        """The ledger's, the newest first."""
        self.server.app.state.runtime._accounts.ledger.flush()
        return statements.rows(self.database)


def settings_for(folder: Path, first: FakeOpenAI, second: FakeOpenAI, **more: Any) -> Settings:
    providers = {
        "first": ProviderSettings(
            "openai", first.url, "FIRST_KEY", between_seconds=2.0, failures=99
        ),
        "second": ProviderSettings("openai", base_url=second.url, failures=99),
        "away": ProviderSettings("openai", base_url="http://127.0.0.1:9/v1", connect_seconds=0.5),
    }
    models = {
        "pick": ModelSettings(("first/gpt-4o", "second/gpt-4o"), retries=0),
        "cheap": ModelSettings(("first/gpt-4o", "second/gpt-4o"), retries=0, choose="cheapest"),
        "safe": ModelSettings(("away/m", "second/gpt-4o"), retries=0),
        "dear": ModelSettings(("first/gpt-4o", "second/gpt-4o-mini"), retries=0),
        "remembered": ModelSettings(("first/gpt-4o",), cache_seconds=60.0),
        "small": ModelSettings(("first/gpt-5-mini",), max_image_tokens=100),
    }
    prices = {
        "first/gpt-4o": PRICE,
        "first/gpt-5-mini": PRICE,
        "second/gpt-4o": PriceSettings(input=500.0, output=500.0),
    }
    return dataclasses.replace(
        make_settings(folder), providers=providers, models=models, prices=prices, **more
    )


@pytest.fixture(scope="module")
def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with FakeOpenAI() as first, FakeOpenAI() as second, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRST_KEY", "sk-upstream")
        settings = settings_for(folder, first, second)
        with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
            database = open_database("", settings.data_dir)
            yield Gateway(live, first, second, database)
            database.close()


@pytest.fixture
def gateway(module_gateway: Gateway) -> Gateway:
    for each, said in ((module_gateway.first, "one"), (module_gateway.second, "two")):
        each.asked.clear()
        each.script = lambda asked, said=said: Reply(chat_answer(said))
    return module_gateway


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """One that answers to holders of keys alone."""
    monkeypatch.setenv("FIRST_KEY", "sk-upstream")
    with FakeOpenAI() as first, FakeOpenAI() as second:
        settings = settings_for(tmp_path, first, second)
        database = open_database("", settings.data_dir)
        Keys(database).create("the first of all")
        with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
            yield Gateway(live, first, second, database)
        database.close()


def photo(width: int = 640, height: int = 480, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((width, height), 60).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def image(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, "image/jpeg"), **more}}


# Passing through --------------------------------------------------------------------------------


def test_a_providers_model_by_its_name(gateway: Gateway) -> None:
    answer = gateway.ask()
    assert answer.choices[0].message.content == "one"
    assert answer.model == "first/gpt-4o"
    (asked,) = gateway.first.asked
    assert asked.headers["authorization"] == "Bearer sk-upstream"
    assert asked.body["model"] == "gpt-4o"


def test_a_vendors_key_does_not_go_elsewhere(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    gateway.ask(model="second/another")
    assert "sk-of-openai" not in str(gateway.second.asked[0].headers)


def test_without_a_bill_the_plan_counts(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply([role(), text("x"), chunk(reason="stop")])
    usage = gateway.ask(image(photo(1024, 1024))).usage.to_dict()
    assert usage["prompt_tokens_details"]["image_tokens"] == 765
    assert usage["estimated"] is True
    assert usage["cost"] > 0.765


def test_a_plain_picture_arrives_as_it_was_sent(gateway: Gateway) -> None:
    data = photo()
    gateway.ask(image(data, detail="low"), {"type": "text", "text": "What is it?"})
    (asked,) = gateway.first.asked
    sent = asked.body["messages"][0]["content"][0]["image_url"]
    assert sent["detail"] == "low"
    assert file_in(sent["url"]) == ("image/jpeg", data)


def test_a_picture_with_a_position_loses_it(gateway: Gateway) -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x0112] = 6  # lies on its side
    gateway.ask(image(photo(exif=exif)))
    (asked,) = gateway.first.asked
    _, data = file_in(asked.body["messages"][0]["content"][0]["image_url"]["url"])
    with PIL.Image.open(io.BytesIO(data)) as sent:
        assert not sent.getexif()
        assert sent.size == (480, 640), "upright"


def test_a_stream_passes_word_by_word(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply(
        [role(), text("A "), text("cat."), chunk(reason="stop"), bill(12, 2)]
    )
    with gateway.asking(stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    words = [each.choices[0].delta.content for each in chunks if each.choices]
    assert "".join(filter(None, words)) == "A cat."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 12
    assert gateway.first.asked[0].body["stream"] is True


def test_connections_are_kept(gateway: Gateway) -> None:
    before = gateway.first.connections
    for _ in range(5):
        gateway.ask()
    assert gateway.first.connections - before <= 1


# Routes -----------------------------------------------------------------------------------------


def test_the_next_target_answers_where_the_first_fails(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply(status=500, whole={"error": {"message": "no"}})
    assert gateway.ask(model="pick").choices[0].message.content == "two"
    row = gateway.rows()[0]
    assert (row.alias, row.provider, row.model) == ("pick", "second", "gpt-4o")
    assert row.fallback == "first/gpt-4o"


def test_a_whole_answer_that_breaks_off_is_begun_anew(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply([role(), text("half"), CUT])
    assert gateway.ask(model="pick").choices[0].message.content == "two"


def test_a_streamed_one_is_not_unless_the_caller_says_so(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply([role(), text("half"), CUT])
    with gateway.asking(model="pick") as stream, pytest.raises(openai.APIError):
        list(stream)
    assert gateway.second.asked == []
    with gateway.asking(model="pick", extra_body={"restart": True}) as stream:
        chunks = [each.to_dict() for each in stream]
    at = next(n for n, each in enumerate(chunks) if each.get("restarted"))
    after = [each["choices"][0]["delta"].get("content") for each in chunks[at + 1 :]]
    assert "".join(filter(None, after)) == "two"


def test_the_cheapest_is_asked(gateway: Gateway) -> None:
    assert gateway.ask(model="cheap").choices[0].message.content == "two"


def test_an_answer_that_is_remembered(gateway: Gateway) -> None:
    data = photo(320, 200)
    first = gateway.ask(image(data), model="remembered")
    again = gateway.ask(image(data), model="remembered")
    assert len(gateway.first.asked) == 1
    assert again.choices[0].message.content == first.choices[0].message.content
    row = gateway.rows()[0]
    assert row.cache_hit
    assert row.cost == 0
    gateway.ask(image(photo(320, 201)), model="remembered")
    assert len(gateway.first.asked) == 2


def test_routes_are_listed(gateway: Gateway) -> None:
    with gateway.client() as client:
        listed = {each.id for each in client.models.list()}
    assert {"pick", "cheap", "safe", "remembered", "small"} <= listed


# Counting ---------------------------------------------------------------------------------------


def test_what_it_took_is_in_the_answer_and_in_the_ledger(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply(
        [role(), text("x"), chunk(reason="stop"), bill(800, 5)]
    )
    answer = gateway.ask(image(photo(1024, 1024)), {"type": "text", "text": "What is it?"})
    usage = answer.usage.to_dict()
    assert usage["prompt_tokens_details"]["image_tokens"] == 765, "by the rule: it says the sum"
    assert usage["prompt_tokens_details"]["text_tokens"] == 35
    assert usage["estimated"] is True
    assert usage["cost"] == pytest.approx(0.805)
    row = gateway.rows()[0]
    assert row.cost == Decimal("0.805")
    assert (row.images, row.image_tokens, row.text_tokens, row.answer_tokens) == (1, 765, 35, 5)
    assert row.planned_image_tokens == 765
    assert row.status == 200
    assert row.seconds_to_first_token is not None
    assert row.content is None, "texts are kept only where the operator asks for it"


def test_pictures_are_scaled_to_fit(gateway: Gateway) -> None:
    gateway.ask(
        image(photo(1024, 1024)), model="first/gpt-5-mini", extra_body={"max_image_tokens": 308}
    )
    (asked,) = gateway.first.asked
    _, data = file_in(asked.body["messages"][0]["content"][0]["image_url"]["url"])
    with PIL.Image.open(io.BytesIO(data)) as sent:
        assert sent.size == (512, 512), "16 × 16 patches at 1.2"
    assert gateway.rows()[0].planned_image_tokens == 308


def test_a_route_can_demand_it(gateway: Gateway) -> None:
    gateway.ask(image(photo(1024, 1024)), model="small")
    assert (gateway.rows()[0].planned_image_tokens or 0) <= 100


def test_what_cannot_fit_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.ask(image(photo()), extra_body={"max_image_tokens": 100})
    assert "255" in caught.value.message, "the least of 85 / 170"
    with pytest.raises(openai.BadRequestError, match="cost"):
        gateway.ask(image(photo()), extra_body={"max_cost": 0.01})
    assert gateway.first.asked == []


def test_a_client_that_leaves_is_charged_for_what_came(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply([role(), *[text("word ")] * 3, 1.5, text("late")])
    since = datetime.now(UTC)
    with gateway.asking() as stream:
        next(each for each in stream if each.choices and each.choices[0].delta.content)
    assert gateway.first.gone.wait(10), "the provider goes on"
    row = row_since(gateway, since, 499)
    assert row.answer_tokens >= 1
    assert row.cost is not None
    assert row.cost > 0


def row_since(gateway: Gateway, since: datetime, status: int) -> Entry:
    """The row of a request that began after that; it is written when its answer has ended."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for row in gateway.rows()[:3]:
            if row.time >= since and row.status == status:
                return row
        time.sleep(0.05)
    raise AssertionError(f"no row of status {status}")


def test_a_client_that_leaves_before_the_first_word_pays_for_the_prompt(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply([role(), 1.5, text("late")])
    body = {"model": "first/gpt-4o", "stream": True, **with_pictures(image(photo(1024, 1024)))}
    since = datetime.now(UTC)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.server.url}/v1/chat/completions", json=body, timeout=0.7)
    row = row_since(gateway, since, 499)
    assert row.image_tokens == 765
    assert row.cost is not None
    assert row.cost >= Decimal("0.765")


def test_a_large_piece_is_counted_by_its_words(gateway: Gateway) -> None:
    words = "elephant " * 500
    gateway.first.script = lambda asked: Reply([role(), text(words), 1.5, text("late")])
    since = datetime.now(UTC)
    with gateway.asking() as stream:
        next(each for each in stream if each.choices and each.choices[0].delta.content)
    assert row_since(gateway, since, 499).answer_tokens > 300


def test_an_answer_that_was_replaced_is_paid_for_too(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply([role(), text("word " * 50), CUT])
    answer = gateway.ask(model="pick")
    assert answer.choices[0].message.content == "two"
    row = gateway.rows()[0]
    assert row.provider == "second"
    alone = Decimal(19 + 10) / 2000  # what the second asks for
    assert row.cost is not None
    assert row.cost > alone + Decimal("0.03")


# Keys -------------------------------------------------------------------------------------------


def test_without_a_key_nothing(keyed: Gateway) -> None:
    with pytest.raises(openai.AuthenticationError):
        keyed.ask()
    with pytest.raises(openai.AuthenticationError):
        keyed.ask(key="chk-guessed")
    with httpx.Client(base_url=keyed.server.url) as plain:
        for path in ("/v1/models", "/v1/collections"):
            assert plain.get(path).status_code == 401
        assert plain.get("/healthz").status_code == 200
    assert keyed.first.asked == []


def test_a_key_is_for_its_models(keyed: Gateway) -> None:
    secret, key = keyed.key(models=["second/*", "pick"])
    assert keyed.ask(key=secret, model="pick").model == "pick"
    with pytest.raises(openai.PermissionDeniedError, match=key.name):
        keyed.ask(key=secret)
    with keyed.client(secret) as client:
        assert "first/gpt-4o" not in {each.id for each in client.models.list()}
    row = keyed.rows()[0]
    assert (row.status, row.error, row.key) == (403, "key_forbidden", key.id)


def test_a_revoked_key_ends_soon(keyed: Gateway) -> None:
    secret, key = keyed.key()
    keyed.ask(key=secret)
    Keys(keyed.database).revoke(key.id)
    time.sleep(CACHE_SECONDS + 0.1)
    with pytest.raises(openai.AuthenticationError):
        keyed.ask(key=secret)


def test_a_hundred_at_once_do_not_overspend(keyed: Gateway) -> None:
    """Each may take 0.10 dollars: the budget of one dollar lets ten of them be under way."""
    keyed.first.script = lambda asked: Reply(
        [role(), 0.05, text("x"), chunk(reason="stop"), bill(20, 80)]
    )
    secret, key = keyed.key(budgets=[Budget("day", "money", Decimal("1.00"))])

    def ask(number: int) -> int:
        try:
            keyed.ask({"type": "text", "text": f"Number {number}?"}, key=secret, max_tokens=80)
        except openai.RateLimitError as error:
            return 0 if error.code == "insufficient_quota" else 1_000
        return 1

    with ThreadPoolExecutor(50) as threads:
        answered = sum(threads.map(ask, range(100)))
    assert len(keyed.first.asked) == answered, "what was refused was sent"
    spent = sum(row.cost or 0 for row in keyed.rows() if row.key == key.id)
    assert spent == answered * Decimal("0.1")
    assert spent <= 1
    assert answered >= 9, "much of the budget was never to be had"
    (left,) = Budgets(keyed.database).left(key)
    assert left.reserved == 0
    assert left.spent == spent


def test_image_tokens_are_a_budget_too(keyed: Gateway) -> None:
    secret, _ = keyed.key(budgets=[Budget("day", "image_tokens", 1000)])
    keyed.first.script = lambda asked: Reply(
        [role(), text("x"), chunk(reason="stop"), bill(800, 1)]
    )
    keyed.ask(image(photo(1024, 1024)), key=secret)
    with pytest.raises(openai.RateLimitError, match="235"):
        keyed.ask(image(photo(1024, 1024)), key=secret)
    keyed.ask(key=secret)


def test_image_tokens_are_set_aside_for_the_dearest_target(keyed: Gateway) -> None:
    """gpt-4o-mini counts a picture 33 times as high as gpt-4o does."""
    keyed.first.script = lambda asked: Reply(status=500, whole={"error": {"message": "no"}})
    secret, key = keyed.key(budgets=[Budget("day", "image_tokens", 4000)])
    with pytest.raises(openai.RateLimitError, match="25,501"):
        keyed.ask(image(photo(1024, 1024)), key=secret, model="dear")
    assert keyed.first.asked == []
    (left,) = Budgets(keyed.database).left(key)
    assert left.spent == 0


def test_a_vendors_model_as_the_servers_own_costs_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-upstream")
    with FakeOpenAI() as upstream:
        upstream.script = lambda asked: Reply(
            [role(), text("x"), chunk(reason="stop"), bill(1000, 10)]
        )
        location = f"openai:{upstream.url}#gpt-4o"
        settings = dataclasses.replace(
            make_settings(tmp_path), generator=location, prices={location: PRICE}
        )
        with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
            assert httpx.get(f"{live.url}/readyz").status_code == 200
            body = {"messages": [{"role": "user", "content": "?"}]}
            answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.json()["usage"]["cost"] == pytest.approx(1.01)


def test_no_price_no_budget_in_money(keyed: Gateway) -> None:
    secret, _ = keyed.key(budgets=[Budget("day", "money", Decimal(5))])
    with pytest.raises(openai.PermissionDeniedError, match="no known price"):
        keyed.ask(key=secret, model="first/unheard-of")


def test_a_failed_question_costs_nothing(keyed: Gateway) -> None:
    keyed.first.script = lambda asked: Reply(status=500, whole={"error": {"message": "no"}})
    secret, key = keyed.key(budgets=[Budget("day", "money", Decimal(5))])
    with pytest.raises(openai.InternalServerError):
        keyed.ask(key=secret, model="first/gpt-4o")
    (left,) = Budgets(keyed.database).left(key)
    assert (left.spent, left.reserved) == (0, 0)


def test_rates(keyed: Gateway) -> None:
    secret, _ = keyed.key(requests_per_minute=2)
    for _ in range(2):
        keyed.ask(key=secret)
    with pytest.raises(openai.RateLimitError) as caught:
        keyed.ask(key=secret)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_keys_do_not_share_what_is_remembered(keyed: Gateway) -> None:
    for name in ("one", "other"):
        secret, _ = keyed.key(name)
        keyed.ask(key=secret, model="remembered")
    assert len(keyed.first.asked) == 2


def test_a_collection_is_for_its_key(keyed: Gateway) -> None:
    secret, _ = keyed.key(collections=["shop-*"])
    with httpx.Client(
        base_url=keyed.server.url, headers={"authorization": f"Bearer {secret}"}
    ) as client:
        assert client.post("/v1/collections", json={"name": "shop-a"}).status_code == 201
        refused = client.post("/v1/collections", json={"name": "others"})
        assert (refused.status_code, error_of(refused)["code"]) == (403, "key_forbidden")
        for path in ("others", "others/items"):
            assert client.get(f"/v1/collections/{path}").status_code == 403
        search = client.post("/v1/collections/others/search", json={"text": "red"})
        assert search.status_code == 403
        listed = client.get("/v1/collections").json()["data"]
        assert [each["name"] for each in listed] == ["shop-a"]


def test_embeddings_are_for_keys_and_in_the_ledger(keyed: Gateway) -> None:
    secret, key = keyed.key(models=["colours"], budgets=[Budget("day", "requests", 1)])
    with keyed.client(secret) as client:
        client.embeddings.create(model="colours", input=["red", "a blue one"])
        with pytest.raises(openai.RateLimitError, match="1 requests a day"):
            client.embeddings.create(model="colours", input="red")
    refused, answered = keyed.rows()[:2]
    assert (answered.route, answered.model, answered.text_tokens) == (
        "/v1/embeddings",
        "colours",
        4,
    )
    assert (refused.status, refused.error, refused.key) == (429, "insufficient_quota", key.id)


# Bad input --------------------------------------------------------------------------------------


def refused(gateway: Gateway, **body: Any) -> tuple[int, dict[str, Any]]:
    asked = {"model": "first/gpt-4o", "messages": [{"role": "user", "content": "?"}], **body}
    response = httpx.post(f"{gateway.server.url}/v1/chat/completions", json=asked, timeout=60)
    return response.status_code, error_of(response)


def with_pictures(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts]}]}


def test_an_unknown_model_has_near_names(gateway: Gateway) -> None:
    status, error = refused(gateway, model="pikc")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "pick" in error["message"]


def test_a_provider_that_cannot_be_reached(gateway: Gateway) -> None:
    status, error = refused(gateway, model="away/m")
    assert (status, error["code"]) == (503, "generator_unreachable")
    assert gateway.ask(model="safe").choices[0].message.content == "two"


def test_a_wrong_key_is_the_operators_matter(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply(
        status=401,
        whole={
            "error": {"message": "Incorrect API key provided: sk-up***", "code": "invalid_api_key"}
        },
    )
    status, error = refused(gateway)
    assert (status, error["code"]) == (503, "provider_key_refused")
    assert "sk-up" not in error["message"]


def test_a_providers_refusal_is_passed_on(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply(
        status=400,
        whole={
            "error": {"message": "Your request was rejected.", "code": "content_policy_violation"}
        },
    )
    status, error = refused(gateway)
    assert (status, error["code"]) == (400, "content_refused")


def test_a_busy_provider_says_when(gateway: Gateway) -> None:
    gateway.first.script = lambda asked: Reply(
        status=429,
        headers={"retry-after": "90"},
        whole={"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}},
    )
    with pytest.raises(openai.RateLimitError) as caught:
        gateway.ask()
    assert caught.value.response.headers["retry-after"] == "90"


def test_a_truncated_picture(gateway: Gateway) -> None:
    status, error = refused(gateway, **with_pictures(image(photo()[:-2000])))
    assert (status, error["code"]) == (400, "broken_image")
    assert "messages[0].content[0].image_url.url" in error["message"]


def test_an_animation(gateway: Gateway) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    part = {"type": "image_url", "image_url": {"url": data_url(buffer.getvalue(), "image/gif")}}
    status, error = refused(gateway, **with_pictures(part))
    assert (status, error["code"]) == (400, "animated_image")
    assert "3 frames" in error["message"]


def test_forty_megabytes(gateway: Gateway) -> None:
    """Within the limit on a body, beyond what vendors take: made smaller before it is sent."""
    noise = photo(4000, 4000, quality=100, subsampling=0)
    whole = noise + bytes(40_000_000 - len(noise))
    gateway.ask(image(whole))
    (asked,) = gateway.first.asked
    assert len(asked.raw) < 20_000_000
    status, error = refused(gateway, **with_pictures(image(bytes(70_000_000))))
    assert (status, error["code"]) == (413, "image_too_large")
    assert "67,108,864" in error["message"]


def test_too_many_pictures(gateway: Gateway) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(picture("red"))}}
    status, error = refused(gateway, **with_pictures(*[part] * 601))
    assert status == 400
    assert "600" in error["message"]


def test_an_address(gateway: Gateway) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    status, error = refused(gateway, **with_pictures(part))
    assert (status, error["code"]) == (400, "invalid_image")
    assert "not fetched" in error["message"]
    assert gateway.first.asked == []


def test_tools_go_there_and_back(gateway: Gateway) -> None:
    def script(asked: Asked) -> Reply:
        if asked.body["messages"][-1]["role"] == "tool":
            return Reply(chat_answer("It is a cat."))
        call = called(0, id="call_1", name="zoom", arguments='{"x": 1}')
        return Reply([role(), call, chunk(reason="tool_calls"), bill()])

    gateway.first.script = script
    tools: Any = [
        {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object"}}}
    ]
    answer = gateway.ask(tools=tools)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("zoom", '{"x": 1}')
    with gateway.client() as client:
        messages: Any = [
            {"role": "user", "content": "What is it?"},
            answer.choices[0].message.to_dict(),
            {"role": "tool", "tool_call_id": call.id, "content": "fur"},
        ]
        done = client.chat.completions.create(model="first/gpt-4o", messages=messages, tools=tools)
    assert done.choices[0].message.content == "It is a cat."
    sent = gateway.first.asked[-1].body["messages"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "call_1"
