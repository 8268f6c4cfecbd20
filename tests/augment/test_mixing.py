import pytest
import torch
import torch.nn.functional as F

from wazuka.augment import cutmix, cutmix_boxes, mixing_weights, mixup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.rand(n, 3, 8, 10, generator=seeded(), dtype=torch.float64)
    return images, F.one_hot(torch.arange(n) % 4, 4).double(), torch.randperm(n, generator=seeded(1))


def test_mixup_is_the_equation_for_each_sample_and_for_a_whole_batch():
    images, targets, partners = batch()
    for weights in (torch.linspace(0, 1, 6), torch.tensor([0.3])):
        mixed, soft = mixup(images, targets, partners, weights)
        for n in range(6):
            w = weights[n % len(weights)].double()
            torch.testing.assert_close(mixed[n], w * images[n] + (1 - w) * images[partners[n]])
            torch.testing.assert_close(soft[n], w * targets[n] + (1 - w) * targets[partners[n]])


def test_mixup_passes_gradients_to_targets():
    images, targets, partners = batch()
    targets.requires_grad_()
    _, soft = mixup(images, targets, partners, torch.full((6,), 0.25))
    (gradient,) = torch.autograd.grad(soft[:, 0].sum(), targets)
    torch.testing.assert_close(gradient[:, 0], torch.ones(6, dtype=torch.float64))  # 0.25 as self, 0.75 as partner


def test_cutmix_targets_are_the_share_of_pixels():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 10).contiguous()
    targets, partners = torch.eye(6), torch.tensor([1, 2, 3, 4, 5, 0])
    boxes = cutmix_boxes(mixing_weights(6, 1.0, seeded()), 8, 10, seeded())
    mixed, soft = cutmix(images, targets, partners, boxes)
    for n in range(6):
        for source in (n, int(partners[n])):
            torch.testing.assert_close(soft[n, source], (mixed[n] == source).float().mean())
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))


def test_one_cutmix_box_serves_the_batch():
    images, targets, partners = batch()
    mixed, soft = cutmix(images, targets, partners, torch.tensor([[2, 1, 7, 5]]))
    assert torch.equal(mixed[:, :, 1:5, 2:7], images[partners][:, :, 1:5, 2:7])
    assert torch.equal(mixed[:, :, 5:], images[:, :, 5:])
    torch.testing.assert_close(soft, targets * 0.75 + targets[partners] * 0.25)


def test_boxes_stay_inside_and_have_the_asked_area_where_unclipped():
    weights = torch.linspace(0, 1, 2000)
    left, top, right, bottom = cutmix_boxes(weights, 32, 64, seeded()).unbind(dim=1)
    assert left.min() == 0
    assert top.min() == 0
    assert right.max() == 64
    assert bottom.max() == 32
    whole = (left > 0) & (top > 0) & (right < 64) & (bottom < 32)
    share = ((right - left) * (bottom - top))[whole] / (32 * 64)
    assert (share - (1 - weights[whole])).abs().max() < 0.1  # sides are even numbers of pixels
    left, top, right, bottom = cutmix_boxes(torch.ones(9), 32, 32, seeded()).unbind(dim=1)
    assert ((right - left) * (bottom - top)).eq(0).all()  # all of the first image


def test_weights_follow_beta_and_repeat_with_the_seed():
    drawn = mixing_weights(20_000, 0.75, seeded())
    assert torch.equal(drawn, mixing_weights(20_000, 0.75, seeded()))
    assert not torch.equal(drawn, mixing_weights(20_000, 0.75, seeded(1)))
    variance = 1 / (4 * (2 * 0.75 + 1))  # of Beta(a, a)
    torch.testing.assert_close(drawn.mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var(), torch.tensor(variance), atol=0.004, rtol=0)
    assert mixing_weights(100, 0.75, seeded(), keep_first=True).min() >= 0.5
    with pytest.raises(ValueError, match="alpha"):
        mixing_weights(3, 0.0, seeded())
