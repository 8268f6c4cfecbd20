"""How well odd images are told from known ones, and how well a classifier knows when to abstain.

One sign, stated once: **a Detector's score is high for odd images** (out of distribution, OOD), as `wazuka.contract`
promises. The literature counts the known images (in distribution, ID) as positive and scores them high; `detection`
turns the sign in the one place where it calls `normality`, and everything below it speaks the literature's language.

FPR@95TPR here: at the threshold that still accepts 95 % of the *known* images, the share of odd ones accepted too
(MSP, ODIN, energy, KNN papers). OpenOOD v1.5 counts odd as positive: `fpr_at_tpr(..., positive="odd")`; the numbers
differ. AUPR is average precision (not the trapezoid) and depends on the ratio of known to odd, which stands beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wazuka.evaluation.arrays import Floats, Integers, as_floats
from wazuka.evaluation.intervals import Estimate, bootstrap_draws, normal_quantile, percentile, wilson


@dataclass(frozen=True)
class Detection:
    """What `detection` measured; shares in [0, 1].

    auroc                P(an odd image scores higher than a known one) + half of the ties
    aupr_in, aupr_out    average precision with the known / the odd images as positive
    known_per_odd        ratio of the two sets; chance level is n_known / n and n_odd / n for the two AUPRs
    fpr95                odd images accepted where 95 % of the known are ("known" is positive)
    fpr95_odd            known images flagged where 95 % of the odd are (OpenOOD's side)
    tnr95                1 - fpr95
    accuracy             best mean of the two shares sorted right, over all thresholds; >= 0.5
    """

    n_known: int
    n_odd: int
    known_per_odd: float
    auroc: Estimate
    aupr_in: Estimate
    aupr_out: Estimate
    fpr95: Estimate
    fpr95_odd: Estimate
    tnr95: Estimate
    accuracy: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the convention spelled out."""
        estimates = ("auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_odd", "tnr95", "accuracy")
        return {
            "n_known": self.n_known,
            "n_odd": self.n_odd,
            "known_per_odd": self.known_per_odd,
            **{name: getattr(self, name).to_dict() for name in estimates},
            "convention": "known images are positive; fpr95_odd counts odd images as positive",
        }


def detection(known: Any, odd: Any, *, level: float = 0.95, draws: int = 500, seed: int = 0) -> Detection:
    """All of it, from a Detector's scores (high means odd); (N,) of known images, (M,) of odd images.

    Intervals: AUROC's is Newcombe's, FPR and TNR's the wider of Wilson's and the bootstrap's on each side (the
    threshold was measured too), the rest the bootstrap's with known and odd images resampled apart.
    """
    positive, negative = normality(known), normality(odd)
    if positive.ndim != 1 or negative.ndim != 1 or min(len(positive), len(negative)) == 0:
        raise ValueError(f"need scores of known (N,) and odd (M,) images, got {positive.shape} and {negative.shape}")
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError("scores hold NaN")
    metrics: tuple[Callable[[Floats, Floats], float], ...] = (
        average_precision,
        lambda ins, outs: average_precision(-outs, -ins),
        fpr_at_tpr,
        lambda ins, outs: fpr_at_tpr(ins, outs, positive="odd"),
        detection_accuracy,
    )
    values = [metric(positive, negative) for metric in metrics]
    n = len(positive)
    together = np.concatenate([positive, negative])
    generator = np.random.default_rng(seed)
    of_known = bootstrap_draws(lambda rows: positive[rows], n, draws, generator)
    of_odd = bootstrap_draws(lambda rows: negative[rows], len(together) - n, draws, generator)
    samples = np.asarray(
        [[metric(ins, outs) for metric in metrics] for ins, outs in zip(of_known, of_odd, strict=True)]
    )
    aupr_in, aupr_out, fpr95, fpr95_odd, accuracy = (
        percentile(value, column, level) for value, column in zip(values, samples.T, strict=True)
    )
    fpr95 = _at_least_wilson(fpr95, len(negative))
    return Detection(
        n_known=n,
        n_odd=len(negative),
        known_per_odd=n / len(negative),
        auroc=auroc_interval(auroc(positive, negative), n, len(negative), level),
        aupr_in=aupr_in,
        aupr_out=aupr_out,
        fpr95=fpr95,
        fpr95_odd=_at_least_wilson(fpr95_odd, n),
        tnr95=Estimate(1 - fpr95.value, 1 - fpr95.high, 1 - fpr95.low, level, fpr95.how),
        accuracy=accuracy,
    )


def normality(scores: Any) -> Floats:
    """A Detector's scores, high for odd -> the literature's, high for known. The only place where the sign turns."""
    return -as_floats(scores)


def auroc(positive: Floats, negative: Floats) -> float:
    """P(positive > negative) + 0.5 P(equal), from ranks with ties averaged; (N,), (M,); positives score high."""
    from scipy.stats import rankdata

    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))[:n].sum()
    return float((ranks - n * (n + 1) / 2) / (n * m))


def auroc_interval(value: float, n: int, m: int, level: float = 0.95) -> Estimate:
    """Newcombe's method 5 (2006): the AUROCs that lie z of *their own* standard errors (Hanley and McNeil 1982) from
    the measured one. Like Wilson's interval it keeps a width at 0 and 1, where the bootstrap has none.
    """
    z = normal_quantile(level)

    def beyond(area: float) -> bool:
        pairs = (n + m) / 2 - 1
        spread = area * (1 - area) * (1 + pairs * ((1 - area) / (2 - area) + area / (1 + area))) / (n * m)
        return abs(area - value) > z * math.sqrt(spread)

    def bound(outer: float) -> float:
        inner = value
        if not beyond(outer) or outer == value:
            return outer
        for _ in range(60):
            middle = (outer + inner) / 2
            outer, inner = (middle, inner) if beyond(middle) else (outer, middle)
        return inner

    return Estimate(value, bound(0.0), bound(1.0), level, "newcombe")


def average_precision(positive: Floats, negative: Floats) -> float:
    """Sum over thresholds of (step in recall) * precision, ties in one step; (N,), (M,); positives score high."""
    hits, false_alarms = _accepted(positive, negative)
    return float((np.diff(hits, prepend=0) * hits / (hits + false_alarms)).sum() / len(positive))


def fpr_at_tpr(known: Floats, odd: Floats, tpr: float = 0.95, positive: Literal["known", "odd"] = "known") -> float:
    """False positive rate at the first threshold that reaches `tpr`; (N,), (M,); known images score high.

    positive   "known": share of odd images accepted when `tpr` of the known are (this project's default)
               "odd": share of known images flagged when `tpr` of the odd are (OpenOOD v1.5)
    """
    if positive == "odd":
        known, odd = -odd, -known
    elif positive != "known":
        raise ValueError(f'positive must be "known" or "odd", got {positive!r}')
    rank = math.ceil(tpr * len(known) - 1e-9)  # so many must be accepted; 0.95 * 20 rounds to above 19
    threshold = np.sort(known)[::-1][max(rank, 1) - 1]
    return float((odd >= threshold).mean())


def detection_accuracy(known: Floats, odd: Floats) -> float:
    """max over thresholds of (TPR + TNR) / 2, whatever the sizes of the sets; (N,), (M,); known images score high."""
    hits, false_alarms = _accepted(known, odd)
    return float(max(0.5, ((hits / len(known) + 1 - false_alarms / len(odd)) / 2).max()))


def risk_coverage(confidence: Any, correct: Any) -> tuple[Floats, Floats]:
    """Keep the k surest images, k = 1..N: coverage k / N and the share of errors among them; (N,), (N,) -> (N,), (N,).

    confidence  (N,)  any number that is high where the classifier is sure
    correct     (N,)  bool

    Equal confidences (a float32 softmax is often exactly 1) count as drawn in random order, on average: the papers'
    stable sort would let the order of the files decide.
    """
    confidence, wrong = as_floats(confidence), 1 - as_floats(correct)
    if confidence.shape != wrong.shape or confidence.ndim != 1 or len(wrong) == 0:
        raise ValueError(f"need confidence and correct of the same images, got {confidence.shape} and {wrong.shape}")
    n = len(wrong)
    order = np.argsort(-confidence, kind="stable")
    ends = _ends_of_ties(confidence[order])
    errors = np.interp(np.arange(1, n + 1), np.append(0, ends + 1), np.append(0, wrong[order].cumsum()[ends]))
    kept = np.arange(1, n + 1)
    return kept / n, errors / kept


def aurc(confidence: Any, correct: Any) -> float:
    """Area under the risk-coverage curve: mean risk over k = 1..N (Geifman and El-Yaniv 2017)."""
    return float(risk_coverage(confidence, correct)[1].mean())


def excess_aurc(confidence: Any, correct: Any) -> float:
    """E-AURC: AURC minus that of an oracle which is less sure of every error than of any right answer, on the same N
    images; for large N the oracle's is e + (1 - e) log(1 - e) at error rate e. Never negative.
    """
    return aurc(confidence, correct) - aurc(as_floats(correct), correct)


def augrc(confidence: Any, correct: Any) -> float:
    """AUGRC (Traub et al. 2024): as AURC, with errors counted against all N images instead of the k kept, so that
    the few surest images don't outweigh the rest.
    """
    coverage, risk = risk_coverage(confidence, correct)
    return float((coverage * risk).mean())


def accuracy_at_coverage(confidence: Any, correct: Any, coverage: float, level: float = 0.95) -> Estimate:
    """Accuracy among the surest images, at least `coverage` of them, abstaining from the rest."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must lie in (0, 1], got {coverage}")
    shares, risk = risk_coverage(confidence, correct)
    kept = int(np.searchsorted(shares, coverage - 1e-12)) + 1
    return wilson(round(kept * (1 - float(risk[kept - 1]))), kept, level)


def aurc_estimate(confidence: Any, correct: Any, *, level: float = 0.95, draws: int = 500, seed: int = 0) -> Estimate:
    """AURC with its bootstrap interval."""
    confidence, correct = as_floats(confidence), as_floats(correct)
    value = aurc(confidence, correct)
    samples = bootstrap_draws(
        lambda rows: [aurc(confidence[rows], correct[rows])], len(correct), draws, np.random.default_rng(seed)
    )
    return percentile(value, samples[:, 0], level)


def _accepted(positive: Floats, negative: Floats) -> tuple[Integers, Integers]:
    """For each distinct threshold from the highest score down: how many positives, how many negatives reach it."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores, kind="stable")
    ends = _ends_of_ties(scores[order])
    hits = (order < len(positive)).cumsum()[ends]
    return hits, ends + 1 - hits


def _ends_of_ties(ordered: Floats) -> Integers:
    """Index of the last element of each run of equal values; (N,) sorted -> (runs,)."""
    return np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)


def _at_least_wilson(share: Estimate, total: int) -> Estimate:
    """The wider of both intervals on each side: the bootstrap's collapses where the share is 0 or 1."""
    score = wilson(round(share.value * total), total, share.level)
    return Estimate(
        share.value, min(share.low, score.low), max(share.high, score.high), share.level, "bootstrap or wilson"
    )
