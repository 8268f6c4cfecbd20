"""How a recipe writes down what it measured: the number, its spread, and all that is needed to get it again."""

import datetime
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import wazuka
from wazuka.atomic import write_atomic
from wazuka.evaluation import summarize

ROOT = Path(__file__).resolve().parents[1]


def circumstances() -> dict[str, Any]:
    """Command, commit, device, versions and date of this run."""
    command = [Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]
    return {
        "command": shlex.join(["python", *command]),
        "commit": _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "--", "src") else ""),
        "device": device(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "wazuka": wazuka.__version__,
        "date": datetime.date.today().isoformat(),
    }


def summary(values: list[float]) -> dict[str, Any]:
    """Median, mean with its interval, spread, worst and the values themselves, of one number over seeds."""
    return summarize(values).to_dict()


def record(path: str | Path, **fields: Any) -> None:
    """Write `fields` with the circumstances as JSON, in one piece."""
    write_atomic(path, json.dumps({**fields, **circumstances()}, indent=1, allow_nan=False) + "\n")


def device() -> str:
    """The GPU's name, or the processor's and how many of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{lines[0].split(':', 1)[1].strip()}, {len(lines)} cores" if lines else name
    return name


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # a machine without git
        return "unknown"
    return done.stdout.strip()
