import copy

import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Detector, Nudge, Observation, Wants
from wazuka.evaluation.observing import Observer, fit_all, observe, score_all, together
from wazuka.methods.uncertainty.disagreement import Disagreement
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.gram import Gram
from wazuka.methods.uncertainty.knn import KNN
from wazuka.methods.uncertainty.mahalanobis import Mahalanobis
from wazuka.methods.uncertainty.msp import MSP
from wazuka.methods.uncertainty.odin import ODIN, ODINSettings
from wazuka.methods.uncertainty.react import ReAct
from wazuka.methods.uncertainty.vim import ViM
from wazuka.nets import ConvNet

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
NUDGES = (Nudge(size=0.002), Nudge(size=0.004), Nudge(size=0.002, temperature=1.0))


class Counted(ConvNet):
    """Counts the batches and images that went through."""

    passes = images = 0

    def features(self, images: Tensor) -> Tensor:
        self.passes, self.images = self.passes + 1, self.images + len(images)
        return super().features(images)


def network(seed: int = 0, classes: int = 3) -> Counted:
    torch.manual_seed(seed)
    net = Counted(classes=classes, widths=(4, 6)).eval()
    with torch.no_grad():
        net.head.weight *= 20
        net.head.bias -= net(IMAGES).mean(dim=0)
    net.passes = net.images = 0
    return net


def ten() -> dict[str, Detector]:
    return {
        "msp": MSP(), "energy": Energy(), "odin": ODIN(ODINSettings(size=0.002)), "mahalanobis": Mahalanobis(),
        "knn": KNN(), "vim": ViM(), "react": ReAct(), "gram": Gram(),
    }  # fmt: skip


def hooks(net: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._backward_hooks) for part in net.modules())


def batches(size: int = 16):
    return lambda: IMAGES.split(size)


def test_it_is_what_the_network_itself_observes():
    net = network()
    with torch.no_grad():
        plain, deep = net.observe(IMAGES), net.observe(IMAGES, layers=None)
    for nudges in ((), NUDGES):
        seen = observe(net, IMAGES, None, nudges)
        assert torch.equal(seen.logits, plain.logits)
        assert torch.equal(seen.features, plain.features)
        assert list(seen.activations) == list(deep.activations)
        assert all(torch.equal(seen.activations[name], value) for name, value in deep.activations.items())
        assert seen.head is net.head
        assert list(seen.nudged) == list(nudges)
        tensors = [seen.logits, seen.features, *seen.activations.values(), *seen.nudged.values()]
        assert not any(tensor.requires_grad for tensor in tensors)
    assert observe(net, IMAGES).activations == {}


def test_one_pass_and_one_more_for_each_nudge():
    net = network()
    observe(net, IMAGES, None)
    assert net.passes == 1
    observe(net, IMAGES, None, [*NUDGES, NUDGES[0], Nudge(size=0.0)])
    assert net.passes == 1 + 1 + 3
    seen = observe(net, IMAGES, (), [Nudge(size=0.0)])  # nowhere to go, and nothing to compute
    assert net.passes == 6
    assert torch.equal(seen.nudged[Nudge(size=0.0)], seen.logits)


@pytest.mark.parametrize("nudge", NUDGES)
def test_a_nudge_is_the_contracts(nudge):
    net, images = network(), IMAGES.double().requires_grad_()
    exact = copy.deepcopy(net).double()
    logits = exact.head(exact.features(images))
    loss = nn.functional.cross_entropy(logits / nudge.temperature, logits.argmax(dim=1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    with torch.no_grad():
        expected = net(IMAGES - nudge.size * gradient.sign().float())
    torch.testing.assert_close(observe(net, IMAGES, nudges=NUDGES).nudged[nudge], expected, atol=1e-4, rtol=1e-4)


def test_a_nudge_of_a_sure_guess_goes_the_right_way():
    """Its probability is 1 in float32, where the gradient would be nothing."""
    net, nudge = network(), Nudge(size=1e-3, temperature=1.0)
    with torch.no_grad():
        net.head.weight *= 20
        net.head.bias *= 20
    seen = observe(net, IMAGES, nudges=[nudge])
    sure = seen.logits.softmax(dim=1).amax(dim=1) == 1
    assert sure.sum() > 5
    before, after = (-logits.topk(2, dim=1).values.diff(dim=1) for logits in (seen.logits, seen.nudged[nudge]))
    assert (after > before)[sure].all()


def test_a_nudge_does_not_depend_on_the_batch():
    net = network()
    whole = observe(net, IMAGES, nudges=NUDGES)
    parts = [observe(net, image, nudges=NUDGES) for image in IMAGES.split(1)]
    for nudge in NUDGES:
        alone = torch.cat([one.nudged[nudge] for one in parts])
        torch.testing.assert_close(alone, whole.nudged[nudge], atol=1e-4, rtol=1e-4)


def test_nothing_is_left_behind():
    net = network().train()
    net.layers[1].eval()
    net.layers[0].weight.grad = torch.ones_like(net.layers[0].weight)
    modes, state = [part.training for part in net.modules()], copy.deepcopy(net.state_dict())
    images = IMAGES.clone()
    seen = observe(net, images, None, NUDGES)
    with torch.no_grad():
        assert torch.equal(seen.logits, copy.deepcopy(net).eval()(IMAGES)), "batch norm took the batch's statistics"
    assert [part.training for part in net.modules()] == modes
    assert hooks(net) == 0
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert net.layers[0].weight.grad.eq(1).all()
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if name != "layers.0.weight")
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_nothing_is_left_behind_after_an_error():
    net = network().train()

    class Broken(nn.Module):
        def forward(self, features):
            raise RuntimeError("broken")

    net.head = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        observe(net, IMAGES, None, NUDGES)
    assert hooks(net) == 0
    assert all(part.training for part in net.modules())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_gradient_mode(around):
    net, expected = network(), observe(network(), IMAGES, None, NUDGES)
    with around():
        images = IMAGES + 0
        seen = observe(net, images, None, NUDGES)
    for nudge in NUDGES:
        assert torch.equal(seen.nudged[nudge], expected.nudged[nudge])
    assert not seen.logits.requires_grad


def test_any_module_that_observes_will_do():
    class Bare(nn.Module):
        def observe(self, images: Tensor) -> Observation:
            return Observation(images.flatten(1)[:, :3] * 9, images.flatten(1))

    seen = Observer(Bare(), [MSP(), KNN(), ODIN(ODINSettings(size=0.01))])(IMAGES)
    (moved,) = seen.nudged.values()
    assert (moved.max(dim=1).values > seen.logits.max(dim=1).values).all()

    class Closed(Bare):
        @torch.no_grad()
        def observe(self, images: Tensor) -> Observation:
            return super().observe(images)

    assert torch.equal(observe(Closed(), IMAGES).logits, seen.logits)
    with pytest.raises(ValueError, match="no gradient"):
        observe(Closed(), IMAGES, nudges=NUDGES)


# An ensemble


def test_an_ensemble_averages_probabilities():
    nets = [network(seed) for seed in range(3)]
    seen = observe(nets, IMAGES, None, NUDGES)
    with torch.no_grad():
        logits = torch.stack([net(IMAGES) for net in nets])
    assert torch.equal(seen.passes, logits)
    torch.testing.assert_close(seen.logits.softmax(dim=1), logits.softmax(dim=2).mean(dim=0))
    torch.testing.assert_close(seen.logits.logsumexp(dim=1), logits.logsumexp(dim=2).mean(dim=0))  # the mean energy
    assert seen.features.shape == (40, 18)
    assert seen.head is None
    assert len(seen.activations) == 3 * len(nets[0].recorded_layers())
    names = ("2.layers.0", "0.layers.1")
    some = observe(nn.ModuleList(nets), IMAGES, names)
    assert set(some.activations) == set(names)
    assert all(torch.equal(some.activations[name], seen.activations[name]) for name in names)
    nudge = NUDGES[2]
    guess = seen.logits.argmax(dim=1, keepdim=True)
    likelier = [one.softmax(dim=1).gather(1, guess) for one in (seen.nudged[nudge], seen.logits)]
    assert (likelier[0] > likelier[1]).float().mean() > 0.9


def test_an_ensemble_of_one_says_what_its_member_says():
    net = network()
    one, member = observe([net], IMAGES), observe(net, IMAGES)
    torch.testing.assert_close(one.logits, member.logits)
    assert torch.equal(one.features, member.features)
    assert torch.equal(one.passes, member.logits[None])
    assert Disagreement().score(one).abs().max() == 0
    with pytest.raises(ValueError, match="one member"):
        observe([], IMAGES)


def test_members_may_have_passes_of_their_own():
    logits, features = torch.randn(5, 4, 3), torch.randn(4, 2)
    seen = together([Observation(logits[0], features, passes=logits[:3]), Observation(logits[3], features)])
    assert torch.equal(seen.passes, logits[[0, 1, 2, 3]])


# Many detectors


def test_an_observer_looks_at_what_is_wanted_and_no_more():
    net = network()
    assert Observer(net, [MSP(), KNN()])(IMAGES).activations == {}
    assert Observer(net, [MSP(), ODIN()])(IMAGES).nudged == {}
    assert net.passes == 2
    gram, odin = Gram(), ODIN(ODINSettings(size=0.002))
    observer = Observer(net, [odin, gram, odin])
    seen = observer(IMAGES)
    assert list(seen.activations) == net.recorded_layers()
    assert list(seen.nudged) == [odin.wants.nudge]
    net.recorded_layers = lambda: ["layers.0", "layers.4"]
    gram.fit(lambda: [observer(IMAGES)])
    del net.recorded_layers
    assert gram.wants == Wants(activations=("layers.0", "layers.4"))
    assert list(observer(IMAGES).activations) == ["layers.0", "layers.4"]  # fitted on no others


@pytest.mark.parametrize("keep", [2**30, 2000, 0])
def test_fitted_and_scored_together_as_one_by_one(keep):
    net, new, detectors = network(), IMAGES.flip(0) * 0.8, ten()
    fit_all(detectors.values(), net, batches(), keep)
    found = score_all(detectors, net, new.split(9))
    assert list(found) == list(detectors)
    for name, alone in ten().items():
        alone.fit(lambda alone=alone: (Observer(net, [alone])(part) for part in IMAGES.split(16)))
        whole = torch.cat([alone.score(Observer(net, [alone])(part)) for part in new.split(9)])
        assert torch.equal(found[name], whole), name
    assert hooks(net) == 0
    assert score_all(detectors, net, [])["msp"].shape == (0,)


def test_how_often_the_network_runs():
    def passes(detectors: list[Detector], keep: int = 2**30, size: int = 16) -> float:
        net = network()
        fit_all(detectors, net, batches(size), keep)
        assert net.images % len(IMAGES) in (0, 8, 16, 24, 32)
        return net.images / len(IMAGES)

    assert passes([MSP(), ODIN(ODINSettings(size=0.01))]) == 0  # nothing to learn
    assert passes([Mahalanobis(), KNN(), ViM(), ReAct()]) == 1
    assert passes([Gram()]) == 2
    assert passes(list(ten().values())) == 2
    assert passes([KNN()], keep=0) == 2  # counts, then keeps
    room = 16 * (3 + 6) * 4  # the first of three batches
    assert passes([KNN()], keep=room) == pytest.approx(1 + 24 / 40)
    net = network()
    score_all({"a": MSP(), "b": KNN().fit(lambda: [observe(net, IMAGES)]), "c": ODIN()}, net, IMAGES.split(20))
    assert net.passes == 2 + 2  # KNN's own two looks, and one at each batch


def test_inner_layers_are_never_held():
    """Memory: what is alive of earlier batches' inner layers while a later one is looked at."""
    import weakref

    net, alive = network(), []

    class Deep(Detector):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        @property
        def wants(self):
            return Wants(activations=("layers.0",))

        def fit(self, observations):
            for _ in range(2):
                past = []
                for one in observations():
                    assert list(one.activations) == ["layers.0"]
                    alive.append(sum(reference() is not None for reference in past))
                    past.append(weakref.ref(one.activations["layers.0"]))
                    del one
            return self

    fit_all([Deep(), KNN()], net, batches(8))
    assert max(alive) <= 1  # the loop's own
    assert len(alive) == 10


def test_a_pass_that_is_not_finished_does_no_harm():
    class Hasty(KNN):
        def fit(self, observations):
            next(iter(observations()))
            return super().fit(observations)

    net, hasty, calm = network(), Hasty(), KNN()
    fit_all([hasty, calm], net, batches())
    assert torch.equal(hasty.bank, calm.bank)
    assert net.images == len(IMAGES)


@pytest.mark.parametrize("deep", [True, False])
def test_a_pass_that_is_overtaken_does_no_harm(deep):
    class Torn(Gram if deep else KNN):
        def fit(self, observations):
            slow = iter(observations())
            first = [next(slow), *observations()]
            assert [len(one) for one in first] == [16, 16, 16, 8]
            assert [len(one) for one in slow] == [16, 8]
            return super().fit(observations)

    torn, calm = Torn(), KNN()
    fit_all([torn, calm], network(), batches())
    assert len(calm.bank) == len(IMAGES)


def test_a_detector_that_learns_from_nudged_images_gets_them_in_every_pass():
    class Nudged(Detector):
        def __init__(self, deep: bool):
            super().__init__()
            self.deep = deep
            self.register_buffer("sums", torch.zeros(2))

        @property
        def wants(self):
            return Wants(activations=("layers.0",) if self.deep else (), nudge=NUDGES[0])

        def fit(self, observations):
            self.sums = torch.stack([sum(one.nudged[NUDGES[0]].sum() for one in observations()) for _ in range(2)])
            return self

    expected = observe(network(), IMAGES, nudges=NUDGES).nudged[NUDGES[0]].sum()
    for keep in (2**30, 300, 0):
        detectors = [Nudged(True), Nudged(False)]
        fit_all(detectors, network(), batches(), keep)
        for detector in detectors:
            torch.testing.assert_close(detector.sums, expected.expand(2))


def test_some_of_an_observation_is_some_of_all_it_holds():
    net, rows = network(), torch.arange(40) % 3 == 1
    seen = observe([net, network(1)], IMAGES, None, NUDGES)
    some = seen.of(rows)
    assert len(some) == 13
    assert torch.equal(some.passes, seen.passes[:, rows])
    assert torch.equal(some.nudged[NUDGES[1]], seen.nudged[NUDGES[1]][rows])
    assert all(torch.equal(some.activations[name], seen.activations[name][rows]) for name in seen.activations)
    assert observe(net, IMAGES).of(rows).head is net.head
    assert observe(net, IMAGES).of(rows).passes is None
