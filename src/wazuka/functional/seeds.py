"""Seeds made of several integers, so that every draw of a run has a seed of its own and none is remembered."""

import torch


def mix(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several integers (splitmix64 steps): neighbors share nothing."""
    state = 0
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 + (number & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def generator_from(*numbers: int) -> torch.Generator:
    """A fresh CPU generator seeded with `mix(*numbers)`."""
    return torch.Generator().manual_seed(mix(*numbers))
