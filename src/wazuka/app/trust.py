"""How far an answer can be taken at its word: calibrated probabilities, sets of classes, odd photos, abstention.

All of it stands on cross-fitted answers: what siblings of the classifier, each of which lacked some labels, said of
these labels. The file trust.json holds what was learned from them; it and the saved heads are all that `predict` needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.evaluation.conformal import Members, cross_sets, labels_needed, lac_scores
from wazuka.evaluation.oddness import aside_threshold, oddness_p_values
from wazuka.evaluation.selective import threshold_for_risk
from wazuka.evaluation.temperature import apply_temperature, fit_temperature
from wazuka.methods.uncertainty.knn import kth_distance

MISSED = 0.1       # share of sets that may miss the truth
FALSE_ALARM = 0.05  # share of known photos that may be called odd
LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """What siblings of a head say of the labels that each lacked.

    probs   (n, C)   of the labeled images, in their order
    labels  (n,)
    fold    (n,)     which sibling answered
    heads            the siblings
    """

    probs: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    heads: tuple[Head, ...]


@dataclass(frozen=True, eq=False)
class Trust:
    """What was learned about the answers.

    temperature  probabilities p become p^(1/T), normalized; None: too few labels to say
    probs, labels, fold   as in CrossFitted
    siblings     heads for sets of classes; empty: not possible with so few labels
    told         a sentence about the sets
    bank         (n, D) features of the labeled images, of length 1
    left_out     (m,)   distance of each to the nearest other one, one number for each series of photos alike
    """

    temperature: float | None
    probs: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    siblings: tuple[Head, ...]
    told: str
    bank: Tensor
    left_out: np.ndarray

    def calibrated(self, probs: np.ndarray) -> np.ndarray:
        """(M, C) -> (M, C) float32."""
        if self.temperature is None:
            return probs
        return apply_temperature(probs, self.temperature).astype(np.float32)

    def sets(self, features: Tensor) -> Members | None:
        """(M, D) -> (M, C) bool, the classes that can't be ruled out; None: not possible with so few labels."""
        if not self.siblings:
            return None
        images = [lac_scores(head.predict(features).numpy()) for head in self.siblings]
        return cross_sets(lac_scores(self.probs), self.labels, self.fold, images, MISSED, by_class=True)[0]

    def oddness(self, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(M, D) -> p-values (M,), low for odd photos, and whether each is set aside (M,)."""
        scores = kth_distance(unit(features), self.bank, 1).numpy()
        aside = aside_threshold(self.left_out, FALSE_ALARM)
        return oddness_p_values(self.left_out, scores), aside.odd(scores)

    def keeps(self, probs: np.ndarray, max_error: float) -> tuple[np.ndarray, str]:
        """Which answers (M, C) to keep, so that at most `max_error` of them are wrong, and a sentence on it.

        Raises UserError where that can't be promised with the labels at hand.
        """
        if len(self.labels) == 0:
            raise UserError("That errors stay below a share can't be promised: no label was ever held out.")
        own = self.calibrated(self.probs)
        rule = threshold_for_risk(own.max(axis=1), own.argmax(axis=1) == self.labels, max_error)
        if rule.threshold is None:
            raise UserError(rule.reason)
        return np.asarray(rule.keeps(self.calibrated(probs).max(axis=1))), rule.reason

    def state(self) -> dict[str, Tensor]:
        """Tensors to save beside the head's own."""
        saved = {
            "trust.probs": torch.from_numpy(self.probs),
            "trust.labels": torch.from_numpy(self.labels),
            "trust.fold": torch.from_numpy(self.fold),
            "trust.bank": self.bank,
            "trust.left_out": torch.from_numpy(self.left_out),
        }
        for number, head in enumerate(self.siblings):
            saved |= {f"siblings.{number}.{name}": value for name, value in head.state_dict().items()}
        return saved


def trust_from(state: dict[str, Tensor], facts: dict[str, Any], make: Callable[[], Head]) -> Trust | None:
    """What a saved run holds of it; `make` makes an unfitted head."""
    saved = {name.removeprefix("trust."): value for name, value in state.items() if name.startswith("trust.")}
    if not saved:
        return None
    siblings = []
    for number in range(int(facts["siblings"])):
        prefix = f"siblings.{number}."
        head = make()
        head.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
        siblings.append(head)
    return Trust(
        facts["temperature"], saved["probs"].numpy(), saved["labels"].numpy(), saved["fold"].numpy(), tuple(siblings),
        facts["sets"], saved["bank"], saved["left_out"].numpy(),
    )  # fmt: skip


def unit(features: Tensor) -> Tensor:
    """Each row scaled to length 1."""
    return torch.nn.functional.normalize(features.float(), dim=1)


def left_out_distances(bank: Tensor, typical: float | None) -> np.ndarray:
    """(m,) oddness of labeled photos, each by the distance to the nearest other one.

    bank     (n, D)  rows of length 1
    typical          distance of an unlabeled photo to the nearest labeled one; None: nobody knows

    Labeled photos nearer to each other than half of that are one series (a burst, frames of a film) and no new photo
    could be so near: each is measured to the nearest photo of another series, and a series counts once.
    """
    if len(bank) < 2:
        return np.full(len(bank), np.inf)
    distances = (2 - 2 * bank @ bank.mT).clamp_min(0).sqrt()
    alike = distances < 0.5 * (typical or 0.0)
    series = np.asarray(connected_components(alike.numpy())[1])
    distances[torch.from_numpy(series[:, None] == series[None])] = torch.inf
    each = distances.amin(dim=1).numpy()
    return np.asarray([each[series == one].max() for one in range(series.max() + 1)])


def learn_trust(
    fitted: CrossFitted | None, labeled: Tensor, classes: tuple[str, ...], typical: float | None = None
) -> Trust:
    """From cross-fitted answers (None: there are too few labels) and the features (n, D) of the labeled images.

    typical  as in `left_out_distances`
    """
    bank = unit(labeled)
    left_out = left_out_distances(bank, typical)
    if fitted is None:
        none = np.zeros(0, np.int64)
        told = "A class has a single label: nothing can be held out, so probabilities are not calibrated."
        return Trust(None, np.zeros((0, len(classes)), np.float32), none, none, (), told, bank, left_out)
    temperature = fit_temperature(np.log(fitted.probs.clip(LEAST_PROBABILITY)), fitted.labels)
    counts, needed = np.bincount(fitted.labels, minlength=len(classes)), labels_needed(MISSED)
    short = {name: needed - count for name, count in zip(classes, counts.tolist(), strict=True) if count < needed}
    lacking = [f"{missing} more of {name}" for name, missing in short.items()]
    if lacking:
        more = f" and {len(lacking) - 5} other classes" if len(lacking) > 5 else ""
        told = (f"Sets that hold the true class {100 * (1 - MISSED):.0f} % of the time need {needed} labels of each "
                f"class: {', '.join(lacking[:5])}{more}.")  # fmt: skip
        return Trust(temperature, fitted.probs, fitted.labels, fitted.fold, (), told, bank, left_out)
    scores = lac_scores(fitted.probs)
    promise = cross_sets(scores, fitted.labels, fitted.fold, [scores[:0]] * len(fitted.heads), MISSED, by_class=True)[1]
    # a head that learned from the pool treats hidden labels like the pool's other photos, but not like photos beyond it
    told = f"{promise.told(classes)} That holds for photos that were there when it learned; others may be missed more."
    return Trust(temperature, fitted.probs, fitted.labels, fitted.fold, fitted.heads, told, bank, left_out)
