"""Did the unlabeled images help? What the same network learns from the labels alone is the floor.

Both are asked about the same images, which neither learned from. Where these are the labels themselves, in turn
(cross-validation), the answer also decides which classifier stays; where they are test images it never does, for a
number that chose is no longer an honest number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wazuka.evaluation import mcnemar

FLOOR = "supervised"  # the method that learns from the labels alone
CHANCE = 0.05         # how likely a difference must be at most, were there none, to be called one
UNLIKE = 0.25         # share of the unlabeled images that would have to change class for the shares to be alike


@dataclass(frozen=True)
class Verdict:
    """The method and the floor on the same n images.

    correct, floor_correct   how many each names right; only_method, only_floor: how many it alone does
    p_value                  of a difference as large, were there none (McNemar)
    chosen                   whether the comparison decided which of the two stays
    """

    n: int
    correct: int
    floor_correct: int
    only_method: int
    only_floor: int
    p_value: float
    chosen: bool

    @property
    def floor_stays(self) -> bool:
        """Whether the classifier that learned from the labels alone is the one to keep; a tie is no reason."""
        return self.chosen and self.floor_correct > self.correct

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `stays` names the classifier that was kept."""
        return {**vars(self), "stays": "labels alone" if self.floor_stays else "method"}


def judge(probs: np.ndarray, floor_probs: np.ndarray, labels: np.ndarray, chooses: bool) -> Verdict:
    """Compare two classifiers' answers (N, C) with the truth (N,)."""
    mine, floor = probs.argmax(axis=1) == labels, floor_probs.argmax(axis=1) == labels
    return Verdict(
        n=len(labels),
        correct=int(mine.sum()),
        floor_correct=int(floor.sum()),
        only_method=int((mine & ~floor).sum()),
        only_floor=int((floor & ~mine).sum()),
        p_value=mcnemar(mine, floor).p_value,
        chosen=chooses,
    )


def sentence(told: dict[str, Any], n_unlabeled: int) -> str:
    """What the verdict (`Verdict.to_dict`) says to somebody who has never heard of it; "tuned" in it: the floor is what
    the network gives without being tuned.
    """
    if told.get("tuned"):
        return _of_tuning(told)
    counts = (
        f"with them {told['correct']:,} of {told['n']:,} were named right, on the labels alone "
        f"{told['floor_correct']:,} ({told['only_method']:,} only with them, {told['only_floor']:,} only without)."
    )
    if told["stays"] == "labels alone":
        return (
            f"The {n_unlabeled:,} unlabeled photos were found not to help: {counts} "
            "The classifier that was kept learned from the labels alone."
        )
    if told["p_value"] <= CHANCE and told["correct"] > told["floor_correct"]:
        return f"The {n_unlabeled:,} unlabeled photos helped: {counts}"
    if told["p_value"] <= CHANCE:
        return (
            f"The {n_unlabeled:,} unlabeled photos did harm: {counts} Fit anew with --method {FLOOR}, and see whether "
            "they show the classes that the labels name."
        )
    return f"Whether the {n_unlabeled:,} unlabeled photos helped can't be told from so few: {counts}"


def _of_tuning(told: dict[str, Any]) -> str:
    counts = (
        f"the tuned one named {told['correct']:,} of {told['n']:,} right, the frozen one {told['floor_correct']:,} "
        f"({told['only_method']:,} only the tuned one, {told['only_floor']:,} only the frozen one)."
    )
    if told["stays"] == "labels alone":
        return f"Tuning the network was found not to pay: {counts} What learned on the frozen network's features stays."
    if told["p_value"] <= CHANCE:
        paid = "paid" if told["correct"] > told["floor_correct"] else "did harm"
        return f"Tuning the network {paid}: {counts}"
    return f"Whether tuning the network paid can't be told from so few: {counts}"


def guessed_shares(probs: np.ndarray) -> list[float]:
    """Share of each class among the answers to the unlabeled images, (N, C) -> C numbers that sum to 1."""
    counts = np.bincount(probs.argmax(axis=1), minlength=probs.shape[1])
    return [round(float(count) / max(1, len(probs)), 4) for count in counts]


def uneven(guessed: list[float], labeled: list[int], classes: list[str]) -> str | None:
    """A sentence where the classes have other shares among the unlabeled images than among the labels, else None."""
    known = np.asarray(labeled) / max(1, sum(labeled))
    apart = np.asarray(guessed) - known
    if np.abs(apart).sum() / 2 < UNLIKE:
        return None
    most = int(apart.argmax())
    return (
        f"Among the unlabeled photos the classes seem to have other shares than among the labels ({classes[most]}: "
        f"{100 * guessed[most]:.0f} % against {100 * known[most]:.0f} %): either they do, and labels drawn at random "
        f"would serve better, or many of them show something else, which is named {classes[most]} for want of a better."
    )
