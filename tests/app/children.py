"""Work in processes of their own, which may be killed. A server that has imported everything forks each at once."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.app.stripes import striped_file

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["wazuka.app.cli", "wazuka.app.job", "matplotlib.figure", "pyarrow.parquet", "lightning_fabric",
     "sklearn.model_selection"]
)
QUICK = {"settings": {"labeled_batch": "4", "unlabeled_ratio": "1"}, "precision": "float32"}
QUICK_WORDS = ("--set", "labeled_batch=4", "--set", "unlabeled_ratio=1", "--precision", "float32")
At = tuple[str, int]  # stage, step


def alone(work: Callable[..., None], *arguments: Any) -> int:
    """Call `work` in another process; its exit status, or minus the signal that ended it."""
    child = _context.Process(target=work, args=arguments)
    child.start()
    child.join(200)
    if child.exitcode is None:
        child.kill()
        raise AssertionError("the child process did not end")
    return child.exitcode


def cross_validated(folder: Path) -> str:
    """The path of a file of 24 images with 3 labels a class and no test images."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(striped_file(folder, train=24, test=0, per_class=3))


def fit_killed_at_step(at: At, save_seconds: float, arguments: Mapping[str, Any]) -> None:
    """`wazuka.fit`, killed after a step."""
    import wazuka
    from wazuka.app.learn import Watch

    def on_step(stage: str, step: int, total: int) -> None:
        if (stage, step) == at:
            _die()

    wazuka.fit(**arguments, watch=Watch(on_step, save_seconds=save_seconds))


def fit_killed_at_write(number: int, arguments: Mapping[str, Any]) -> None:
    """`wazuka.fit` with a checkpoint after each step, killed when file `number` is written but not yet in its place."""
    import wazuka
    from wazuka.app.learn import Watch

    put_in_place, count = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            _die()
        put_in_place(source, target)

    os.replace = replace  # type: ignore[assignment]
    wazuka.fit(**arguments, watch=Watch(save_seconds=0))


def fit_killed_at_the_end(arguments: Mapping[str, Any]) -> None:
    """`wazuka.fit`, killed when it is done and about to remove what it needed on the way."""
    import wazuka

    shutil.rmtree = lambda *rest, **options: _die()  # type: ignore[assignment]
    wazuka.fit(**arguments)


def command_signaled(words: list[str], signals: Mapping[At, list[int]], folder: Path, said: Path) -> None:
    """`wazuka WORDS` in a folder, which gets the signals after the steps; what it prints goes to the file `said`."""
    from wazuka.app.cli import main
    from wazuka.app.console import Console

    def step(console: Console, stage: str, done: int, total: int) -> None:
        for number in signals.get((stage, done), ()):
            os.kill(os.getpid(), number)

    Console.step = step  # type: ignore[method-assign]
    os.chdir(folder)
    with open(said, "w", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        main(words)


def command_unread(words: list[str], folder: Path, complaints: Path) -> None:
    """`wazuka WORDS` whose reader has gone; what it complains about goes to the file."""
    from wazuka.app.cli import main

    os.chdir(folder)
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    with open(2, "w", closefd=False) as sys.stderr, open(1, "w", closefd=False) as sys.stdout:
        main(words)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
