"""The report: one offline page that a manager understands and an engineer trusts.

`render_report` turns plain facts into one html file: styles, charts (SVG) and pictures (data URIs) are inside it, it
holds no script and its content policy forbids any request. Class and file names are a stranger's input: everything
goes through Jinja's autoescape. Here numbers become words and coordinates; how they look is for `templates/`.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wazuka.evaluation import Estimate, Evaluation

Measured = Literal["test", "cross-validation", "none"]
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a gallery.

    image        (C, H, W) uint8, C = 1 or 3
    probability  of the predicted class, in [0, 1]
    label        the true class where it is known
    """

    image: np.ndarray
    name: str
    predicted: str
    probability: float
    label: str | None = None


@dataclass(frozen=True)
class Baseline:
    """Another way to learn from the same labels, measured on the same images."""

    name: str
    accuracy: Estimate
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page says.

    title       what was learned, e.g. the folder's name
    run         facts about the run; those in FACTS get their words, any other is shown under its own name, and a
                mapping (versions, settings) becomes one line for each of its entries. Of them `method`, `n_labeled`,
                `n_unlabeled`, `seconds` and `images_per_second` stand at the top as well
    evaluation  None where nothing could be measured
    measured    on what `evaluation` stands: a test set never learned from, the labels in turn, or nothing
    protocol    how, in plain words; empty: the words that go with `measured`
    curves      rows of metrics.jsonl: "step", perhaps "seconds", and any numbers worth a curve
    odd         unlabeled photos that seem to show none of the classes
    looks       photos with what the answer came from marked; shortcuts: sentences on what else gives labels away
    unlabeled   whether the unlabeled photos helped, in a sentence
    expected    share of right answers to be expected among the unlabeled photos, from the labels alone
    trust       what can be promised about sets of classes, in a sentence
    skipped     (file, reason)
    duplicates  sentences
    warnings    sentences: what the reader should know before he trusts the number
    reproduce   the command that makes this run again
    predict     the command that uses it
    """

    title: str
    run: Mapping[str, Any]
    evaluation: Evaluation | None = None
    measured: Measured = "none"
    protocol: str = ""
    curves: Sequence[Mapping[str, Any]] = ()
    baselines: Sequence[Baseline] = ()
    surest: Sequence[Picture] = ()
    unsure: Sequence[Picture] = ()
    mistakes: Sequence[Picture] = ()
    looks: Sequence[Picture] = ()
    odd: Sequence[Picture] = ()
    shortcuts: Sequence[str] = ()
    unlabeled: str = ""
    expected: Estimate | None = None
    trust: str = ""
    skipped: Sequence[tuple[str, str]] = ()
    duplicates: Sequence[str] = ()
    warnings: Sequence[str] = ()
    reproduce: str = ""
    predict: str = ""
    created: str = field(default="")

    def __post_init__(self) -> None:
        if self.measured not in ("test", "cross-validation", "none"):
            raise ValueError(f'measured must be "test", "cross-validation" or "none", got {self.measured!r}')
        if (self.evaluation is None) != (self.measured == "none"):
            raise ValueError('an evaluation needs measured = "test" or "cross-validation", and they need an evaluation')


def render_report(report: ReportData) -> str:
    """The whole page as text; write it as UTF-8."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters = (percent, claimed, interval, level, count, number)
    environment.filters |= {filter_.__name__: filter_ for filter_ in filters}
    evaluation = report.evaluation
    page = environment.get_template("report.html.j2").render(
        report=report,
        evaluation=evaluation,
        headline=headline(evaluation, report.measured),
        protocol=report.protocol or PROTOCOLS[report.measured],
        highlights=highlights(report.run),
        facts=facts(report.run),
        comparison=comparison(report),
        classes=class_rows(evaluation) if evaluation else [],
        confusion=confusion_chart(evaluation) if evaluation else None,
        mix_ups=mix_ups(evaluation) if evaluation else [],
        calibration=calibration_chart(evaluation) if evaluation else None,
        panels=curve_panels(report.curves),
        galleries=galleries(report),
        guessing_nll=math.log(len(evaluation.classes)) if evaluation else 0.0,
    )
    # A file name that is not UTF-8 reaches us with lone surrogates, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


# Numbers into words ------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """0.97 -> "97.0 %". What is not all is never rounded to all, nor what is not nothing to nothing."""
    if share is None or not math.isfinite(share):
        return "–"
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0, 100) or share in (0, 1):
            break
    return f"{text}\N{NO-BREAK SPACE}%"


def claimed(probability: float) -> str:
    """A network's word for how sure it is; decimals after 99.9 % would only feign precision."""
    return "> 99.9\N{NO-BREAK SPACE}%" if probability > 0.999 else percent(probability)


def interval(estimate: Estimate) -> str:
    """95.1–98.2 %; empty where there is none."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"{percent(estimate.low).removesuffix('%').strip()}–{percent(estimate.high)}"


def level(estimate: Estimate) -> str:
    """95 %, of the interval."""
    return f"{100 * estimate.level:.3g}\N{NO-BREAK SPACE}%"


def count(n: int) -> str:
    """12,345 -> "12,345"; thousands set apart."""
    return f"{n:,}"


def number(value: float, digits: int = 3) -> str:
    """A number as a person writes it: three significant digits, no exponent where avoidable."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.0e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: float) -> str:
    """42.3 -> "42 s", 151 -> "2 min 31 s", 7300 -> "2 h 2 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


PROTOCOLS = {
    "test": "Test photos were set aside before learning began. They took no part in training, in choosing settings or "
    "in deciding when to stop.",
    "cross-validation": "There were too few labels to set a test set aside, so the labeled photos were split into "
    "groups. Each group in turn was kept back while a classifier learned from the others, and then named by it. The "
    "final classifier learned from all of them.",
    "none": "All labels were used for learning, so nothing is left to measure the accuracy on. Label some photos more "
    "and keep them apart to learn how good the classifier is; until then treat its answers as unproven.",
}


@dataclass(frozen=True)
class Headline:
    """`figure` in large type, then the sentence, of which `unbroken` is to stay on one line."""

    figure: str
    sentence: str
    unbroken: str = ""
    estimate: Estimate | None = None


def headline(evaluation: Evaluation | None, measured: Measured) -> Headline:
    """What the page says if the reader reads one sentence only."""
    if evaluation is None:
        return Headline("not measured", "The classifier learned, but how often it is right has not been measured.")
    of, right, share = count(evaluation.n), count(evaluation.correct), evaluation.accuracy
    numbers = f"{right} ({percent(share.value)}, {level(share)} interval {interval(share)})"
    sentence = {
        "test": f"Of {of} test photos it had never seen, {numbers} were named right.",
        "cross-validation": f"Of {of} labeled photos, each kept back once while it learned from the others, "
        f"{numbers} were named right.",
    }[measured]
    return Headline(percent(share.value), sentence, interval(share), share)


FACTS = {
    "method": "method",
    "n_labeled": "labeled photos",
    "n_unlabeled": "unlabeled photos",
    "n_test": "test photos",
    "n_classes": "classes",
    "data": "data",
    "fingerprint": "data fingerprint",
    "image_size": "photo size (pixels)",
    "backbone": "network",
    "steps": "steps",
    "seconds": "time to learn",
    "images_per_second": "photos per second",
    "seed": "seed",
    "device": "device",
    "threads": "threads",
    "precision": "precision",
    "versions": "versions",
    "settings": "settings",
}
HIGHLIGHTS = ("n_labeled", "n_unlabeled", "n_classes", "seconds", "images_per_second", "method")


def highlights(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the few facts that stand at the top of the page."""
    return [(FACTS[key], _fact(key, run[key])) for key in HIGHLIGHTS if run.get(key) is not None]


def facts(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, [(name, value)]): known facts in the order of FACTS, then any others, then each mapping as a group."""
    ordered = [key for key in FACTS if key in run] + [key for key in run if key not in FACTS]
    plain = [key for key in ordered if not isinstance(run[key], Mapping) and run[key] is not None]
    groups = [("", [(FACTS.get(key, key.replace("_", " ")), _fact(key, run[key])) for key in plain])]
    for key in ordered:
        if isinstance(run[key], Mapping) and run[key]:
            entries = [(str(name), _fact("", value)) for name, value in run[key].items()]
            groups.append((FACTS.get(key, key.replace("_", " ")), entries))
    return groups


def _fact(key: str, value: Any) -> str:
    if key == "seconds":
        return duration(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key != "seed":
        return count(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact("", one) for one in value)
    return str(value)


# The comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Ours among the others, best first; bars run from `start` to 1."""

    rows: list[dict[str, Any]]
    start: float
    verdict: str


def comparison(report: ReportData) -> Comparison | None:
    """A row for each way of learning, and what the reader may conclude from them."""
    if not report.evaluation or not report.baselines:
        return None
    ours, method = report.evaluation.accuracy, report.run.get("method")
    us = Baseline(f"Wazuka ({method})" if method else "Wazuka", ours, report.run.get("seconds"))
    ranked = sorted([us, *report.baselines], key=lambda one: (-one.accuracy.value, one is not us))
    rows = [
        {"name": one.name, "accuracy": one.accuracy, "ours": one is us, "note": one.note,
         "time": duration(one.seconds) if one.seconds is not None else ""}
        for one in ranked
    ]  # fmt: skip
    ends = [end for one in ranked for end in (one.accuracy.value, one.accuracy.low) if math.isfinite(end)]
    best = max(report.baselines, key=lambda one: one.accuracy.value)
    return Comparison(rows, max(0.0, math.floor(min(ends) * 10 - 1e-9) / 10), _verdict(ours, best))


def _verdict(ours: Estimate, best: Baseline) -> str:
    theirs, other = best.accuracy, f"the best alternative, {best.name},"
    if ours.value == theirs.value:
        return f"T{other[1:]} is right as often."
    apart = ours.low > theirs.high or theirs.low > ours.high
    caution = "" if apart else " The intervals overlap: on so few photos the order may be chance."
    if ours.value < theirs.value:
        return f"T{other[1:]} did better here: prefer it, or give Wazuka more labels or steps.{caution}"
    fewer = (ours.value - theirs.value) / (1 - theirs.value)
    return f"Against {other} it makes {100 * fewer:.0f}\N{NO-BREAK SPACE}% fewer mistakes.{caution}"


# Classes and mix-ups -----------------------------------------------------------------------------------------------


def class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each class, those found least often first; classes without photos last."""
    rows = [
        {"number": k + 1, "name": name, "support": evaluation.support[k], "recall": evaluation.recall[k],
         "precision": evaluation.precision[k]}
        for k, name in enumerate(evaluation.classes)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["support"] == 0, row["recall"].value if row["support"] else 0))


def mix_ups(evaluation: Evaluation, most: int = 8) -> list[dict[str, Any]]:
    """The most frequent mistakes: true class, answer, how often, of how many."""
    errors = evaluation.confusion.copy()
    np.fill_diagonal(errors, 0)
    largest = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = [divmod(int(flat), len(evaluation.classes)) for flat in largest]
    return [
        {"true": evaluation.classes[i], "said": evaluation.classes[j], "count": int(errors[i, j]),
         "of": evaluation.support[i]}
        for i, j in pairs if errors[i, j]
    ]  # fmt: skip


def confusion_chart(evaluation: Evaluation) -> dict[str, Any]:
    """Cells and labels of the confusion matrix, readable from 2 to 100 classes: counts inside large cells, names
    beside middling ones, the numbers of the class table beside small ones. Only cells that hold images are drawn.
    """
    classes, confusion = evaluation.classes, evaluation.confusion
    n = len(classes)
    side = 44 if n <= 12 else 30 if n <= 20 else 18 if n <= 36 else 13 if n <= 60 else max(5, 780 // n)
    named = n <= 60
    letter = 6.6 if side >= 30 else 5.6 if side >= 18 else 5.2
    fit = 22 if side >= 18 else 26
    labels = [shorten(name, fit) if named else str(k + 1) for k, name in enumerate(classes)]
    longest = max(len(label) for label in labels)
    upright = longest * letter < side - 4
    left, top = 30 + longest * letter, 44 if upright else 34 + longest * letter
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cells = []
    for i, j in np.argwhere(confusion):
        strength = float(share[i, j]) if i == j else float(share[i, j]) ** 0.5  # one mistake in 100 must be seen
        cells.append(
            {
                "x": left + j * side, "y": top + i * side, "right": bool(i == j),
                "strength": round(0.10 + 0.85 * strength, 3), "count": int(confusion[i, j]), "strong": strength > 0.5,
                "title": f"{classes[i]} named {classes[j]}: {confusion[i, j]:,} of {evaluation.support[i]:,}",
            }
        )  # fmt: skip
    step = 1 if named else 5
    shown = [k for k in range(n) if named or (k + 1) % step == 0 or k == 0]
    return {
        "side": side, "left": left, "top": top, "cells": cells, "n": n, "named": named, "upright": upright,
        "labels": [{"k": k, "text": labels[k], "title": classes[k]} for k in shown],
        "size": 13 if side >= 30 else 11 if side >= 18 else 10,
        "width": left + n * side + 4, "height": top + n * side + 4, "counts": side >= 30,
    }  # fmt: skip


def shorten(text: str, most: int) -> str:
    """At most `most` characters; what is cut is marked."""
    return text if len(text) <= most else text[: most - 1] + "…"


# Calibration -------------------------------------------------------------------------------------------------------


def calibration_chart(evaluation: Evaluation) -> dict[str, Any]:
    """Points of the calibration plot with their intervals, the histogram under it, and what they say in words.

    Coordinates are shares of the plot's side, y upward.
    """
    filled = [one for one in evaluation.reliability if one.count]
    most = max(one.count for one in filled)
    said = sum(one.count * one.confidence for one in filled) / evaluation.n
    points = [
        {
            "x": one.confidence, "y": one.accuracy.value, "low": one.accuracy.low, "high": one.accuracy.high,
            "weight": 3 + 4 * (one.count / most) ** 0.5,
            "title": f"{one.count:,} photos: it said {percent(one.confidence)}, "
            f"{percent(one.accuracy.value)} were right",
        }
        for one in filled
    ]  # fmt: skip
    bars = [
        {
            "x": one.low, "width": one.high - one.low, "height": one.count / most,
            "title": f"{one.count:,} photos with a probability of {percent(one.low)} to {percent(one.high)}",
        }
        for one in evaluation.reliability
    ]  # fmt: skip
    return {"points": points, "bars": bars, "most": most, "said": said, "words": _calibration_words(evaluation, said)}


def _calibration_words(evaluation: Evaluation, said: float) -> str:
    right = evaluation.accuracy.value
    means = f"On average it claimed {percent(said)} and was right in {percent(right)}"
    if evaluation.ece.low <= 0:
        caution = "" if evaluation.n >= 300 else " (on so few little could)"
        return (
            f"{means}. The gaps are no larger than luck alone opens on {count(evaluation.n)} photos: "
            f"nothing speaks against its probabilities{caution}."
        )
    if said > evaluation.accuracy.high:
        direction = "too sure of itself"
    elif said < evaluation.accuracy.low:
        direction = "too modest"
    else:
        direction = "too sure of some photos and too modest about others"
    return f"{means}. It is {direction}: do not read its probabilities as they stand."


# Learning curves ---------------------------------------------------------------------------------------------------

NOT_A_CURVE = {"step", "seconds", "epoch", "progress", "total_steps"}
SHARES = ("accuracy", "used", "share", "confidence", "rate", "mask")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 170, 46, 12, 10, 24


def curve_panels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One small chart for each number that metrics.jsonl follows, accuracy first.

    Rows may belong to several trainings, told apart by "stage": "final" (or the last one, where none is called that)
    is drawn in full, the others, cross-validation's and the floor's, as thin lines behind it.
    """
    stages = sorted(dict.fromkeys(row.get("stage") for row in rows), key=lambda stage: stage == "final")
    names = dict.fromkeys(
        key for row in rows for key, value in row.items() if key not in NOT_A_CURVE and _is_number(value)
    )
    panels = []
    for name in sorted(names, key=lambda name: ("accuracy" not in name, name not in ("loss", "total"))):
        drawn = [
            [(row["step"], row[name]) for row in rows if row.get("stage") == stage and _is_number(row.get(name))]
            for stage in stages
        ]
        curves = [np.asarray(curve, dtype=np.float64) for curve in drawn if len(curve) >= 2]
        if curves:
            panels.append(_panel(name, curves[-1], curves[:-1]))
    return panels


def _panel(name: str, main: np.ndarray, others: Sequence[np.ndarray]) -> dict[str, Any]:
    every = np.concatenate([main, *others])
    least, most = float(every[:, 1].min()), float(every[:, 1].max())
    as_share = any(word in name for word in SHARES) and least >= 0 and most <= 1
    ticks = nice_ticks(least if as_share else min(0.0, least), most)
    low, high, first, last = ticks[0], ticks[-1], float(every[:, 0].min()), float(every[:, 0].max())

    def place(point: Iterable[float]) -> str:
        step, value = point
        x = LEFT + (step - first) / (last - first or 1) * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

    line = bucket_means(main, 240)
    smooth = bucket_means(main, 30) if len(main) >= 90 else None
    return {
        "name": name.replace("_", " "),
        "final": percent(float(main[-1, 1])) if as_share else number(float(main[-1, 1])),
        "line": " ".join(map(place, line)),
        "smooth": " ".join(map(place, smooth)) if smooth is not None else "",
        "others": [" ".join(map(place, bucket_means(other, 60))) for other in others],
        "end": place((line if smooth is None else smooth)[-1]).split(","),
        "ticks": [{"y": float(place((first, t)).split(",")[1]), "text": _tick(t, ticks, as_share)} for t in ticks],
        "first": count(round(first)), "last": count(round(last)),
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM,
    }  # fmt: skip


def bucket_means(points: np.ndarray, most: int) -> np.ndarray:
    """Points (n, 2) -> at most (most, 2), each the mean of its neighbors; both ends keep their place on the x axis."""
    if len(points) <= most:
        return points
    thin = np.asarray([bucket.mean(axis=0) for bucket in np.array_split(points, most)])
    thin[0, 0], thin[-1, 0] = points[0, 0], points[-1, 0]
    return thin


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Two to `most` + 1 round values that span [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / most
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(start, stop + 1)]


def _tick(tick: float, ticks: list[float], as_share: bool) -> str:
    scale = 100 if as_share else 1
    digits = max(0, -math.floor(math.log10(scale * (ticks[1] - ticks[0])) + 1e-9))
    return f"{scale * tick:,.{digits}f}".replace("-", "−") + (" %" if as_share else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Pictures ----------------------------------------------------------------------------------------------------------


def galleries(report: ReportData) -> list[dict[str, Any]]:
    """The three rows of pictures that are not empty, with what to look for in each."""
    texts: Iterable[tuple[str, str, Sequence[Picture]]] = (
        ("Mistakes", "What it got wrong, the surest first. Look for wrong labels as well as for wrong answers.",
         sorted(report.mistakes, key=lambda picture: -picture.probability)),
        ("Where it looks", "What the answer came from is warm (Grad-CAM). It should be the object, not what stands "
         "beside it.", report.looks),
        ("Of something else?", "Unlabeled photos that look like none of the classes, the oddest first; what it would "
         "call them is of no use. If some do belong, label them.", report.odd),
        ("Least sure", "Where it wavers. If you label more photos, label ones like these.", report.unsure),
        ("Surest", "What it takes for clear cases. A wrong one here deserves a closer look.", report.surest),
    )  # fmt: skip
    return [
        {"title": title, "text": text, "pictures": [_shown(picture) for picture in pictures]}
        for title, text, pictures in texts
        if pictures
    ]


def _shown(picture: Picture) -> dict[str, Any]:
    wrong = picture.label is not None and picture.label != picture.predicted
    uri, crisp = data_uri(picture.image)
    file = picture.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return {"uri": uri, "crisp": crisp, "picture": picture, "file": file, "wrong": wrong}


def data_uri(image: np.ndarray, most: int = 192) -> tuple[str, bool]:
    """(C, H, W) uint8 -> (data URI, whether its pixels are to be shown as squares).

    Small images are kept to the bit, as PNG, and enlarged by the browser; photos are shrunk to `most` pixels, as JPEG,
    a sixth of the size.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a picture must be uint8 (C, H, W) with C = 1 or 3, got {image.dtype} {image.shape}")
    shown = Image.fromarray(image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    small = max(shown.size) <= 96
    shown.thumbnail((most, most))
    buffer = io.BytesIO()
    if small:
        shown.save(buffer, "PNG", optimize=True)
    else:
        shown.save(buffer, "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", small
