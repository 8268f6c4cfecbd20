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


def falling(progress: float) -> float:
    """A straight line from 1 at the start to 0 at the end."""
    return 1 - progress


def staircase(*drops: float, factor: float = 0.1) -> Callable[[float], float]:
    """A factor of 1, and `factor` times what it was (a tenth) from each of `drops` on, which are shares of the run."""
    if not all(0 < drop < 1 for drop in drops) or not factor > 0:
        raise ValueError(f"drops are shares of the run, in (0, 1), and factor is above 0, got {drops} and {factor}")

    def schedule(progress: float) -> float:
        return float(factor ** sum(progress >= drop for drop in drops))

    return schedule


def warmed_up(schedule: Callable[[float], float], passes: int) -> Callable[[float], float]:
    """`schedule` after a warm-up by steps: in the first pass a tenth, in passes 1 to 5 a fifth of their number.

    Belief Matching's (tjoo512/belief-matching-framework, cifar_trainer.py). passes: of the whole run, above 5.
    """
    if passes < 6:
        raise ValueError(f"a warm-up of 6 passes needs a run of 6 or more, got {passes}")

    def warming(progress: float) -> float:
        done = math.floor(progress * passes + 1e-9)  # 6 / 200 * 200 is a little less than 6 elsewhere
        return schedule(progress) * (0.1 if done == 0 else min(done / 5, 1.0))

    return warming


def slanted_triangle(cut: float = 0.1, ratio: float = 32.0) -> Callable[[float], float]:
    """Up in a straight line over the share `cut` of the run, down over the rest; from 1 / ratio to 1 and back.

    ULMFiT, Howard & Ruder 2018, arXiv:1801.06146, Eq. 3.
    """
    if not 0 < cut < 1 or ratio < 1:
        raise ValueError(f"cut must lie in (0, 1) and ratio be at least 1, got {cut} and {ratio}")

    def schedule(progress: float) -> float:
        height = progress / cut if progress < cut else 1 - (progress - cut) / (1 - cut)
        return (1 + height * (ratio - 1)) / ratio

    return schedule


def bit_steps(images: int) -> tuple[int, ...]:
    """BiT-HyperRule's steps for a training set of that size: end of the warm-up, three drops, end of the run.

    Kolesnikov et al. 2020, arXiv:1912.11370, Sec. 3.3; google-research/big_transfer (bit_hyperrule.py, get_schedule).
    """
    if images < 20_000:
        return 100, 200, 300, 400, 500
    if images < 500_000:
        return 500, 3000, 6000, 9000, 10_000
    return 500, 6000, 12_000, 18_000, 20_000


def bit_hyperrule(images: int) -> Callable[[float], float]:
    """Up in a straight line from 0 to 1, then a tenth after each drop; shares of the run as `bit_steps` has them.

    In the authors' code (get_lr) a drop shows one step after the one that is named for it: step 200 still has it all.
    """
    warm, *drops, end = bit_steps(images)

    def schedule(progress: float) -> float:
        if progress < warm / end:
            return progress * end / warm
        return float(0.1 ** sum(progress > drop / end for drop in drops))

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
