"""Records to the terminal: JSON or prose on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from octavo.records import Record

Progress = Callable[[str, int, int], None]


def emit(record: Record, json: bool, prose: Callable[[], None]) -> None:
    """Print the record's JSON and nothing else, or let `prose` print."""
    if json:
        print(record.to_json())
    else:
        prose()


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A bar with an ETA on a terminal; nothing otherwise. Yields report(what, done, total)."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report
