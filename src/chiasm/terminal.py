"""What the command line shows a person: progress, tables, errors. Only `cli` imports this.

Everything a program would read goes to standard output as JSON; everything else (progress,
warnings, errors) goes to standard error, so that a pipe stays clean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from chiasm.errors import ChiasmError

out = Console()
err = Console(stderr=True)

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


def print_json(value: Any) -> None:
    """One JSON document on standard output, as it is: no colour, no wrapping."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_error(error: ChiasmError, *, as_json: bool) -> None:
    """What happened, to what, and what to do."""
    if as_json:
        body = {
            "message": str(error),
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
        print_json({"error": body})
        return
    err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.hint:
        err.print(f"       {escape(error.hint)}", highlight=False, soft_wrap=True)


def print_rows(
    title: str | None,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[str] = (),
    foldable: Sequence[str] = (),
) -> None:
    """A table.

    numeric: the columns to set flush right. foldable: those that may be broken over several lines
    where the terminal is narrow; all others stay whole, so that they can be copied.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        justify: JustifyMethod = "right" if column in numeric else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in foldable)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def print_checks(checks: Sequence[tuple[str, str, str, str | None]]) -> None:
    """`doctor`'s findings: (name, status, detail, the command that mends it)."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, status, detail, fix in checks:
        mend = f"\n[cyan]{escape(fix)}[/]" if fix and status != "ok" else ""
        table.add_row(_MARKS[status], escape(name), escape(detail) + mend)
    out.print(table)


class DownloadProgress:
    """A progress bar a file, for `chiasm.models.catalog`'s callbacks."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, label: str, total: int | None) -> None:
        """A new file of `total` bytes begins."""
        self._task = self._bars.add_task(label, total=total)

    def advance(self, n: int) -> None:
        """`n` more bytes are there."""
        if self._task is not None:
            self._bars.advance(self._task, n)

    def finish(self) -> None:
        """The file is whole."""
        if self._task is not None:
            total = self._bars.tasks[self._task].total
            self._bars.update(self._task, completed=total or 1, total=total or 1)
            self._task = None


@contextmanager
def downloads() -> Iterator[DownloadProgress]:
    """Progress bars for fetching weights, gone again when nothing had to be fetched."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bars:
        yield DownloadProgress(bars)


@contextmanager
def picture_progress(label: str) -> Iterator[tuple[Progress, TaskID]]:
    """One bar that counts pictures, with pictures a second and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if not speed else f"{speed:,.1f} images/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, speed_estimate_period=10) as bars:
        yield bars, bars.add_task(label, total=None)


@contextmanager
def training_progress(
    steps: int, *, shown: bool
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar over the updates of a run, with its newest figures. Nothing where not `shown`."""
    if not shown:
        yield lambda step, report: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, speed_estimate_period=600) as bars:
        bar = bars.add_task("", total=steps, figures="")
        newest: dict[str, float] = {}

        def watch(step: int, report: Mapping[str, float]) -> None:
            newest.update(report)
            if not err.is_terminal:  # a log: one line a report
                err.print(f"{step}/{steps}  {_figures(report)}", highlight=False, soft_wrap=True)
            bars.update(bar, completed=step, figures=_figures(newest, short=True))

        yield watch


_SHORT = ("loss", "scale", "samples_per_second", "zero_shot_accuracy", "text_to_image_recall@1")


def _figures(report: Mapping[str, float], *, short: bool = False) -> str:
    names = [name for name in _SHORT if name in report] if short else list(report)
    return "  ".join(f"{name} {report[name]:.4g}" for name in names)
