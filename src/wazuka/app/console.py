"""What the terminal shows while it works: bars with an estimate of the time left, or plain lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOG_SECONDS = 10  # between lines where there is no terminal to draw a bar on
SHOW_AFTER = 1.0  # seconds: what is done sooner needs no bar


class Console:
    """Progress on standard error, so that standard output holds results alone."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._first: dict[str, int] = {}
        self._logged: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()

    def opening(self, done: int, total: int) -> None:
        """Images decoded so far; the callback of `open_images`."""
        self.step("reading images", done, total)

    def step(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` in a stage; the callback of `Watch.on_step`."""
        now = time.monotonic()
        start = self._started.setdefault(stage, now)
        first = self._first.setdefault(stage, done)
        if now - start < SHOW_AFTER:
            return
        if self._terminal:
            self._draw(stage, done, total)
        elif now - self._logged.get(stage, start - LOG_SECONDS + SHOW_AFTER) >= LOG_SECONDS or done == total:
            self._logged[stage] = now
            left = (now - start) / max(done - first, 1) * (total - done)
            words = f"{NAMES.get(stage, stage)}: {done:,} of {total:,}"
            print(words + (f", about {clock(left)} left" if done < total else ", done"), file=sys.stderr, flush=True)

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._progress is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("left"), console=RichConsole(stderr=True), refresh_per_second=4,
            )  # fmt: skip
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(NAMES.get(stage, stage), total=total)
        self._progress.update(self._tasks[stage], completed=done)

    def close(self) -> None:
        """Take the bars down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


NAMES = {"final": "training", "floor-final": "the labels alone"}
NAMES |= {f"fold-{i}": f"cross-validation, part {i + 1}" for i in range(20)}
NAMES |= {f"floor-fold-{i}": f"the labels alone, part {i + 1}" for i in range(20)}


@contextmanager
def showing_progress() -> Iterator[Console]:
    """A Console whose bars are gone when the work is."""
    console = Console()
    try:
        yield console
    finally:
        console.close()


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(title: str, columns: list[str], rows: list[list[str]], numbers: bool = True) -> None:
    """A table on standard output. The first column is left-aligned; the others to the right if they are numbers."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    # Text, because rich reads [words] and :words: in plain strings as its own markup
    drawn = Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for place, column in enumerate(columns):
        drawn.add_column(Text(column), justify="right" if numbers and place > 0 else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    RichConsole(width=None if sys.stdout.isatty() else 110, highlight=False).print(drawn)


def share(value: float) -> str:
    """0.9734 -> "97.3 %"."""
    return f"{100 * value:.1f} %"


def span(low: float, high: float) -> str:
    """0.951, 0.982 -> "95.1 - 98.2 %"."""
    return f"{100 * low:.1f} - {100 * high:.1f} %"
