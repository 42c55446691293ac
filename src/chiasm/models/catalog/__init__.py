"""Weights by name: a catalogue of entries, their sources, their digests, and a cache of them."""

from __future__ import annotations

from chiasm.models.catalog.adding import add_entry, check_name
from chiasm.models.catalog.entry import Entry, File, Source, entries, find
from chiasm.models.catalog.hub import fetch_hf
from chiasm.models.catalog.progress import Progress
from chiasm.models.catalog.pulling import ensure, local_folder, pull

__all__ = [
    "Entry",
    "File",
    "Progress",
    "Source",
    "add_entry",
    "check_name",
    "ensure",
    "entries",
    "fetch_hf",
    "find",
    "local_folder",
    "pull",
]
