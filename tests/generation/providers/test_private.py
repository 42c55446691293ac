"""A provider's words for callers: without this server's key and without its addresses."""

from __future__ import annotations

import pytest

from chiasm.errors import InvalidRequest
from chiasm.generation.providers.private import Private
from chiasm.generation.providers.refusals import shown

KEY = "sk-proj-Zq81mNw0Lk7yTr5eVb3c"
PRIVATE = Private({"Authorization": f"Bearer {KEY}"}, ["https://models.example.net:8443/v1"])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"Incorrect API key provided: {KEY}.", "Incorrect API key provided: [removed]."),
        ("Key sk-proj-****************Vb3c is wrong", "Key [removed] is wrong"),
        ("Key sk-…Vb3c is wrong", "Key [removed] is wrong"),
        ("Key sk-...Vb3c.", "Key [removed]"),
        ("Key ****Vb3c is wrong", "Key [removed] is wrong"),
        ("Key sk-proj-Zq81mN*** is wrong", "Key [removed] is wrong"),
        ("It begins with sk-proj-Zq81mNw0.", "It begins with [removed]"),
        ("See https://models.example.net:8443/v1/logs?id=3 now", "See [removed] now"),
        ("Upstream models.example.net:8443 says no", "Upstream [removed] says no"),
        ("Upstream MODELS.example.net, no", "Upstream [removed], no"),
        ("Asked http://10.0.0.5/v1 in vain", "Asked [removed] in vain"),
        ("Asked 192.168.3.4:8000 in vain", "Asked [removed] in vain"),
        ("Asked [::1]:8000 in vain", "Asked [removed] in vain"),
    ],
)
def test_what_is_taken_out(said: str, shown: str) -> None:
    assert PRIVATE.without(said) == shown


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens must be at most 4096... see https://platform.openai.com/docs/errors.",
        "The picture at https://example.com/cat.png is broken: 3 of 10 bytes…",
        "Version 1.2.3.4567 of the schema at 8.8.8.8 has no field sk-learn",
        "Use **stars** or ... nothing; example.net is another.",
    ],
)
def test_what_stays(said: str) -> None:
    assert PRIVATE.without(said) == said


@pytest.mark.parametrize(
    ("headers", "key"),
    [({"x-api-key": "ant-0123456789"}, "ant-0123456789"),
     ({"X-Goog-Api-Key": "AIza/0+123456"}, "AIza%2F0%2B123456")],
)  # fmt: skip
def test_every_vendors_header(headers: dict[str, str], key: str) -> None:
    assert Private(headers, []).without(f"Bad {key} here") == "Bad [removed] here"


def test_a_host_that_is_a_word() -> None:
    private = Private({}, ["http://models:8000/v1"])
    said = "No models at models:8000 or http://models/v1"
    assert private.without(said) == "No models at [removed] or [removed]"


def test_an_error_is_changed_as_a_whole() -> None:
    error = InvalidRequest(f"No: {KEY}", param=f"at {KEY}")
    PRIVATE.hide(error)
    assert KEY not in f"{error}{error!r}{error.param}"


def test_what_is_cut_short_does_not_end_in_half_an_address() -> None:
    words = "no " * 95
    assert shown(f"{words}http://models.example.net/v1 and on") == f"{words}…"
    assert shown("x" * 400) == "x" * 300 + "…"
