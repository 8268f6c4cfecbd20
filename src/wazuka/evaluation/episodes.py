"""Few-shot accuracy: the mean over many small tasks, and how far chance in drawing them may have moved it."""

import math
from typing import Any

from wazuka.evaluation.arrays import as_floats
from wazuka.evaluation.intervals import Estimate


def episode_accuracy(accuracies: Any) -> Estimate:
    """Mean accuracy over episodes with the interval of the few-shot literature, 1.96 * std / sqrt(E).

    accuracies  (E,)  share of query images named right, one for each episode; E of 600 to 10,000 is usual
    returns     value +- 1.96 * std / sqrt(E), std with divisor E as in the papers' code; a single episode: no interval
    """
    accuracies = as_floats(accuracies)
    if accuracies.ndim != 1 or len(accuracies) == 0:
        raise ValueError(f"accuracies must be (E,) with at least one episode, got {tuple(accuracies.shape)}")
    mean, reach = float(accuracies.mean()), math.nan
    if len(accuracies) > 1:
        reach = 1.96 * float(accuracies.std()) / math.sqrt(len(accuracies))
    return Estimate(mean, mean - reach, mean + reach, 0.95, "normal")
