"""Learning-rate and weight schedules: progress in [0, 1] -> factor. Pure functions of one number."""

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """Half a cosine: 1 at the start, 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def cosine_7_16(progress: float) -> float:
    """cos(7 pi p / 16): 1 at the start, 0.195 at the end (FixMatch, Sohn et al. 2020, Sec. 2.4)."""
    return math.cos(7 * math.pi * progress / 16)


def rise_and_fall(progress: float) -> float:
    """A straight line from 0 to 1 over the first fifth of the run, and one down to 0 over the rest: short runs."""
    return progress / 0.2 if progress < 0.2 else (1 - progress) / 0.8


def annealed(progress: float) -> float:
    """(1 + 10 p)^-0.75, the learning rate of DANN (Ganin et al. 2016, Sec. 5.2.2)."""
    return (1 + 10 * progress) ** -0.75


def halving(times: float) -> Callable[[float], float]:
    """A factor that halves `times` times over the run, in steps (ProtoNet: every 2,000 episodes)."""
    if times < 0:
        raise ValueError(f"times must not be negative, got {times}")

    def schedule(progress: float) -> float:
        return 0.5 ** math.floor(times * progress)

    return schedule


def sigmoid_ramp(progress: float, steepness: float = 10.0) -> float:
    """2 / (1 + exp(-steepness p)) - 1: 0 at the start, about 1 at the end (DANN, Eq. 14)."""
    return 2 / (1 + math.exp(-steepness * progress)) - 1


def gaussian_ramp(progress: float, length: float) -> float:
    """exp(-5 (1 - p/length)^2) up to `length`, then 1 (Laine & Aila 2017, Sec. 2). length: share of the run, > 0."""
    return math.exp(-5 * (1 - min(progress / length, 1.0)) ** 2)


def linear_ramp(progress: float, length: float) -> float:
    """p/length up to `length`, then 1; a length of 0 means no ramp."""
    return 1.0 if progress >= length else progress / length
