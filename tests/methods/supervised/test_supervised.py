import pytest
import torch
import torch.nn.functional as F

from wazuka.contract import Batch
from wazuka.methods.supervised.supervised import Supervised, SupervisedSettings
from wazuka.nets import ConvNet


def test_it_is_cross_entropy_on_the_labeled_images_alone() -> None:
    method = Supervised(ConvNet(1, 3, (4,)))
    batch = Batch(images=torch.rand(4, 1, 8, 8), labels=torch.tensor([0, 1, 2, 1]))
    loss, parts = method.loss(batch, 0.5)
    torch.testing.assert_close(loss, F.cross_entropy(method.net(batch.images), batch.labels))
    assert not parts["supervised"].requires_grad
    (stream,) = method.streams()
    assert stream.pool == "labeled"


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_floor_has_two_heights(view: str) -> None:
    settings = SupervisedSettings(view=view)
    assert Supervised(ConvNet(1, 3, (4,)), settings).streams()[0].views == {"images": view}


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(ValueError, match="weak"):
        SupervisedSettings(view="medium")
