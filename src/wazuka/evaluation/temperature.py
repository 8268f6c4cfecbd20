"""Temperature scaling: one number that makes a classifier as sure as it is right, without changing an answer.

Guo, Pleiss, Sun and Weinberger 2017, arXiv:1706.04599. Probabilities become p^(1/T), normalized; T minimizes the
negative log-likelihood of labels the classifier did not learn from. With few labels there is no validation set to
spare: take cross-fitted log-probabilities, each labeled image answered by a classifier that was not shown its label.

Differs from it: a prior. Four right answers are likeliest under T = 0, certainty; no four answers justify that. The
sharpness 1/T gets a Gamma prior with mean 1 and `prior` as shape and rate, and what is returned is the mode of log T.
Of the priors that shrink towards 1 this one (a) costs prior * (1/T - log(1/T)), which is convex in 1/T as the
likelihood is, where a log-normal one is not: the minimum is unique and found by bisection; (b) grows linearly with
sharpness, against a likelihood that can gain no more than N * NLL by sharpening, and only logarithmically with
doubt: few labels soften easily and sharpen reluctantly; (c) fades as labels come: log T moves by about 1/sqrt(prior).
"""

import math
from typing import Any

import numpy as np

from wazuka.evaluation.arrays import Floats, as_floats, as_integers
from wazuka.evaluation.classification import LEAST_PROBABILITY

PRIOR = 1.0  # log T between -1 and 1, more or less
SHARPEST, SOFTEST = 1e-3, 1e3  # without a prior the best T may be 0 or infinite: it stops here


def fit_temperature(log_probs: Any, labels: Any, prior: float = PRIOR) -> float:
    """The temperature that makes held-out labels likeliest; above 1: the classifier was too sure.

    log_probs  (N, C)  held-out log-probabilities (logits do as well); -inf counts as the least float32's logarithm
    labels     (N,)    true classes in [0, C)
    prior              shape and rate of the prior on 1/T, >= 0; about how many unsure labels it weighs. 0: none
    returns            T in [0.001, 1000]; 1 where there is a prior and no label
    """
    from scipy.optimize import brentq

    logs, labels = as_floats(log_probs), as_integers(labels)
    if logs.ndim != 2 or labels.shape != logs.shape[:1]:
        raise ValueError(f"log_probs must be (N, C) and labels (N,), got {logs.shape} and {labels.shape}")
    if not prior >= 0 or not math.isfinite(prior):
        raise ValueError(f"prior must be 0 or above, got {prior}")
    if len(labels) == 0 and prior == 0:
        raise ValueError("without labels and without a prior any temperature is as good as another")
    if len(labels) and (labels.min() < 0 or labels.max() >= logs.shape[1]):
        raise ValueError(f"labels must lie in [0, {logs.shape[1]}), got {labels.min()} to {labels.max()}")
    if len(labels) and not np.isfinite(logs.max(axis=1)).all():  # NaN is the maximum of its row
        raise ValueError("log_probs hold NaN, infinity, or an image to which every class is impossible")
    logs = np.maximum(logs, logs.max(axis=1, keepdims=True) + math.log(LEAST_PROBABILITY))
    truth = np.take_along_axis(logs, labels[:, None], axis=1)[:, 0]

    def slope(log_sharpness: float) -> float:
        """Derivative in 1/T of NLL + prior * (1/T - log(1/T)); rises with 1/T."""
        sharpness = math.exp(log_sharpness)
        expected = (softened(logs, sharpness) * logs).sum(axis=1)
        return float((expected - truth).sum()) + prior * (1 - 1 / sharpness)

    low, high = -math.log(SOFTEST), -math.log(SHARPEST)
    if slope(low) >= 0:
        return SOFTEST
    if slope(high) <= 0:
        return SHARPEST
    return math.exp(-brentq(slope, low, high, xtol=1e-12))


def apply_temperature(probs: Any, temperature: float) -> Floats:
    """Probabilities at that temperature, p^(1/T) normalized; (..., C) -> (..., C). The likeliest class stays it.

    T -> infinity makes all classes that are possible equally likely; what has probability 0 keeps it.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    with np.errstate(divide="ignore"):
        return softened(np.log(as_floats(probs)), 1 / temperature)


def softened(logs: Floats, sharpness: float) -> Floats:
    """softmax(sharpness * logs) over the last dimension."""
    powers = np.exp(sharpness * (logs - logs.max(axis=-1, keepdims=True)))
    return powers / powers.sum(axis=-1, keepdims=True)
