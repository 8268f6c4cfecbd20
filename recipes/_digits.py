"""scikit-learn's 1,797 digits for the small checks: all of them in one pool, and the small network of the checks."""

import numpy as np
import torch
from torch import Tensor, nn

from wazuka.data import open_images
from wazuka.data.streams import Pool
from wazuka.nets import Backbone, Normalize


def all_digits() -> tuple[Tensor, Tensor]:
    """(1797, 1, 8, 8) uint8 and (1797,) labels; the seed of a check splits them anew."""
    data = open_images("digits")
    assert data.test is not None
    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    return torch.from_numpy(images), torch.from_numpy(labels)


def unlabeled(images: Tensor) -> Pool:
    return Pool(images, torch.full((len(images),), -1))


class ThreeConvolutions(Backbone):
    """conv3x3-norm-ReLU three times, 2x2 max-pooling after the second, global average pooling, linear head.

    Every convolution, norm and ReLU is recorded. `middle` is the map after the pooling, 4x4 for digits.

    norm  False: no batch norm, and the convolutions have a bias instead
    """

    def __init__(self, widths: tuple[int, int, int], classes: int, norm: bool = True):
        super().__init__()
        self.normalize = Normalize()
        blocks, inputs = [], 1
        for width in widths:
            convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=not norm)
            blocks.append(nn.Sequential(convolution, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()))
            inputs = width
        self.blocks, self.pool = nn.ModuleList(blocks), nn.MaxPool2d(2)
        self.feature_size = inputs
        self.head = nn.Linear(inputs, classes)

    def recorded_layers(self) -> list[str]:
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
        return [name for name, module in self.named_modules() if isinstance(module, kinds)]

    def middle(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, C, H / 2, W / 2)."""
        return self.pool(self.blocks[1](self.blocks[0](self.normalize(images))))

    def features(self, images: Tensor) -> Tensor:
        return self.blocks[2](self.middle(images)).mean(dim=(2, 3))
