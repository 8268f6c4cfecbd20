import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Observation
from wazuka.errors import UserError
from wazuka.methods.uncertainty import react
from wazuka.methods.uncertainty.energy import Energy
from wazuka.methods.uncertainty.react import ReAct, ReActSettings, spread_images

D, C = 10, 4


def head(bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(D, C, bias=bias)


def features(n: int = 80, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).relu()


def seen(features: Tensor, layer: nn.Module) -> Observation:
    with torch.no_grad():
        return Observation(layer(features.float()), features, head=layer)


def fitted(known: Tensor, layer: nn.Linear, batch: int = 1000, **settings) -> ReAct:
    return ReAct(ReActSettings(**settings)).fit(lambda: [seen(part, layer) for part in known.split(batch)])


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_cut_is_numpys_percentile_of_all_features(share):
    known = features()
    detector = fitted(known, head(), batch=7, share=share)
    assert float(detector.cut) == pytest.approx(np.percentile(known.numpy(), 100 * share), rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_score_is_the_energy_of_cut_features(bias):
    layer, new = head(bias), features(20, 1)
    detector = fitted(features(), layer)
    with torch.no_grad():
        expected = -layer(new.clamp(max=float(detector.cut))).logsumexp(dim=1)
    torch.testing.assert_close(detector.score(seen(new, layer)), expected)
    assert not torch.allclose(expected, Energy().score(seen(new, layer)))


def test_with_a_cut_beyond_all_it_is_the_energy():
    layer, new = head(), seen(features(20, 1), head())
    detector = fitted(features(), layer)
    detector.cut = torch.tensor(torch.inf)
    torch.testing.assert_close(detector.score(new), Energy().score(new))


def test_high_means_odd_and_loud_features_convince_no_more():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    known = torch.tensor([[4.0, 0.0], [0.0, 4.0]]).repeat(20, 1)
    detector = fitted(known, layer)
    quiet, loud, usual = detector.score(seen(torch.tensor([[0.0, 0.0], [900.0, 0.0], [4.0, 0.0]]), layer))
    assert quiet > usual
    assert loud == usual


@pytest.mark.parametrize(("values", "kept"), [(10_000, 103), (1030, 103), (1029, 52), (300, 26), (5, 1)])
def test_kept_images_are_spread_evenly_whatever_the_batches(values, kept):
    images = torch.arange(103.0)[:, None].expand(-1, D)
    stride = -(-103 // kept)
    for batch in (1, 5, 64, 1000):
        found = spread_images(images.split(batch), values)
        assert torch.equal(found, images[:: int(2 ** np.ceil(np.log2(stride)))]), batch
        assert len(found) == kept


def test_a_sample_gives_nearly_the_same_cut(monkeypatch):
    known = features(4000)
    whole = fitted(known, head())
    monkeypatch.setattr(react, "KEPT", 12_000)
    assert float(fitted(known, head(), batch=64).cut) == pytest.approx(float(whole.cut), rel=0.05)


def test_bfloat16_features_and_weights():
    known, layer = features().bfloat16(), head()
    score = fitted(known, layer).score(seen(known, layer))
    torch.testing.assert_close(score, fitted(known.float(), layer).score(seen(known.float(), layer)))


def test_it_is_saved_whole():
    detector, new = fitted(features(), head()), seen(features(20, 1), head())
    other = fitted(features(30, 5), nn.Linear(D, 2))
    other.load_state_dict(copy.deepcopy(detector.state_dict()))
    assert torch.equal(other.score(new), detector.score(new))


def test_what_is_missing_is_said():
    known = features()
    with pytest.raises(ValueError, match=r"ReAct needs a network whose last layer is linear.*there is none"):
        ReAct().fit(lambda: [Observation(known, known)])
    with pytest.raises(ValueError, match="there is a Sequential"):
        ReAct().fit(lambda: [seen(known, nn.Sequential(head()))])
    with pytest.raises(UserError, match="there are none"):
        ReAct().fit(lambda: [])
    with pytest.raises(ValueError, match="not fitted"):
        ReAct().score(Observation(known, known))
    with pytest.raises(ValueError, match="share"):
        ReActSettings(share=90)
