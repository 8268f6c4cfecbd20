import pytest
import torch

from wazuka.parts.running import RecentMean, RunningMean


def test_running_mean_starts_uniform_and_decays() -> None:
    mean = RunningMean(4, decay=0.9)
    torch.testing.assert_close(mean.value, torch.full((4,), 0.25))
    mean.update(torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(mean.value, torch.tensor([0.325, 0.225, 0.225, 0.225]))


def test_recent_mean_forgets_the_oldest_batch() -> None:
    mean = RecentMean(2, length=3)
    torch.testing.assert_close(mean.value, torch.tensor([0.5, 0.5]))
    for _ in range(3):
        mean.update(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(mean.value, torch.tensor([1.0, 0.0]))
    mean.update(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mean.value, torch.tensor([2 / 3, 1 / 3]))


def test_both_save_themselves() -> None:
    mean = RecentMean(2, length=3)
    mean.update(torch.tensor([1.0, 0.0]))
    other = RecentMean(2, length=3)
    other.load_state_dict(mean.state_dict())
    for each in (mean, other):
        each.update(torch.tensor([0.0, 1.0]))
    assert torch.equal(mean.rows, other.rows)


def test_no_gradient_is_kept() -> None:
    mean = RunningMean(2, decay=0.5)
    mean.update(torch.tensor([0.3, 0.7], requires_grad=True) * 1)
    assert not mean.value.requires_grad


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        RunningMean(2, decay=1.5)
    with pytest.raises(ValueError, match="length"):
        RecentMean(2, length=0)
