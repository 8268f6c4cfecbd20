import torch

from wazuka.functional.seeds import generator_from, mix


def test_neighboring_seeds_share_nothing() -> None:
    seeds = {mix(a, b) for a in range(100) for b in range(100)}
    assert len(seeds) == 10_000
    bits = [bin(mix(1, i) ^ mix(1, i + 1)).count("1") for i in range(1000)]
    assert 29 < sum(bits) / len(bits) < 34  # half of 63 bits change


def test_order_of_the_numbers_matters() -> None:
    assert mix(1, 2) != mix(2, 1)
    assert mix(0) != mix(0, 0)


def test_seeds_fit_a_generator() -> None:
    assert 0 <= mix(-5, 2**70) < 2**63
    assert torch.equal(torch.rand(3, generator=generator_from(7, 8)), torch.rand(3, generator=generator_from(7, 8)))
