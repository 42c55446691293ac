"""The networks of these tests are tiny."""

from __future__ import annotations

from tests.one_thread import _one_thread  # noqa: F401 -- a fixture of every module here
