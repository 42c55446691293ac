"""LanceDB without its client for remote catalogues: nothing else may be missing."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from chiasm.retrieval.lance import REMOTE_CLIENT, defer_package

IN_A_FRESH_PROCESS = f"""
import sys
import tempfile
from pathlib import Path

import chiasm.retrieval.lance_store
import lancedb
import pyarrow as pa

client = "{REMOTE_CLIENT}"
assert client in sys.modules, "lancedb no longer has this client: remove what defers it"
assert client + ".api.table_api" not in sys.modules
assert "urllib3" not in sys.modules

with tempfile.TemporaryDirectory() as folder:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0, 0.0, 1.0], pa.float32()), 2)
    table = lancedb.connect(folder).create_table("t", pa.table({{"n": [1, 2], "v": vectors}}))
    table.add(pa.table({{"n": [3], "v": vectors[:1]}}))
    table.delete("n = 1")
    found = table.search([0.9, 0.1]).limit(2).to_arrow()["n"].to_pylist()
    assert found == [3, 2], found
assert client + ".api.table_api" not in sys.modules

from lance_namespace_urllib3_client import ApiClient, TableApi
from lance_namespace_urllib3_client.api.table_api import TableApi as DefinedThere
from lance_namespace_urllib3_client.models.query_table_request import QueryTableRequest
import lance_namespace_urllib3_client as whole
assert TableApi is DefinedThere
assert whole.QueryTableRequest is QueryTableRequest
assert TableApi(ApiClient()).query_table
assert whole.__version__ and "TableApi" in dir(whole)
try:
    whole.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError("a name out of nothing")
"""


def test_the_store_does_without_the_remote_client_until_somebody_wants_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that counts its runs in `runs.txt`, with a submodule that it imports itself."""
    name = f"deferred_{tmp_path.name.replace('-', '_')}"
    home = tmp_path / name
    home.mkdir()
    (home / "__init__.py").write_text(
        "from pathlib import Path\n"
        "with (Path(__file__).parent / 'runs.txt').open('a') as file: file.write('.')\n"
        f"from {name}.part import VALUE\n"
        f"import {name}.late as late\n"
    )
    (home / "part.py").write_text("VALUE = 7\n")
    (home / "late.py").write_text("import time; time.sleep(0.05)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def runs(name: str) -> int:
    written = Path(import_module(name).__path__[0]) / "runs.txt"
    return len(written.read_text()) if written.exists() else 0


def test_a_submodule_does_not_run_the_package(package: str) -> None:
    defer_package(package)
    assert import_module(f"{package}.part").VALUE == 7
    assert runs(package) == 0
    assert import_module(package).VALUE == 7
    assert not hasattr(import_module(package), "nothing")
    assert runs(package) == 1


def test_threads_that_want_it_at_once_get_it_whole(package: str) -> None:
    defer_package(package)
    module = import_module(package)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(module.VALUE)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [7] * 8
    assert runs(package) == 1


def test_a_package_that_fails_says_so_each_time(package: str) -> None:
    defer_package(package)
    module = import_module(package)
    late = Path(module.__path__[0]) / "late.py"
    late.write_text("raise ImportError('no urllib3')\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="no urllib3"):
            module.other  # noqa: B018


def test_what_is_not_there_or_has_run_is_left_alone(package: str) -> None:
    defer_package("chiasm_has_no_such_package")
    assert "chiasm_has_no_such_package" not in sys.modules
    module = import_module(package)
    defer_package(package)
    assert import_module(package) is module
    assert runs(package) == 1
