"""`wazuka compare`: methods on the same images, labels, network and budget; intervals, and a plot."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wazuka.app.backbones import Extractor, backbone_named
from wazuka.app.catalog import entry, make_settings
from wazuka.app.console import Console, clock, share, showing_progress, span, table
from wazuka.app.job import Choices, Job, fingerprint
from wazuka.app.learn import Interrupted, Watch, stopping_on_signals
from wazuka.app.prepared import prepare
from wazuka.app.runs import Run
from wazuka.app.transfer import COMMON_SIDE, SCRATCH_SIDE
from wazuka.atomic import write_atomic
from wazuka.contract import Head
from wazuka.data import Dataset, open_images, require_labels
from wazuka.errors import UserError
from wazuka.evaluation import Summary, paired_t, summarize, wilson
from wazuka.training.processes import launch


def compare(
    source: str,
    methods: Sequence[str],
    labels: int,
    seeds: int,
    steps: int | None,
    out: Path | None,
    called: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train every method on every seed, print the table, write results.json and accuracy.svg; returns the results.

    A method's name may carry settings: "fixmatch:alignment=true" or "supervised:view=weak". What a former call with
    the same arguments finished is taken from results.json. `called`: other names for the table and the plot.
    """
    if not methods:
        raise UserError("--methods needs at least one name; `wazuka methods` lists them.")
    if seeds < 1 or labels < 1:
        raise UserError(f"--labels and --seeds must be positive, got {labels} and {seeds}.")
    wanted = {name: _parted(name) for name in methods}
    folder = out or Path("runs") / f"compare-{Path(source).name}"
    with showing_progress() as console, stopping_on_signals() as stop:
        on_features = _on_features([method for method, _ in wanted.values()])
        side, shaped = (COMMON_SIDE, "squash") if on_features else (SCRATCH_SIDE, "crop")
        data = open_images(source, progress=console.opening, common=side, fit=shaped)
        require_labels(data)
        per_class, rest = divmod(labels, data.train.n_classes)
        if rest or per_class == 0:
            raise UserError(
                f"{labels} labels can't be shared evenly by the {data.train.n_classes} classes of {data.name}; "
                f"take a multiple of {data.train.n_classes}."
            )
        asked = {"data": source, "fingerprint": fingerprint(data), "labels": labels, "steps": steps}
        results = _before(folder, asked)
        fabric = launch()
        extractors = (Extractor(backbone_named("auto"), fabric.device),) if on_features else None
        for seed in range(seeds):
            for name, (method, settings) in wanted.items():
                if any(row["method"] == name and row["seed"] == seed for row in results["runs"]):
                    continue
                if stop():
                    raise Interrupted(_command(source, methods, labels, seeds, steps, folder))
                watch = Watch(_named(console, f"{name}, seed {seed}"), stop)
                try:
                    row = _one(data, name, method, settings, per_class, seed, steps, fabric, folder, watch, extractors)
                except Interrupted:
                    raise Interrupted(_command(source, methods, labels, seeds, steps, folder)) from None
                results["runs"].append(row)
                write_atomic(folder / "results.json", json.dumps(results, indent=1))
    return _report(results, list(wanted), seeds, folder, called or {})


def _one(
    data: Dataset, name: str, method: str, settings: dict[str, str], per_class: int, seed: int, steps: int | None,
    fabric: Any, folder: Path, watch: Watch,
    extractors: tuple[Extractor, ...] | None,
) -> dict[str, Any]:  # fmt: skip
    prepared = prepare(data, per_class, seed, False, None)
    if prepared.test is None:
        raise UserError(f"{data.name} has no test images, and too few labeled ones to hold some out for a comparison.")
    choices = Choices(
        source=data.name, labels_per_class=per_class, seed=seed, method=method, settings=settings, steps=steps
    )
    job = Job(choices, method, choices.fit, prepared, fabric, Run(folder), watch, extractors=extractors)
    guesses, seconds = job.rival(method, settings)
    correct, n = int((guesses == prepared.test.labels).sum()), len(prepared.test)
    return {"method": name, "seed": seed, "correct": correct, "n": n, "seconds": round(seconds, 2)}


def _on_features(methods: Sequence[str]) -> bool:
    """Whether the methods are heads. Raises UserError where some are and some learn from scratch."""
    heads = [method for method in methods if issubclass(entry(method).kind, Head)]
    if heads and len(heads) < len(methods):
        other = next(method for method in methods if method not in heads)
        raise UserError(
            f"{heads[0]} learns on a pre-trained network's features and {other} from scratch, which is no fair "
            "comparison: compare them apart."
        )
    return bool(heads)


def _named(console: Console, name: str) -> Callable[[str, int, int], None]:
    """The console's step under another name than the stage's."""
    return lambda stage, done, total: console.step(name, done, total)


def _report(
    results: dict[str, Any], methods: list[str], seeds: int, folder: Path, called: Mapping[str, str]
) -> dict[str, Any]:
    summaries: dict[str, Summary] = {}
    named = {name: called.get(name, name) for name in methods}
    rows = []
    for name in methods:
        own = [run for run in results["runs"] if run["method"] == name and run["seed"] < seeds]
        runs = sorted(own, key=lambda run: run["seed"])
        values = [run["correct"] / run["n"] for run in runs]
        summaries[name] = summary = summarize(values)
        interval = summary.mean
        if not math.isfinite(interval.low):  # a single seed: what its test images say
            interval = wilson(runs[0]["correct"], runs[0]["n"])
        against = ""
        if name != methods[0] and len(values) > 1:
            difference = paired_t(values, summaries[methods[0]].values).difference
            against = f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        rows.append(
            [named[name], share(summary.median), share(summary.mean.value), span(interval.low, interval.high),
             share(summary.worst), against, clock(seconds)]
        )  # fmt: skip
    n = results["runs"][0]["n"]
    title = f"{results['data']}, {results['labels']} labels, {seeds} seeds, {n:,} test images"
    columns = ["method", "median", "mean", "95 % interval", "worst", f"minus {named[methods[0]]}, points", "each"]
    table(title, columns, rows)
    results["summary"] = {name: summary.to_dict() for name, summary in summaries.items()}
    write_atomic(folder / "results.json", json.dumps(results, indent=1))
    write_atomic(folder / "accuracy.svg", _plot(title, {named[name]: summary for name, summary in summaries.items()}))
    print(f"\nPlot: {folder / 'accuracy.svg'}\nNumbers: {folder / 'results.json'}")
    return results


def _plot(title: str, summaries: dict[str, Summary]) -> str:
    """One line a method: a dot for each seed, and the mean with its interval."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.5 * len(summaries)), layout="constrained")
    axes = figure.subplots()
    for place, summary in enumerate(summaries.values()):
        axes.plot([100 * v for v in summary.values], [place] * len(summary.values), "o", color="#9aa7b8", ms=5)
        mean = summary.mean
        if math.isfinite(mean.low):
            axes.plot([100 * mean.low, 100 * min(mean.high, 1)], [place, place], color="#1f5fbf", lw=2)
        axes.plot([100 * mean.value], [place], "D", color="#1f5fbf", ms=6)
    axes.set_yticks(range(len(summaries)), list(summaries))
    axes.set_ylim(len(summaries) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, % (dots: seeds; diamond: mean; line: its 95 % interval)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _before(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What a former call finished. Raises UserError when the folder holds another comparison."""
    path = folder / "results.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # now, and not after the first training
    except OSError as error:
        raise UserError(f"{folder} can't be written to ({error.strerror}); give another --out.") from error
    if not path.exists():
        return {**asked, "runs": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        same = all(results[name] == value for name, value in asked.items()) and isinstance(results["runs"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}); give another --out.") from error
    if not same:
        raise UserError(f"{path} holds another comparison; give another --out.")
    return results


def _parted(name: str) -> tuple[str, dict[str, str]]:
    """"fixmatch:alignment=true:threshold=0.9" -> its name and settings; checked."""
    method, *settings = name.split(":")
    item = entry(method)
    given = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    if len(given) != len(settings):
        raise UserError(f"{name} should read like fixmatch:alignment=true.")
    make_settings(item, given)
    return method, given


def _command(source: str, methods: Sequence[str], labels: int, seeds: int, steps: int | None, folder: Path) -> str:
    words = ["wazuka", "compare", source, "--methods", ",".join(methods), "--labels", str(labels)]
    words += ["--seeds", str(seeds)]
    return shlex.join([*words, *(["--steps", str(steps)] if steps else []), "--out", str(folder)])
