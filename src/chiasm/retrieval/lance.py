"""LanceDB, imported without the parts that a table on a local disk never uses.

`import lancedb` also imports a generated client for remote catalogues of tables: nine modules,
40,000 lines, whose every method compiles a validator. That is half of LanceDB's own start, and only
the names of the client's request types are needed. Its package is therefore put in place unrun, and
runs as soon as somebody asks it for something that is not a submodule.

Lance also writes its warnings to standard error by itself, one for each empty partition of an index
among them, and takes its orders about that from the environment while it is imported.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

REMOTE_CLIENT = "lance_namespace_urllib3_client"

_LOG_LEVELS = "LANCEDB_LOG"
# Pictures that are alike leave partitions empty. Whether an index is good enough to be used is
# found by asking it (see `lance_index`), not from a warning.
_QUIET_INDEX = "warn,lance::index::vector::builder=error,lance_index::vector::kmeans=error"

_running = threading.RLock()


class _Deferred(ModuleType):
    """A package that runs when a name is looked up in it that is not there yet.

    `importlib.util.LazyLoader` will not do: its module runs at any look-up, and importing a
    submodule looks up `__path__`.
    """

    __unrun__: bool

    def __getattr__(self, name: str) -> Any:
        with _running:
            # Marked first: what runs now may look for names that it has not made yet.
            if self.__dict__.pop("__unrun__", False):
                try:
                    assert self.__spec__ is not None
                    assert self.__spec__.loader is not None
                    self.__spec__.loader.exec_module(self)
                except BaseException:
                    self.__unrun__ = True
                    raise
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def defer_package(name: str) -> None:
    """Put a package in place that runs when it is used; its submodules import as ever.

    Nothing happens where there is none of that name, or where it has been imported already.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return
    package = module_from_spec(spec)
    package.__class__ = _Deferred
    package.__dict__["__unrun__"] = True
    sys.modules[name] = package


@contextmanager
def _default_log_levels(levels: str) -> Iterator[None]:
    """Levels of Lance's own log where the user's environment names none."""
    given = _LOG_LEVELS in os.environ
    os.environ.setdefault(_LOG_LEVELS, levels)
    try:
        yield
    finally:
        if not given:
            del os.environ[_LOG_LEVELS]


with _default_log_levels(_QUIET_INDEX):
    defer_package(REMOTE_CLIENT)
    import lancedb
    from lancedb.index import IvfRq

__all__ = ["IvfRq", "lancedb"]
