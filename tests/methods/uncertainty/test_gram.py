import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wazuka.contract import Observation
from wazuka.errors import UserError
from wazuka.methods.uncertainty.gram import Gram, GramSettings, deviation, gram_values
from wazuka.nets import ConvNet


def by_hand(activation: torch.Tensor, power: int) -> torch.Tensor:
    """The authors' G_p, with the whole matrix."""
    flat = (activation**power).reshape(*activation.shape[:2], -1)
    sums = (flat @ flat.mT).sum(dim=2)
    return sums.sign() * sums.abs() ** (1 / power)


def network(seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    net = ConvNet(classes=3, widths=(4, 6)).eval()
    with torch.no_grad():  # so that it does not take all noise for one class
        net.head.weight *= 20
        net.head.bias -= net(torch.rand(100, 1, 8, 8)).mean(dim=0)
    return net


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def observing(net: ConvNet, images: torch.Tensor, batch: int = 16, factor: float = 1.0):
    @torch.no_grad()
    def observations():
        for part in images.split(batch):
            seen = net.observe(part, layers=None)
            yield Observation(seen.logits, seen.features, {k: a * factor for k, a in seen.activations.items()})

    return observations


def held_out_mask(n: int, share: float = 0.1) -> torch.Tensor:
    return (torch.arange(1, n + 1, dtype=torch.float64) * (5**0.5 - 1) / 2) % 1 < share


def test_values_are_the_row_sums_of_the_whole_matrix():
    activation = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    values = gram_values(activation, powers=10)
    assert values.shape == (5, 10, 4)
    for power in range(1, 11):
        torch.testing.assert_close(values[:, power - 1], by_hand(activation, power))
    plain = (activation * activation.sum(dim=1, keepdim=True)).sum(dim=(2, 3))  # p = 1: F_c . sum_d F_d
    torch.testing.assert_close(values[:, 0], plain)
    assert (values < 0).any()


def test_tenth_powers_neither_overflow_nor_vanish():
    activation = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))  # odd powers may cancel to near 0
    for factor in (1e-15, 1e15):  # float32; the twentieth power is beyond float64 as well
        scaled = gram_values(activation * factor, 10) / factor**2
        torch.testing.assert_close(scaled, gram_values(activation, 10), rtol=1e-5, atol=0)
    faint = torch.tensor([[1.0, 1e-3]])[:, :, None]  # its twentieth power is nothing to float32
    torch.testing.assert_close(gram_values(faint, 10)[0, 9, 1], torch.tensor((1e-30 + 1e-60) ** 0.1).double())
    assert gram_values(torch.zeros(2, 3, 4, 4), 10).eq(0).all()


def test_vectors_are_layers_too():
    activation = torch.randn(3, 4)
    torch.testing.assert_close(gram_values(activation, 3), gram_values(activation[:, :, None, None], 3))


def test_deviation_by_hand():
    low, high = torch.tensor([[[1.0, -2.0, 0.0]]]), torch.tensor([[[2.0, -1.0, 4.0]]])
    values = torch.tensor([[[0.5, -4.0, 5.0]], [[3.0, -0.5, -1e-3]], [[1.0, -1.0, 2.0]]])
    floor = torch.tensor(1e-3)
    expected = torch.tensor([0.5 / 1.001 + 2 / 2.001 + 1 / 4.001, 1 / 2.001 + 0.5 / 1.001 + 1.0, 0.0])
    torch.testing.assert_close(deviation(values, low, high, floor), expected)


def test_channel_that_never_fired_is_left_out():
    low, high = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert deviation(torch.tensor([[[0.5, 0.5]]]), low, high, torch.tensor(1e-6)) == 0


def test_images_the_ranges_come_from_deviate_by_exactly_nothing(images):
    net, held_out = network(), held_out_mask(60)
    detector = Gram().fit(observing(net, images))
    fitted = torch.cat([detector.deviations(o)[~held_out[i * 16 : i * 16 + len(o)]]
                        for i, o in enumerate(observing(net, images)())])  # fmt: skip
    assert len(fitted) == 54
    assert fitted.eq(0).all()
    rest = torch.cat([detector.deviations(o) for o in observing(net, images[held_out])()])
    assert rest.gt(0).any(dim=1).sum() >= 3
    torch.testing.assert_close(detector.expected, rest.mean(dim=0) + 1e-7)


def test_ranges_belong_to_the_predicted_class(images):
    net = network()
    detector = Gram(GramSettings(powers=2)).fit(observing(net, images))
    seen = net.observe(images[~held_out_mask(60)], layers=None)
    predicted = seen.logits.argmax(dim=1)
    assert len(predicted.unique()) > 1
    for label in predicted.unique():
        of_class = [gram_values(a[predicted == label], 2) for a in seen.activations.values()]
        torch.testing.assert_close(detector.low[label], torch.cat(of_class, dim=2).amin(dim=0))
        torch.testing.assert_close(detector.high[label], torch.cat(of_class, dim=2).amax(dim=0))


def test_class_never_predicted_gets_the_range_of_all(images):
    net = network()
    with torch.no_grad():
        net.head.bias[2] = -1e9
    detector = Gram(GramSettings(powers=2)).fit(observing(net, images))
    torch.testing.assert_close(detector.low[2], detector.low[:2].amin(dim=0))
    torch.testing.assert_close(detector.high[2], detector.high[:2].amax(dim=0))


def test_scale_of_the_activations_does_not_matter(images):
    net, odd = network(), network().observe(1 - images, layers=None)
    plain, scaled = (Gram().fit(observing(net, images, factor=factor)) for factor in (1.0, 1024.0))
    torch.testing.assert_close(scaled.high, plain.high * 1024**2)
    larger = Observation(odd.logits, odd.features, {k: a * 1024 for k, a in odd.activations.items()})
    assert plain.deviations(odd).gt(0).any()
    torch.testing.assert_close(scaled.deviations(larger), plain.deviations(odd), rtol=1e-12, atol=0)


def test_score_is_the_sum_of_deviations_against_the_expected_and_high_means_odd(images):
    net = network()
    detector = Gram().fit(observing(net, images))
    odd = net.observe(torch.rand(20, 1, 8, 8) * 3 - 1, layers=None)
    score = detector.score(odd)
    assert score.shape == (20,)
    torch.testing.assert_close(score, (detector.deviations(odd) / detector.expected).sum(dim=1).float())
    usual = detector.score(net.observe(images, layers=None))
    assert score.min() > usual.median()


def test_doubt_makes_an_image_odder():
    logits = torch.tensor([[9.0, 0.0], [0.1, 0.0]])
    activations = {"layer": torch.tensor([[1.0, 2.0], [1.0, 2.0]])}
    detector = Gram().fit(lambda: [Observation(torch.zeros(30, 2), torch.zeros(30, 1), {"layer": torch.rand(30, 2)})])
    sure, unsure = detector.deviations(Observation(logits, torch.zeros(2, 1), activations))
    torch.testing.assert_close(unsure * torch.tensor(0.1).sigmoid(), sure * torch.tensor(9.0).sigmoid())


def test_saved_and_loaded_it_scores_the_same(images, tmp_path):
    net, other = network(), torch.rand(9, 1, 8, 8)
    fitted = Gram().fit(observing(net, images))
    save_file(fitted.state_dict(), tmp_path / "gram.safetensors")
    loaded = Gram()
    loaded.load_state_dict(load_file(tmp_path / "gram.safetensors"))
    assert loaded.layers == net.recorded_layers()
    assert torch.equal(loaded.score(net.observe(other, loaded.layers)), fitted.score(net.observe(other, layers=None)))
    holder = nn.ModuleDict({"detector": Gram()})  # as a part of something larger, and over an earlier fit
    holder["detector"].fit(observing(network(1), images[:20]))
    holder.load_state_dict({f"detector.{name}": value for name, value in fitted.state_dict().items()})
    assert torch.equal(holder["detector"].low, fitted.low)
    with pytest.raises(RuntimeError, match="Missing key"):
        Gram().load_state_dict({})


def test_batches_and_a_second_fit_make_no_difference(images):
    net = network()
    once, again = Gram().fit(observing(net, images, batch=60)), Gram().fit(observing(network(3), images))
    again.fit(observing(net, images, batch=7))
    torch.testing.assert_close(again.high, once.high, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.expected, once.expected, rtol=1e-2, atol=1e-6)


def test_one_image_in_ten_is_held_out_whatever_their_order():
    labels = torch.arange(1000) % 10  # sorted in turns: every tenth image is of one class
    chosen = labels[held_out_mask(1000)]
    assert 99 <= len(chosen) <= 101
    assert chosen.bincount(minlength=10).min() >= 9


def test_only_the_layers_it_knows_count(images):
    net = network()
    detector = Gram().fit(lambda: (net.observe(part, ["layers.0", "layers.7"]) for part in images.split(20)))
    assert detector.layers == ["layers.0", "layers.7"]
    assert detector.widths.tolist() == [4, 6]
    torch.testing.assert_close(
        detector.score(net.observe(images, layers=None)), detector.score(net.observe(images, ["layers.7", "layers.0"]))
    )
    with pytest.raises(ValueError, match=r"layers\.7"):
        detector.score(net.observe(images, ["layers.0"]))


def test_what_is_missing_is_said(images):
    net = network()
    with pytest.raises(ValueError, match="not fitted"):
        Gram().score(net.observe(images, layers=None))
    with pytest.raises(ValueError, match="inner layers"):
        Gram().fit(lambda: [net.observe(images)])
    with pytest.raises(UserError, match="there are none"):
        Gram().fit(lambda: [])
    with pytest.raises(UserError, match="too few"):
        Gram().fit(observing(net, images[:1]))
    for bad in ({"powers": 0}, {"held_out": 0.0}, {"held_out": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GramSettings(**bad)
