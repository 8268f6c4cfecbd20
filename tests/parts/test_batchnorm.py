import pytest
import torch
from torch import nn

from wazuka.parts.batchnorm import frozen_statistics


def test_inside_statistics_stand_still_but_the_batch_normalizes() -> None:
    norm = nn.BatchNorm1d(3)
    before = norm.running_mean.clone(), norm.running_var.clone()
    with frozen_statistics(norm):
        out = norm(torch.randn(64, 3) * 5 + 2)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])


def test_afterwards_they_move_again_also_after_an_error() -> None:
    norm = nn.BatchNorm1d(3, momentum=0.3)
    with pytest.raises(RuntimeError), frozen_statistics(norm):
        raise RuntimeError
    assert norm.momentum == 0.3
    norm(torch.randn(8, 3) + 1)
    assert not norm.running_mean.eq(0).all()
