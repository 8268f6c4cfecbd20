import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from wazuka.contract import Nudge, Observation
from wazuka.evaluation.observing import Observer, observe
from wazuka.methods.uncertainty.msp import MSP
from wazuka.methods.uncertainty.odin import ODIN, ODINSettings
from wazuka.nets import Backbone, ConvNet, Normalize

LOGITS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * 4
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> ConvNet:
    torch.manual_seed(0)
    net = ConvNet(classes=3, widths=(4, 6)).eval()
    with torch.no_grad():
        net.head.weight *= 20
    return net


def test_without_temperature_and_nudge_it_is_msp():
    seen = Observation(LOGITS, LOGITS)
    detector = ODIN(ODINSettings(size=0.0, temperature=1.0))
    torch.testing.assert_close(detector.score(seen).float(), MSP().score(seen))
    assert detector.wants.nudge is None


def test_as_the_temperature_grows_the_order_is_that_of_the_largest_over_the_mean_logit():
    score = ODIN(ODINSettings(temperature=1e7)).score(Observation(LOGITS, LOGITS))
    excess = LOGITS.double().amax(dim=1) - LOGITS.double().mean(dim=1)
    assert spearmanr(score.numpy(), -excess.numpy()).statistic == pytest.approx(1, abs=1e-12)
    assert len(score.unique()) == len(score)  # float32 would know few of them
    torch.testing.assert_close(score, 1 - 1 / 5 - excess / 5e7, rtol=0, atol=1e-12)


def test_high_means_odd():
    logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.9, 0.8]])
    sure, unsure = ODIN().score(Observation(logits, logits))
    assert unsure > sure


def test_it_scores_the_nudged_image():
    net, settings = network(), ODINSettings(size=0.01, temperature=10.0)
    detector = ODIN(settings)
    nudge = detector.wants.nudge
    assert nudge == Nudge(size=0.01, temperature=10.0)
    seen = Observer(net, [detector])(IMAGES)
    images = IMAGES.clone().requires_grad_()
    logits = net(images)
    loss = -(logits / 10).log_softmax(dim=1).gather(1, logits.argmax(dim=1, keepdim=True)).sum()
    (gradient,) = torch.autograd.grad(loss, images)
    moved = net(IMAGES - 0.01 * gradient.sign())
    torch.testing.assert_close(seen.nudged[nudge], moved.detach())
    expected = 1 - (moved / 10).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(detector.score(seen).float(), expected.detach())
    with pytest.raises(ValueError, match="Observer"):
        detector.score(observe(net, IMAGES))
    with pytest.raises(ValueError, match=r"nudged by 0\.02"):
        ODIN(ODINSettings(size=0.02, temperature=10.0)).score(seen)


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_a_nudge_makes_the_guess_likelier(temperature):
    net, nudge = network(), Nudge(size=1e-3, temperature=temperature)
    seen = observe(net, IMAGES, nudges=[nudge])
    guess = seen.logits.argmax(dim=1, keepdim=True)
    before, after = (
        (logits / temperature).double().softmax(dim=1).gather(1, guess) for logits in (seen.logits, seen.nudged[nudge])
    )
    assert (after > before).all()


class Brightness(Backbone):
    """Its only feature is the sum of the normalized pixels."""

    def __init__(self, std: float):
        super().__init__()
        self.normalize, self.head, self.feature_size = Normalize((0.5,), (std,)), nn.Linear(1, 2), 1
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            self.head.bias.zero_()

    def features(self, images):
        return self.normalize(images).flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("std", [0.25, 0.5, 2.0])
def test_a_nudge_is_measured_in_pixels_whatever_the_network_divides_them_by(std):
    images, nudge = torch.full((1, 1, 4, 4), 0.6), Nudge(size=0.01)
    seen = observe(Brightness(std), images, nudges=[nudge])
    gained = (seen.nudged[nudge] - seen.logits)[0, 0]
    torch.testing.assert_close(gained, torch.tensor(16 * 0.01 / std), atol=1e-4, rtol=1e-4)


def test_settings_are_checked():
    assert ODINSettings().size == 0  # nobody has shown it odd images to choose by
    assert ODINSettings().temperature == 1000
    for wrong in ({"size": -0.1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="size"):
            ODINSettings(**wrong)
