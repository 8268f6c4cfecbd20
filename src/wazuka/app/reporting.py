"""From a run's files to its report, so that `wazuka report RUN` can draw it again at any time."""

import shlex
from pathlib import Path
from typing import Any

from wazuka.app.floor import sentence, uneven
from wazuka.app.gallery import load_gallery
from wazuka.app.insight import worth_telling
from wazuka.app.report import Baseline, Measured, ReportData, render_report
from wazuka.app.runs import Run
from wazuka.atomic import write_atomic
from wazuka.evaluation import Estimate, Evaluation, wilson

FEW_TEST_IMAGES = 100


def write_report(run: Run) -> Path:
    """Write report.html from what the run holds; returns its path. Raises UserError when the run is not finished."""
    write_atomic(run.report, render_report(report_of(run)))
    return run.report


def report_of(run: Run) -> ReportData:
    """What the page says, gathered from run.json, metrics.json, metrics.jsonl and gallery.parquet."""
    facts, metrics = run.read("run.json"), run.read("metrics.json")
    saved = metrics.get("evaluation")
    evaluation = Evaluation.from_dict(saved) if saved else None
    measured: Measured = "none"
    if evaluation is not None:
        measured = "test" if facts["measured"] == "test" else "cross-validation"
    gallery = load_gallery(run.folder / "gallery.parquet")
    shown = (
        "data", "method", "backbone", "n_labeled", "n_unlabeled", "labels_per_class", "seed", "steps", "precision",
        "device", "threads", "processes", "fingerprint", "wazuka", "torch", "python", "started", "settings", "plan",
    )  # fmt: skip
    return ReportData(
        title=facts["data"],
        run={name: _short(facts[name]) for name in shown if name in facts}
        | {k: metrics[k] for k in ("seconds", "images_per_second")},
        evaluation=evaluation,
        measured=measured,
        protocol=facts["protocol"],
        curves=run.metrics(),
        baselines=[
            Baseline(row["name"], wilson(row["correct"], row["n"]), row.get("seconds"), row.get("note", ""))
            for row in metrics.get("baselines", ())
        ],
        surest=gallery["surest"],
        unsure=gallery["unsure"],
        mistakes=gallery["mistakes"],
        looks=gallery["looks"],
        odd=gallery["odd"],
        shortcuts=worth_telling(metrics.get("shortcuts", [])),
        unlabeled=_helped(metrics),
        expected=Estimate.from_dict(metrics["estimate"]) if "estimate" in metrics else None,
        trust=facts.get("trust", {}).get("sets", ""),
        skipped=[tuple(row) for row in facts["skipped"]],
        duplicates=facts["duplicates"],
        warnings=[*facts["notes"], *warnings_for(facts, metrics)],
        reproduce=facts["command"],
        predict=shlex.join(["wazuka", "predict", str(run.folder), "PHOTOS"]),
        created=facts["started"][:10],
    )


def _helped(metrics: dict[str, Any]) -> str:
    if "unlabeled" not in metrics:
        return ""
    return sentence(metrics["unlabeled"], metrics.get("n_learned_from", metrics["n_unlabeled"]))


def warnings_for(facts: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """What a reader should know before trusting the number."""
    found = []
    if metrics["n_test"] == 0:
        found.append("The accuracy was not measured: there were no images to measure it on.")
    elif metrics["n_test"] < FEW_TEST_IMAGES:
        found.append(
            f"The accuracy rests on only {metrics['n_test']} images, so its interval is wide: "
            "every further labeled image narrows it."
        )
    others = metrics.get("others", {})
    if others.get("at_least", 0) > 0:
        found.append(f"{others['told']} {others['done']}")
    counts = facts["labels_per_class"]
    if min(counts) < 4:
        few = [name for name, count in zip(facts["classes"], counts, strict=True) if count < 4]
        found.append(f"Fewer than 4 labels: {', '.join(few[:5])}{' and others' if len(few) > 5 else ''}.")
    if max(counts) > 5 * min(counts):
        found.append(
            f"The labels are uneven ({min(counts)} to {max(counts)} a class): "
            "probabilities lean to the frequent classes."
        )
    shares = metrics.get("guessed_shares")
    if shares and (told := uneven(shares, counts, facts["classes"])):
        found.append(told)
    return found


def _short(value: Any) -> Any:
    """Long lists in one line."""
    return " ".join(map(str, value)) if isinstance(value, list) else value
