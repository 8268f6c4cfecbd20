"""A run on disk: `run.json`, `metrics.jsonl`, `metrics.json`, `model.safetensors`, `predictions.parquet`, `report.html`
and, until it is done, `resume/`. Every file is replaced as a whole, and opening a stranger's run executes nothing.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wazuka.atomic import write_atomic
from wazuka.errors import UserError

FORMAT = 1
FILES = (
    *("run.json", "draw.json", "metrics.jsonl", "metrics.json", "model.safetensors"),
    *("predictions.parquet", "gallery.parquet", "report.html"),
)
_HALF_WRITTEN = tuple(f".{name}." for name in FILES)  # how `wazuka.atomic` names what is not yet in its place


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.parquet"

    def checkpoint(self, stage: str) -> Path:
        """Where the training of a stage ("final", "fold-0", ...) is saved while it goes on."""
        return self.folder / "resume" / f"{stage}.safetensors"

    def write(self, name: str, content: Any) -> None:
        """Write `content` as JSON (not-a-number is refused, for no other program could read it)."""
        write_atomic(self.folder / name, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def read(self, name: str) -> Any:
        """The content of a JSON file. Raises UserError when it is not there or damaged."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.folder} is not a finished run: {name} is missing there.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({error}).") from error

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to the curves."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The curves; a last line cut off by a crash is left out."""
        path = self.folder / "metrics.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def forget_metrics_after(self, stage: str, step: int) -> None:
        """Drop the rows that a resumed run will write again."""
        rows = [row for row in self.metrics() if row["stage"] != stage or row["step"] <= step]
        write_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def tidy(self) -> None:
        """Take away what a finished run does not need: resume/, and what a kill left half-written."""
        shutil.rmtree(self.folder / "resume", ignore_errors=True)
        for entry in self.folder.iterdir():
            if entry.name.startswith(_HALF_WRITTEN):
                entry.unlink(missing_ok=True)


def open_run(folder: str | Path) -> Run:
    """A run that is there, of a format this version reads. Raises UserError."""
    run = Run(Path(folder).expanduser())
    if not run.folder.is_dir():
        raise UserError(f"There is no run at {folder}; `wazuka fit PHOTOS --out {folder}` makes one.")
    facts = run.read("run.json")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        version = facts.get("wazuka", "unknown") if isinstance(facts, dict) else "unknown"
        raise UserError(f"{folder} was written by Wazuka {version}, in a form this version can't read; fit it again.")
    return run


def require_free(folder: str | Path) -> Path:
    """The path of a folder that a run may take. Raises UserError when something is there already."""
    path = Path(folder).expanduser()
    if (path / "run.json").exists():
        raise UserError(f"{path} holds a run already; give another --out, or --resume to go on with it.")
    if path.exists() and (not path.is_dir() or any(not _is_left_over(entry) for entry in path.iterdir())):
        raise UserError(f"{path} is not empty; give --out a new folder.")
    return path


def new_run(folder: str | Path) -> Run:
    """An empty folder for a run. Raises UserError when something is there already."""
    path = require_free(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "metrics.jsonl", "")
    except OSError as error:
        raise UserError(f"{path} can't be written to ({error.strerror}); give another --out.") from error
    return Run(path)


def _is_left_over(entry: Path) -> bool:
    """Of a run that was killed before it began: it may begin anew."""
    half_written = entry.name.startswith(_HALF_WRITTEN)
    return half_written or entry.name == "draw.json" or (entry.name == "metrics.jsonl" and entry.stat().st_size == 0)
