from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Head
from wazuka.explain import grad_cam, look, overlay
from wazuka.explain.grad_cam import centered_logit
from wazuka.nets import Backbone
from wazuka.nets.efficientnet_lite import EfficientNetLite0


class Small(Backbone):
    """Two convolutions, batch norm and an in-place ReLU, averaged over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head, self.feature_size = nn.Linear(6, 5), 6

    def maps(self, images: Tensor) -> Tensor:
        return self.last(self.relu(self.norm(self.first(images))))

    def features(self, images: Tensor) -> Tensor:
        return self.maps(images).mean(dim=(2, 3))


class Linear(Head):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.remember(weight=weight)

    def predict(self, features: Tensor) -> Tensor:
        return (features @ self.weight.T + 0.3).softmax(dim=1)


@pytest.fixture
def net() -> Iterator[Small]:
    torch.manual_seed(0)
    net = Small().train()
    yield net
    assert not any(module._forward_hooks for module in net.modules())
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.norm.num_batches_tracked == 0


def cam(maps: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Zhou et al. 2016, Eq. 2, what is positive of it, over its maximum."""
    found = torch.stack([(weight[c][:, None, None] * m).sum(dim=0) for m, c in zip(maps, classes, strict=True)]).relu()
    return found / found.amax(dim=(1, 2), keepdim=True)


def test_on_averaged_maps_and_linear_logits_it_is_cam() -> None:
    torch.manual_seed(1)
    maps, weight, classes = torch.randn(4, 6, 3, 5, requires_grad=True), torch.randn(7, 6), torch.tensor([0, 6, 2, 2])
    logits = maps.mean(dim=(2, 3)) @ weight.T
    found = grad_cam(maps, logits.gather(1, classes[:, None])[:, 0])
    torch.testing.assert_close(found, cam(maps.detach(), weight, classes), rtol=0, atol=1e-5)
    assert found.amax(dim=(1, 2)).eq(1).all()
    assert found.min() >= 0
    assert not found.requires_grad


def test_weights_are_averaged_over_places() -> None:
    maps = torch.rand(1, 2, 2, 2, requires_grad=True)
    once = grad_cam(maps, (maps[:, 0, 0, 0] - 0.5 * maps[:, 1, 1, 1]))  # one place of each map enters the score
    expected = (maps[0, 0] - 0.5 * maps[0, 1]).detach().relu()
    torch.testing.assert_close(once[0], expected / expected.max())


def test_nothing_that_speaks_for_the_class_is_an_empty_map() -> None:
    maps = torch.rand(2, 3, 2, 2, requires_grad=True)
    found = grad_cam(maps, torch.stack([-maps[0].sum(), maps[1].sum()]))
    assert found[0].eq(0).all()
    assert found[1].max() == 1


def test_look_is_cam_of_weights_centered_over_the_classes(net: Small) -> None:
    images, weight, classes = torch.rand(5, 3, 12, 10), torch.randn(4, 6), torch.tensor([3, 0, 1, 1, 2])
    with torch.no_grad():
        maps = net.eval().maps(images)
    found = look(net.train(), Linear(weight), images, classes)
    assert found.shape == (5, 8, 6)
    torch.testing.assert_close(found, cam(maps, weight - weight.mean(dim=0), classes), rtol=0, atol=1e-5)
    torch.testing.assert_close(look(net, Linear(weight + torch.randn(6)), images, classes), found, rtol=0, atol=1e-4)
    torch.testing.assert_close(look(net, Linear(weight).predict, images, classes), found)
    other = look(net, Linear(weight.flip(0)), images, classes)
    assert (other - found).abs().max() > 0.1  # Adebayo et al. 2018: another classifier looks elsewhere


def test_each_image_is_looked_at_alone(net: Small) -> None:
    images, head, classes = torch.rand(37, 3, 9, 9), Linear(torch.randn(4, 6)), torch.arange(37) % 4
    together = look(net, head, images, classes)  # two passes
    for n in (0, 31, 32, 36):
        torch.testing.assert_close(look(net, head, images[n : n + 1], classes[n : n + 1])[0], together[n])
    assert look(net, head, images[:0], classes[:0]).shape[0] == 0


def test_a_sure_classifier_can_still_be_looked_at(net: Small) -> None:
    images, weight = torch.rand(2, 3, 9, 9), torch.randn(3, 6)
    with torch.no_grad():
        features = net.eval().features(images)
    sure = weight * 30 / (features @ weight.T).abs().max()
    classes = Linear(sure).predict(features).argmax(dim=1)
    expected = cam(net.maps(images).detach(), sure - sure.mean(dim=0), classes)
    torch.testing.assert_close(look(net.train(), Linear(sure), images, classes), expected, rtol=0, atol=1e-4)


def test_centered_logit_recovers_the_logit() -> None:
    logits = torch.tensor([[3.0, -1.0, 40.0], [0.5, 0.0, -0.5]], dtype=torch.float64)
    found = centered_logit(logits.softmax(dim=1).float(), torch.tensor([2, 0]))
    torch.testing.assert_close(found, torch.tensor([26.0, 0.5]), rtol=0, atol=1e-4)
    assert centered_logit(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).isfinite().all()


def test_bytes_are_taken_for_256ths(net: Small) -> None:
    images, head = torch.randint(256, (2, 3, 9, 9), dtype=torch.uint8), Linear(torch.randn(4, 6))
    classes = torch.tensor([1, 3])
    torch.testing.assert_close(look(net, head, images, classes), look(net, head, images.float() / 255, classes))


def test_a_named_layer_may_be_looked_at(net: Small) -> None:
    images, head, classes = torch.rand(3, 3, 9, 9), Linear(torch.randn(4, 6)), torch.tensor([0, 1, 2])
    torch.testing.assert_close(look(net, head, images, classes, layer="last"), look(net, head, images, classes))
    plain = nn.Sequential(net.first, net.norm, net.last, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # no Backbone
    with torch.no_grad():
        net.eval()
        expected = cam(plain[:3](images), head.weight - head.weight.mean(dim=0), classes)
        net.train()
    torch.testing.assert_close(look(plain, head, images, classes, layer="2"), expected, rtol=0, atol=1e-5)


def test_later_in_place_layers_dont_write_on_the_maps(net: Small) -> None:
    images, head = torch.rand(2, 3, 9, 9), Linear(torch.randn(4, 6))
    found = look(net, head, images, torch.tensor([0, 1]), layer="norm")
    maps = net.eval().norm(net.first(images)).detach().requires_grad_()
    net.train()
    features = net.last(maps.relu()).mean(dim=(2, 3))
    score = centered_logit(head.predict(features), torch.tensor([0, 1]))
    torch.testing.assert_close(found, grad_cam(maps, score))


def test_it_works_where_gradients_are_off(net: Small) -> None:
    head, classes = Linear(torch.randn(4, 6)), torch.tensor([0, 1])
    images = torch.rand(2, 3, 9, 9)
    expected = look(net, head, images, classes)
    with torch.no_grad():
        torch.testing.assert_close(look(net, head, images, classes), expected)
    with torch.inference_mode():
        for layer in (None, "last"):
            torch.testing.assert_close(look(net, head, images.clone(), classes.clone(), layer), expected)


def test_what_cant_be_looked_at_is_told_in_a_sentence_and_leaves_nothing_behind(net: Small) -> None:
    images, head, classes = torch.rand(2, 3, 9, 9), Linear(torch.randn(4, 6)), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="without gradient"):
        look(net, lambda features: head.predict(features).detach(), images, classes)
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        look(net, head, images, classes, layer="nowhere")
    with pytest.raises(ValueError, match="not maps"):
        look(nn.Sequential(nn.Flatten(), nn.Linear(243, 6)), head, images, classes, layer="1")
    with pytest.raises(ValueError, match="no maps"):
        look(nn.Flatten(), head, images, classes)
    with pytest.raises(ValueError, match="one class an image"):
        look(net, head, images, classes[:1])
    with pytest.raises(ValueError, match="ran 2 times"):
        look(nn.Sequential(same := nn.Conv2d(3, 3, 3), same, nn.Flatten()), head, images, classes, layer="0")
    with pytest.raises(RuntimeError):  # too small for the second convolution: an error inside the pass
        look(net, head, torch.rand(2, 3, 4, 4), classes, layer="first")


def test_the_maps_of_efficientnet_lite_are_what_its_features_average() -> None:
    torch.manual_seed(0)
    net, images, classes = EfficientNetLite0(classes=5).eval(), torch.rand(2, 3, 64, 64), torch.tensor([4, 1])
    with torch.no_grad():
        maps = net.maps(images)
        torch.testing.assert_close(net.features(images), maps.mean(dim=(2, 3)))
    found = look(net, lambda features: net.head(features).softmax(dim=1), images, classes)
    weight = net.head.weight.detach()
    torch.testing.assert_close(found, cam(maps, weight - weight.mean(dim=0), classes), rtol=0, atol=1e-4)


def test_the_overlay_is_gray_where_nothing_is_and_warm_where_the_evidence_is() -> None:
    torch.manual_seed(0)
    photo = torch.randint(60, 200, (3, 32, 48), dtype=torch.uint8)
    heat = torch.zeros(4, 6)
    heat[:, 3:] = 1
    shown = overlay(photo, heat)
    assert shown.shape == photo.shape
    assert shown.dtype == torch.uint8
    cold, warm = shown[:, :, :16].float(), shown[:, :, 32:].float()
    assert (cold.amax(dim=0) - cold.amin(dim=0)).max() <= 1
    assert (warm[0] - warm[2]).mean() > 40
    gray = (photo.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)
    for part, of in ((cold, gray[:, :16]), (warm, gray[:, 32:])):  # the photo shows through
        assert torch.corrcoef(torch.stack([part.mean(dim=0).flatten(), of.flatten()]))[0, 1] > 0.8
    assert overlay(photo[:1], heat).shape == (3, 32, 48)
    assert photo.max() < 200  # not written on
