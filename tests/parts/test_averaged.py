import pytest
import torch
from torch import nn

from wazuka.parts.averaged import AveragedWeights


def test_follows_the_published_formula() -> None:
    torch.manual_seed(0)
    live = nn.Linear(3, 2).double()
    average = AveragedWeights(live, decay=0.2)
    expected = live.weight.detach().clone()
    for t in range(5):
        with torch.no_grad():
            live.weight.add_(1.0)
        decay = min(0.2, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * live.weight.detach()
        average.update(live)
        torch.testing.assert_close(average.net.weight, expected)


def test_statistics_are_copied_not_averaged() -> None:
    live = nn.BatchNorm1d(4)
    average = AveragedWeights(live, decay=0.99)
    live(torch.randn(16, 4) + 3)
    average.update(live)
    assert torch.equal(average.net.running_mean, live.running_mean)
    assert average.net.num_batches_tracked == 1


def test_it_never_learns_nor_gathers_statistics() -> None:
    live = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    average = AveragedWeights(live, decay=0.9).train()
    assert not any(p.requires_grad for p in average.parameters())
    before = average.net[1].running_mean.clone()
    average(torch.randn(8, 4))
    assert torch.equal(average.net[1].running_mean, before)
    assert live.training


def test_the_count_is_saved_with_it() -> None:
    live = nn.Linear(2, 2)
    average = AveragedWeights(live, decay=0.999)
    for _ in range(3):
        average.update(live)
    other = AveragedWeights(live, decay=0.999)
    other.load_state_dict(average.state_dict())
    with torch.no_grad():
        live.weight.add_(1.0)
    average.update(live)
    other.update(live)
    assert torch.equal(average.net.weight, other.net.weight)


def test_as_in_training_it_normalizes_by_the_batch_and_remembers_nothing() -> None:
    torch.manual_seed(0)
    live = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.3))
    average, images = AveragedWeights(live, decay=0.9).train(), torch.randn(8, 4, requires_grad=True)
    with torch.no_grad():
        live[0].weight.add_(1.0)  # the live network has gone on
    before = {name: value.clone() for name, value in average.net.state_dict().items()}
    found = average.as_in_training(images)
    hidden = average.net[0](images)
    expected = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(average.net.state_dict()[name], before[name]), name
    assert not any(module.training for module in average.modules())
    assert average.net[1].momentum == 0.3
    torch.testing.assert_close(average(images), hidden / (1 + 1e-5) ** 0.5)  # the running statistics are 0 and 1


def test_as_in_training_it_drops_units_too() -> None:
    average, ones = AveragedWeights(nn.Dropout(0.5), decay=0.9), torch.ones(50)
    assert set(average.as_in_training(ones).tolist()) == {0.0, 2.0}
    assert torch.equal(average(ones), ones)


def test_it_is_back_in_eval_mode_after_an_error() -> None:
    average = AveragedWeights(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(3, 3)), decay=0.9)
    with pytest.raises(RuntimeError):
        average.as_in_training(torch.randn(8, 4))
    assert not average.net[0].training
    assert average.net[0].momentum == 0.1


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        AveragedWeights(nn.Linear(1, 1), decay)
