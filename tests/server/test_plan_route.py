"""`POST /v1/plan`: the rows, what it reads of pictures, and what it refuses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from chiasm.operations.database import open_database
from chiasm.operations.keys import Keys
from chiasm.server import create_app
from chiasm.settings import ModelSettings, PriceSettings, ProviderSettings, Settings
from tests.server.conftest import ColourEmbedder, LiveServer


def data_url(width: int, height: int) -> str:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def planning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with routes, own prices, and an address that is not for callers."""
    folder = tmp_path_factory.mktemp("plan")
    settings = Settings(
        cache_dir=folder / "cache",
        data_dir=folder / "data",
        offline=True,
        generator="vllm:http://10.1.2.3:8000#Qwen/Qwen2.5-VL-7B-Instruct",
        providers={"work": ProviderSettings(kind="openai", base_url="http://10.9.9.9/v1")},
        models={"eyes": ModelSettings(targets=("work/gpt-4o", "work/own-model"))},
        prices={"work/gpt-4o": PriceSettings(input=1.0, output=2.0)},
    )
    app = create_app(settings, embedder=ColourEmbedder())
    with LiveServerNoWait(app) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


class LiveServerNoWait(LiveServer):
    """The generator's servers are not there, so this one is never ready; plans need none."""

    def __enter__(self) -> LiveServer:
        self._thread.start()
        return self


def rows(answer: httpx.Response) -> dict[tuple[str, str], dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return {(row["model"], row["detail"]): row for row in answer.json()["data"]}


def test_a_plan_by_size_alone(planning: httpx.Client) -> None:
    answer = planning.post(
        "/v1/plan",
        json={
            "pictures": [{"width": 1024, "height": 1024}],
            "prompt": "What is this?",
            "models": ["openai/gpt-4o", "anthropic/claude-haiku-4-5"],
            "answer_tokens": 100,
        },
    )
    found = rows(answer)
    high = found["openai/gpt-4o", "high"]
    assert high["image_tokens"] == 765  # OpenAI's own example
    assert (high["images"][0]["width"], high["images"][0]["height"]) == (768, 768)
    assert found["openai/gpt-4o", "low"]["image_tokens"] == 85
    assert high["cost"] == pytest.approx(((765 + high["text_tokens"]) * 2.5 + 100 * 10) / 1e6)
    costs = [row["cost"] for row in answer.json()["data"]]
    assert costs == sorted(costs)


def test_all_models_and_never_an_address(planning: httpx.Client) -> None:
    answer = planning.post("/v1/plan", json={"pictures": [{"width": 640, "height": 480}]})
    found = rows(answer)
    assert len({model for model, _ in found}) >= 30
    assert ("work/gpt-4o", "high") in found
    assert any("Qwen2.5-VL-7B" in model for model, _ in found)
    assert "10.1.2.3" not in answer.text
    assert "10.9.9.9" not in answer.text


def test_own_prices_come_first(planning: httpx.Client) -> None:
    found = rows(
        planning.post(
            "/v1/plan",
            json={"pictures": [{"width": 1024, "height": 1024}], "models": ["eyes"]},
        )
    )
    priced = found["work/gpt-4o", "high"]
    assert priced["cost"] == pytest.approx((765 + priced["text_tokens"] + 2 * 300) / 1e6)
    unknown = found["work/own-model", "auto"]
    assert unknown["cost"] is None
    assert unknown["refusal"] == "Nobody knows how it counts pictures."


def test_pictures_as_data_urls_and_twice_the_same(planning: httpx.Client) -> None:
    url = data_url(300, 200)
    answer = planning.post(
        "/v1/plan",
        json={
            "pictures": [{"url": url}, {"width": 10, "height": 10}, {"url": url}],
            "models": ["claude-haiku-4-5"],
        },
    )
    body = answer.json()
    assert [(each["width"], each["height"]) for each in body["pictures"]] == [
        (300, 200),
        (10, 10),
        (300, 200),
    ]
    assert body["repeats"] == [{"picture": 2, "first": 0}]
    row = body["data"][0]
    assert row["image_tokens"] == 2 * 11 * 8 + 1  # Claude counts squares of 28 pixels
    assert row["repeated_cost"] == pytest.approx(11 * 8 * 1e-6)


def test_a_conversation(planning: httpx.Client) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_url(280, 280)}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]},
    ]
    row = planning.post(
        "/v1/plan", json={"messages": messages, "models": ["claude-haiku-4-5"]}
    ).json()["data"][0]
    alone = planning.post(
        "/v1/plan",
        json={
            "pictures": [{"width": 280, "height": 280}],
            "prompt": "What is this?",
            "models": ["claude-haiku-4-5"],
        },
    ).json()["data"][0]
    assert row["image_tokens"] == alone["image_tokens"] == 100
    assert row["text_tokens"] > alone["text_tokens"]


def test_a_budget(planning: httpx.Client) -> None:
    body = {"pictures": [{"width": 4000, "height": 3000}], "models": ["claude-haiku-4-5"]}
    whole = planning.post("/v1/plan", json=body).json()["data"][0]
    fitted = planning.post("/v1/plan", json={**body, "fit": {"tokens": 400}}).json()["data"][0]
    assert fitted["image_tokens"] <= 400 < whole["image_tokens"]
    assert fitted["images"][0]["sent"] != [4000, 3000]
    cheap = planning.post("/v1/plan", json={**body, "fit": {"cost": 0.002}}).json()["data"][0]
    assert cheap["cost"] <= 0.002 < whole["cost"]
    tiny = planning.post("/v1/plan", json={**body, "fit": {"cost": 0.000001}}).json()["data"][0]
    assert "at least" in tiny["refusal"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"pictures": [{"width": 10}]}, "pictures[0]"),
        ({"pictures": [{"url": data_url(2, 2), "width": 10, "height": 10}]}, "pictures[0]"),
        ({"pictures": [{"width": 0, "height": 10}]}, "pictures[0].width"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"prompt": "x", "models": []}, "models"),
        ({"prompt": "x", "fit": {"tokens": 0}}, "fit.tokens"),
    ],
)
def test_what_is_refused(planning: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = planning.post("/v1/plan", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_unknown_model_and_the_nearest(planning: httpx.Client) -> None:
    answer = planning.post("/v1/plan", json={"prompt": "x", "models": ["openai/gpt-5-mni"]})
    assert answer.status_code == 404
    assert "openai/gpt-5-mini" in answer.json()["error"]["message"]
    assert "10.1.2.3" not in answer.text


def test_a_truncated_picture(planning: httpx.Client, tmp_path: Path) -> None:
    answer = planning.post("/v1/plan", json={"pictures": [{"url": data_url(64, 64)[:120]}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("pictures[0].url: ")


def test_a_key_sees_its_own_models_alone(tmp_path: Path) -> None:
    settings = Settings(
        cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", offline=True, generator=""
    )
    with closing(open_database("", settings.data_dir)) as database:
        text, _ = Keys(database).create("narrow", models=("openai/gpt-4*",))
    app = create_app(settings, embedder=ColourEmbedder())
    headers = {"authorization": f"Bearer {text}"}
    with LiveServerNoWait(app) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        assert client.post("/v1/plan", json={"prompt": "x"}).status_code == 401
        client.headers.update(headers)
        found = rows(client.post("/v1/plan", json={"prompt": "x"}))
        assert found
        assert all(model.startswith("openai/gpt-4") for model, _ in found)
        other = client.post("/v1/plan", json={"prompt": "x", "models": ["openai/gpt-5-mini"]})
        assert other.status_code == 403
