import torch

from wazuka.functional.brier import squared_error


def test_it_is_the_mean_over_classes_and_bounded() -> None:
    wrong, right = torch.tensor([[99.0, 0, 0, 0]]), torch.tensor([[0.0, 99, 0, 0]])
    target = torch.tensor([[0.0, 1, 0, 0]])
    torch.testing.assert_close(squared_error(target, wrong), torch.tensor([2 / 4]))
    torch.testing.assert_close(squared_error(target, right), torch.tensor([0.0]))
    even = squared_error(target, torch.zeros(1, 4))
    torch.testing.assert_close(even, torch.tensor([(0.75**2 + 3 * 0.25**2) / 4]))


def test_it_stays_with_each_image() -> None:
    targets, logits = torch.rand(5, 3).softmax(1), torch.randn(5, 3)
    assert squared_error(targets, logits).shape == (5,)
    torch.testing.assert_close(squared_error(targets, logits)[2:3], squared_error(targets[2:3], logits[2:3]))
