import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.contract import Batch
from wazuka.errors import UserError
from wazuka.methods.selfsup.rotation import Rotation, RotationSettings, all_quarter_turns, fifths


class Recorder(nn.Module):
    """Four logits: how much lies in each quarter of the image; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        self.seen = images
        half = images.shape[2] // 2
        top, bottom = images[:, 0, :half], images[:, 0, half:]
        quarters = (top[..., :half], bottom[..., :half], bottom[..., half:], top[..., half:])  # counterclockwise
        return self.scale * torch.stack([quarter.sum((1, 2)) for quarter in quarters], dim=1)


def test_turns_are_the_papers_transposes_and_flips_in_order():
    images = torch.rand(3, 2, 5, 5)
    turned, turns = all_quarter_turns(images)
    once = images.transpose(2, 3).flip(2)            # flip up-down of the transpose
    twice = images.flip(2).flip(3)
    thrice = images.flip(2).transpose(2, 3)          # transpose of flip up-down
    assert torch.equal(turned, torch.cat([images, once, twice, thrice]))
    assert turns.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_label_is_the_number_of_times_that_one_turn_is_applied():
    image = torch.rand(1, 3, 4, 4)
    turned = all_quarter_turns(image)[0]
    for turns in range(4):
        assert torch.equal(all_quarter_turns(turned[turns][None])[0][1], turned[(turns + 1) % 4])
    assert torch.equal(all_quarter_turns(turned[1][None])[0][3][None], image)


def test_a_pixel_in_the_top_left_corner_goes_around_counterclockwise():
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 0, 0] = 1
    corners = [tuple(t[0].nonzero()[0].tolist()) for t in all_quarter_turns(image)[0]]
    assert corners == [(0, 0), (5, 0), (5, 5), (0, 5)]


def test_loss_sees_all_four_copies_in_one_batch_and_counts_each_once():
    method = Rotation(Recorder())
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, :2, :2], images[1, 0, 2:, 2:] = 0.25, 0.5   # one upright, one upside down
    loss, parts = method.loss(Batch(images=images), progress=0.0)
    assert torch.equal(method.net.seen, all_quarter_turns(images)[0])
    right = F.cross_entropy(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0]))
    wrong = F.cross_entropy(torch.tensor([[0, 0, 2.0, 0]]), torch.tensor([0]))
    torch.testing.assert_close(loss, (right + wrong) / 2)
    assert parts["accuracy"] == 0.5


def test_images_without_an_orientation_give_exactly_chance():
    y, x = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(8) - 3.5, indexing="ij")
    distance = (x**2 + y**2).sqrt()
    images = torch.stack([torch.exp(-distance / width)[None] for width in (1.0, 2.0, 4.0)])
    torch.manual_seed(0)
    method = Rotation(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)))
    _, parts = method.loss(Batch(images=images), progress=0.0)
    assert parts["accuracy"] == 0.25


def test_it_asks_for_no_label_and_predicts_turns():
    method = Rotation(Recorder())
    (stream,) = method.streams()
    assert (stream.pool, stream.labels, stream.index, stream.views) == ("unlabeled", None, None, {"images": "weak"})
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, :2, :2] = 9
    probs = method.predict(all_quarter_turns(images)[0])
    assert probs.argmax(dim=1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(4))


def test_papers_learning_rates():
    assert [round(0.1 * fifths(epoch / 200), 6) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)] == [
        0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008
    ]  # fmt: skip


def test_oblong_images_are_refused_in_one_sentence():
    with pytest.raises(UserError, match="32x48"):
        all_quarter_turns(torch.zeros(1, 3, 32, 48))


def test_bad_settings_fail_at_once():
    with pytest.raises(ValueError, match="batch"):
        RotationSettings(batch=0)
