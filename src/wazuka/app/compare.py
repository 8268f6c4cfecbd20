"""`wazuka compare`: methods on the same images, labels, network and budget; intervals, and a plot."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wazuka.app.backbones import Extractor, opened
from wazuka.app.catalog import entry, make_settings
from wazuka.app.console import Console, clock, share, showing_progress, span, table
from wazuka.app.job import Choices, Job, fingerprint
from wazuka.app.learn import Interrupted, Watch, stopping_on_signals
from wazuka.app.prepared import prepare
from wazuka.app.runs import Run
from wazuka.app.transfer import COMMON_SIDE, SCRATCH_SIDE
from wazuka.app.tuned import as_tuned, tunes
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
    backbone: Any = "auto",
) -> dict[str, Any]:
    """Train every method on every seed, print the table, write results.json and accuracy.svg; returns the results.

    A method's name may carry settings: "fixmatch:alignment=true" or "supervised:view=weak". What a former call with
    the same arguments finished is taken from results.json. `called`: other names for the table and the plot.
    `backbone`: of methods that learn on features, as for `fit`.
    """
    if not methods:
        raise UserError("--methods needs at least one name; `wazuka methods` lists them.")
    if seeds < 1 or labels < 1:
        raise UserError(f"--labels and --seeds must be positive, got {labels} and {seeds}.")
    wanted = {name: _parted(name) for name in methods}
    folder = out or Path("runs") / f"compare-{Path(source).name}"
    with showing_progress() as console, stopping_on_signals() as stop:
        named = [method for method, _ in wanted.values()]
        pretrained, fabric = opened(backbone) if _on_a_backbone(named, backbone) else None, launch()
        tuned = any(not issubclass(entry(method).kind, Head) for method in named)
        if pretrained is not None and tuned:  # heads beside it learn on what it sees, so that both get the same
            pretrained = as_tuned(pretrained, fabric.device)
        side, shaped = (SCRATCH_SIDE, "crop") if pretrained is None else (max(COMMON_SIDE, pretrained.size), "squash")
        side = pretrained.size if pretrained is not None and tuned else side
        data = open_images(source, progress=console.opening, common=side, fit=shaped)
        per_class = shared_evenly(data, labels)
        asked = {"data": source, "fingerprint": fingerprint(data), "labels": labels, "steps": steps}
        if pretrained is not None:
            asked["backbone"] = [pretrained.name, pretrained.key()]
        results = finished_before(folder, asked)
        extractors = (Extractor(pretrained, fabric.device),) if pretrained is not None else None
        for seed in range(seeds):
            for name, (method, settings) in wanted.items():
                if any(row["method"] == name and row["seed"] == seed for row in results["runs"]):
                    continue
                if stop():
                    raise Interrupted(_command(source, methods, labels, seeds, steps, folder, backbone))
                watch = Watch(stage_named(console, f"{name}, seed {seed}"), stop)
                try:
                    row = _one(data, name, method, settings, per_class, seed, steps, fabric, folder, watch, extractors)
                except Interrupted:
                    raise Interrupted(_command(source, methods, labels, seeds, steps, folder, backbone)) from None
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


def _on_a_backbone(methods: Sequence[str], backbone: Any) -> bool:
    """Whether the methods learn on a pre-trained network: on its features, or by tuning it, which any method does that
    is given a backbone. Raises UserError where only some do.
    """
    kinds = {method: entry(method) for method in methods}
    if not (isinstance(backbone, str) and backbone in ("auto", "none")):
        alone = [name for name, item in kinds.items() if not (issubclass(item.kind, Head) or tunes(item))]
        if alone:
            raise UserError(f"{alone[0]} brings a network of its own, or changes the last layer of the one it is "
                            "given; leave --backbone out.")  # fmt: skip
        return True
    on_it = [name for name, item in kinds.items() if issubclass(item.kind, Head) or item.setting == "transfer"]
    if on_it and len(on_it) < len(methods):
        other = next(method for method in methods if method not in on_it)
        raise UserError(
            f"{on_it[0]} learns on a pre-trained network and {other} from scratch, which is no fair comparison: "
            "compare them apart, or give a --backbone for both."
        )
    if on_it and backbone == "none":
        raise UserError(f"{on_it[0]} learns on a pre-trained network's features; leave --backbone none out.")
    return bool(on_it)


def shared_evenly(data: Dataset, labels: int) -> int:
    """How many labels each class gets of so many. Raises UserError where that is no whole number."""
    require_labels(data)
    per_class, rest = divmod(labels, data.train.n_classes)
    if rest or per_class == 0:
        raise UserError(
            f"{labels} labels can't be shared evenly by the {data.train.n_classes} classes of {data.name}; "
            f"take a multiple of {data.train.n_classes}."
        )
    return per_class


def stage_named(console: Console, name: str) -> Callable[[str, int, int], None]:
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
    write_atomic(folder / "accuracy.svg", plot(title, {named[name]: summary for name, summary in summaries.items()}))
    print(f"\nPlot: {folder / 'accuracy.svg'}\nNumbers: {folder / 'results.json'}")
    return results


def plot(title: str, summaries: dict[str, Summary], what: str = "test accuracy, %") -> str:
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
    axes.set_xlabel(f"{what} (dots: seeds; diamond: mean; line: its 95 % interval)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def finished_before(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
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
        same = all(results.get(name) == value for name, value in asked.items()) and isinstance(results["runs"], list)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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


def _command(
    source: str, methods: Sequence[str], labels: int, seeds: int, steps: int | None, folder: Path, backbone: Any
) -> str:
    words = ["wazuka", "compare", source, "--methods", ",".join(methods), "--labels", str(labels)]
    words += ["--seeds", str(seeds)]
    if isinstance(backbone, (str, Path)) and str(backbone) != "auto":
        words += ["--backbone", str(backbone)]
    return shlex.join([*words, *(["--steps", str(steps)] if steps else []), "--out", str(folder)])
