import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch
from wazuka.functional.uncertainty import mutual_information
from wazuka.methods.uncertainty.mc_dropout import MCDropout, MCDropoutSettings, thinned
from wazuka.nets import Backbone, ConvNet


class Dropping(Backbone):
    """Dropout of its own in three places, one of them twice, and batch norm."""

    def __init__(self, p: float = 0.3):
        super().__init__()
        self.feature_size = 16
        self.first, self.norm, self.maps = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(p)
        self.hidden, self.units, self.head = nn.Linear(8, 16), nn.Dropout(p), nn.Linear(16, 4)

    def features(self, images: Tensor) -> Tensor:
        maps = self.maps(self.norm(self.first(images)).relu())
        return self.units(self.hidden(self.units(maps.mean(dim=(2, 3)))).relu())


def plain() -> ConvNet:
    return ConvNet(1, 4, (8, 8), momentum=0.1)


def a_method(make=plain, **changes) -> MCDropout:
    torch.manual_seed(0)
    return MCDropout(make(), MCDropoutSettings(**({"passes": 6} | changes))).eval()


def pictures(n: int = 10) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


both = pytest.mark.parametrize("make", [plain, Dropping])


@both
@torch.no_grad()
def test_answers_are_the_mean_of_passes_that_differ(make) -> None:
    method, images = a_method(make), pictures()
    passes, probs, seen = method.passes(images), method.predict(images), method.observe(images)
    assert passes.shape == (6, 10, 4)
    torch.testing.assert_close(probs, passes.softmax(-1).mean(0))
    torch.testing.assert_close(seen.logits.softmax(1), probs)
    assert seen.passes is not None
    torch.testing.assert_close(seen.passes, passes)
    assert (mutual_information(passes) > 0).all()
    assert all(not torch.allclose(passes[t], passes[t + 1]) for t in range(5))


@both
@torch.no_grad()
def test_an_answer_depends_on_neither_company_nor_history(make) -> None:
    method, images = a_method(make), pictures()
    together = method.predict(images)
    torch.rand(5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(method.predict(images), together)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(torch.cat([method.predict(one) for one in images.split(1)]), together)
    other = a_method(make, seed=1)
    assert not torch.allclose(other.predict(images), together, atol=1e-4)


@both
@torch.no_grad()
def test_asking_changes_no_mode_statistic_or_hook(make) -> None:
    method, images = a_method(make), pictures()
    before = copy.deepcopy(method.state_dict())
    method.predict(images)
    method.observe(images)
    assert not any(module.training for module in method.modules())
    assert not any(module._forward_hooks for module in method.modules())
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(RuntimeError):
        method.predict(images[:, :, :1, 0])
    assert not any(module._forward_hooks for module in method.modules())


@torch.no_grad()
def test_batch_norm_answers_by_its_running_statistics() -> None:
    """With dropout of nothing, passes are what eval mode says: `model.train()` would normalize by the batch."""
    method, images = a_method(lambda: Dropping(0.0)), pictures()
    passes = method.passes(images)
    assert (passes == passes[0]).all()
    torch.testing.assert_close(passes[0], method.net(images))
    method = a_method(dropout=0.0)
    passes = method.passes(images)
    assert (passes == passes[0]).all()
    torch.testing.assert_close(passes[0], method.net(images))


@torch.no_grad()
def test_a_pass_drops_the_same_units_of_all_images_and_others_elsewhere() -> None:
    units, maps = nn.Dropout(0.5), nn.Dropout2d(0.5)
    net = nn.Sequential(units, nn.Identity(), units, maps).eval()
    with thinned(net, 3):
        first, second = net[0](torch.ones(4, 64)), net[2](torch.ones(4, 64))
        channels = net[3](torch.ones(4, 64, 3, 3))
    for dropped in (first, second):
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        assert (dropped == dropped[0]).all()
    assert not torch.equal(first, second), "a module used twice drops the same units"
    assert (channels == channels[:1, :, :1, :1]).all()
    with thinned(net, 3):
        assert torch.equal(net[0](torch.ones(4, 64)), first)
    with thinned(net, 4):
        assert not torch.equal(net[0](torch.ones(4, 64)), first)
    assert net[0](torch.ones(4, 64)).eq(1).all()


@torch.no_grad()
def test_scale_is_kept_on_average() -> None:
    layer, seen = nn.Dropout(0.3).eval(), []
    for seed in range(200):
        with thinned(layer, seed):
            seen.append(layer(torch.ones(1, 200)))
    assert torch.cat(seen).mean().item() == pytest.approx(1, abs=0.01)


@torch.no_grad()
def test_more_passes_vary_less() -> None:
    """The variance of a mean of T passes falls as 1 / T."""
    images = pictures(4)
    spread = {}
    for passes in (2, 16):
        answers = [a_method(passes=passes, seed=seed).predict(images) for seed in range(60)]
        spread[passes] = torch.stack(answers).var(dim=0).mean()
    assert spread[2] / spread[16] == pytest.approx(8, rel=0.35)


def test_training_drops_of_every_image_anew_before_the_head() -> None:
    method, images = a_method(dropout=0.4).train(), pictures(32)
    assert isinstance(method.net.head, nn.Sequential)
    dropped = method.net.head[0](torch.ones(32, 100))
    assert not (dropped == dropped[0]).all()
    batch = Batch(images=images, labels=torch.arange(32) % 4)
    torch.manual_seed(3)
    loss, _ = method.loss(batch, 0.0)
    torch.manual_seed(3)
    torch.testing.assert_close(loss, F.cross_entropy(method.net(images), batch.labels))


@torch.no_grad()
def test_a_networks_own_dropout_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    net = Dropping()
    head = net.head
    method = MCDropout(net)
    assert method.net.head is head
    assert not method.only_the_head


@torch.no_grad()
def test_features_run_once_where_only_the_head_drops() -> None:
    method, images, runs = a_method(), pictures(), []
    method.net.layers.register_forward_hook(lambda *_: runs.append(1))
    passes = method.passes(images)
    assert len(runs) == 1
    with thinned(method.net, 0, 2):
        torch.testing.assert_close(passes[2], method.net(images))


def test_what_cannot_be_thinned_is_refused() -> None:
    net = plain()
    net.layers.append(nn.AlphaDropout(0.1))
    with pytest.raises(ValueError, match="alpha"):
        MCDropout(net)


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"passes": 0}, {"labeled_batch": 0}, {"view": "odd"}])
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MCDropoutSettings(**wrong)
