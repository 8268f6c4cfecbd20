import json

import pytest
import torch

from wazuka.app.plan import plan_for
from wazuka.errors import UserError

SIZES = [(2, 2), (2, 9), (8, 8), (12, 30), (13, 13), (28, 28), (40, 64), (41, 41), (64, 64)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_every_plan_can_learn_from_its_images(size, channels):
    plan = plan_for(*size, channels)
    net = plan.net(channels, 5)
    images = torch.randint(0, 256, (3, channels, *size), dtype=torch.uint8)
    for policy in plan.policies.values():
        view = policy(images, torch.Generator().manual_seed(0))
        assert view.shape == images.shape
        assert view.dtype == torch.uint8
        logits = net(view / 255)
        assert logits.shape == (3, 5)
        assert logits.isfinite().all()
    assert {"plain", "weak", "strong"} <= set(plan.policies)
    assert plan.steps > 0


def test_larger_images_get_larger_networks():
    sizes = [sum(p.numel() for p in plan_for(side, side, 1).net(1, 2).parameters()) for side in (8, 28, 64)]
    assert sizes == sorted(set(sizes))


def mirrored_share(plan, channels):
    """How often the weak view shows the bright half on the other side."""
    images = torch.zeros(400, channels, 16, 16, dtype=torch.uint8)
    images[..., :4] = 255
    view = plan.policies["weak"](images, torch.Generator().manual_seed(0)).float()
    return (view[..., 8:].mean((1, 2, 3)) > view[..., :8].mean((1, 2, 3))).float().mean().item()


def test_photos_are_mirrored_and_digits_are_not_unless_somebody_says_so():
    assert mirrored_share(plan_for(16, 16, 1), 1) == 0
    assert 0.4 < mirrored_share(plan_for(16, 16, 3), 3) < 0.6
    assert mirrored_share(plan_for(16, 16, 3, flip=False), 3) == 0
    assert 0.4 < mirrored_share(plan_for(16, 16, 1, flip=True), 1) < 0.6


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strong_view_is_the_stronger_one(channels):
    images = torch.full((64, channels, 16, 16), 40, dtype=torch.uint8)
    images[..., 4:12, 4:12] = 200
    views = {name: policy(images, torch.Generator().manual_seed(0)) for name, policy in
             plan_for(16, 16, channels).policies.items()}  # fmt: skip
    change = {name: (view.float() - images).abs().mean().item() for name, view in views.items()}
    assert change["plain"] == 0
    assert 0 < change["weak"] < 0.9 * change["strong"]


@pytest.mark.parametrize("size", [(1, 8), (8, 1), (1, 1)])
def test_images_of_one_row_are_refused(size):
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} pixels are too small"):
        plan_for(*size, 1)


def test_a_plan_is_described_in_plain_words_that_tell_plans_apart():
    described = [plan_for(*size, channels, flip).describe() for size in SIZES[2:] for channels in (1, 3)
                 for flip in (False, True)]  # fmt: skip
    assert json.loads(json.dumps(described)) == described
    assert plan_for(8, 8, 1).describe() == plan_for(8, 8, 1).describe()
    assert plan_for(8, 8, 1).describe() != plan_for(8, 8, 1, flip=True).describe()
    assert "0x" not in json.dumps(described)  # an address would change with every start


def test_what_is_planned_for_one_method_reaches_no_other():
    plan = plan_for(28, 28, 1)
    assert plan.settings_for("fixmatch")["threshold"] == 0.0
    assert "threshold" not in plan.settings_for("flexmatch")
    assert plan.settings_for("flexmatch")["labeled_batch"] == plan.settings_for("fixmatch")["labeled_batch"] == 16
