"""Answers as tables for other programs."""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wazuka.data import Skipped

if TYPE_CHECKING:
    from wazuka.app.model import Prediction


def predictions_csv(answers: "Sequence[Prediction]", skipped: Sequence[Skipped]) -> str:
    """Columns file,label,probability,runner_up,runner_up_probability,note; unreadable files stand last."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", "label", "probability", "runner_up", "runner_up_probability", "note"])
    for one in answers:
        writer.writerow(
            [one.file, one.label, f"{one.probability:.4f}", one.runner_up, f"{one.runner_up_probability:.4f}", ""]
        )
    for name, reason in skipped:
        writer.writerow([name, "", "", "", "", reason])
    return buffer.getvalue()
