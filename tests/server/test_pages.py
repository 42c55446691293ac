"""The console, the API's page, and the document behind it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel

from chiasm.server import schemas
from chiasm.server.static import CONSOLE, matches
from tests.server.conftest import LiveServer, add, picture

METHODS = {"get", "post", "patch", "delete"}


def test_the_console_and_every_file_it_names(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/index.html").content == page.content
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for name in re.findall(r'(?:href|src)="([^"#]+)"', page.text):
        assert client.get(f"/{name.lstrip('/')}").status_code == 200, name


@pytest.mark.parametrize(
    ("suffix", "media_type"),
    [
        (".js", "text/javascript; charset=utf-8"),
        (".css", "text/css; charset=utf-8"),
        (".svg", "image/svg+xml"),
        (".woff2", "font/woff2"),
    ],
)
def test_types_of_files(client: httpx.Client, suffix: str, media_type: str) -> None:
    path = next(CONSOLE.rglob(f"*{suffix}")).relative_to(CONSOLE).as_posix()
    response = client.get(f"/{path}")
    assert response.headers["content-type"] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    head = client.head(f"/{path}")
    assert head.status_code == 200
    assert head.headers["content-length"] == response.headers["content-length"]
    assert head.content == b""


def test_an_unchanged_file_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_if_none_match() -> None:
    assert matches('"a"', '"a"')
    assert matches('W/"a"', '"a"')
    assert matches('"b", "a"', '"a"')
    assert matches("*", '"a"')
    assert not matches("", '"a"')
    assert not matches('"ab"', '"a"')


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/..%2fapp.py",
        "/%2e%2e/app.py",
        "/..%5capp.py",
        "/docs/../../app.py",
        "/docs/..%2f..%2fapp.py",
        "//etc/passwd",
        "/vendor",
        "/vendor/",
        "/__init__.py",
        "/docs/README.md%00.js",
    ],
)
def test_no_path_leads_out(client: httpx.Client, path: str) -> None:
    connection = httpx.HTTPTransport()
    request = client.build_request("GET", client.base_url)
    request.url = request.url.copy_with(raw_path=path.encode())
    response = connection.handle_request(request)
    response.read()
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_the_page_of_the_api_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert client.get("/docs/").content == page.content
    names = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(names) >= 4
    for name in names:
        assert name.startswith("/")
        assert client.get(name).status_code == 200, name
    assert "'self'" in page.headers["content-security-policy"]
    assert "http" not in client.get("/docs/page.js").text
    assert b"Apache License" in client.get("/docs/LICENSE").content
    assert client.get("/redoc").status_code == 404


@pytest.fixture(scope="module")
def document(server: LiveServer) -> dict[str, Any]:
    content: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return content


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_has_every_operation(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    found = {operation["operationId"] for _, _, operation in operations(document)}
    assert found == {
        "health", "ready", "list_models", "retrieve_model", "create_embedding",
        "list_collections", "create_collection", "retrieve_collection", "delete_collection",
        "add_items", "list_items", "retrieve_item", "update_item", "delete_item",
        "retrieve_thumbnail", "retrieve_image", "search_collection", "create_chat_completion",
        "create_response", "count_input_tokens", "create_message", "count_message_tokens",
        "begin_session", "end_session", "create_plan",
    }  # fmt: skip


def test_the_document_is_whole(document: dict[str, Any]) -> None:
    """Every reference leads somewhere, every schema is used, every path parameter declared."""
    schemas = document["components"]["schemas"]
    used: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                name = value["$ref"].removeprefix("#/components/schemas/")
                assert name in schemas, value["$ref"]
                used.add(name)
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(document)
    assert used == set(schemas)
    for path, method, operation in operations(document):
        assert method in METHODS
        named = set(re.findall(r"{(\w+)", path))
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert named == declared, path
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]


def test_the_document_is_valid_by_its_own_standard(document: dict[str, Any]) -> None:
    parsed = OpenAPI.model_validate(document)
    assert parsed.paths is not None
    assert set(parsed.paths) == set(document["paths"])
    schema = document["components"]["schemas"]["EmbeddingRequest"]
    assert schema["required"] == ["input"]
    assert schema["additionalProperties"] is False
    add = document["paths"]["/v1/collections/{name}/items"]["post"]["requestBody"]["content"]
    assert set(add) == {"application/json", "multipart/form-data"}


def test_every_operation_lists_its_errors_in_our_shape(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        responses = operation["responses"]
        assert "422" not in responses, path
        assert {"400", "403", "500", "503"} <= set(responses), path
        for status, response in responses.items():
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]["$ref"]
                ours = ("MessagesError",) if "/messages" in path else ("ErrorResponse", "Unready")
                assert schema.rpartition("/")[2] in ours, path
        if "{name}" in path:
            assert "404" in responses, path


ASKING = ("/v1/chat/completions", "/v1/responses", "/v1/messages")


def test_examples_can_be_sent_as_they_are(
    client: httpx.Client, document: dict[str, Any], collection: str
) -> None:
    (added,) = add(client, collection, picture("blue"))
    paths = {"name": collection.rpartition("/")[2], "id": added["id"]}
    tried = 0
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None or path.startswith(ASKING):  # sent in test_chat.py, test_shapes.py
            continue
        schema = schemas_of(document, content["schema"])
        examples = schema.get("examples") or [
            {name: field["examples"][0] for name, field in schema["properties"].items()}
        ]
        for body in examples:
            response = client.request(method.upper(), path.format(**paths), json=body)
            assert response.status_code in (200, 201), response.text
            assert '"failed"' not in response.text
            tried += 1
    assert tried == 6
    client.delete("/v1/collections/holiday-photos")


def schemas_of(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema["$ref"].rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


def test_answers_are_as_the_document_says(
    client: httpx.Client, document: dict[str, Any], collection: str
) -> None:
    (added,) = add(client, collection, picture())
    item = f"{collection}/items/{added['id']}"
    for method, path, url, body in (
        ("get", "/v1/models", "/v1/models", None),
        ("get", "/v1/collections", "/v1/collections", None),
        ("get", "/v1/collections/{name}", collection, None),
        ("get", "/v1/collections/{name}/items", f"{collection}/items", None),
        ("get", "/v1/collections/{name}/items/{id}", item, None),
        ("post", "/v1/collections/{name}/search", f"{collection}/search", {"text": "red"}),
        ("post", "/v1/embeddings", "/v1/embeddings", {"input": "red"}),
        ("post", "/v1/embeddings", "/v1/embeddings", {"input": ""}),
        ("get", "/healthz", "/healthz", None),
        ("get", "/readyz", "/readyz", None),
    ):
        response = client.request(method.upper(), url, json=body)
        described = document["paths"][path][method]["responses"][str(response.status_code)]
        schema = described["content"]["application/json"]["schema"]
        # Models have a shape for each vendor's clients; this one comes first.
        name = schema.get("anyOf", [schema])[0]["$ref"].rpartition("/")[2]
        model: type[BaseModel] = getattr(schemas, name)
        parsed = model.model_validate_json(response.content, extra="forbid", strict=True)
        assert parsed.model_dump(mode="json", exclude_unset=True) == response.json()
