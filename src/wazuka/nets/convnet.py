"""A plain convolutional network for small images: pairs of 3x3 convolutions, max-pooling between the pairs."""

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.backbone import Backbone, glorot_linear, initialize_he_fan_out
from wazuka.nets.normalize import Normalize


class ConvNet(Backbone):
    """conv-norm-LeakyReLU twice per stage, 2x2 max-pooling between stages, global average pooling, linear head.

    channels  of the images
    classes   C
    widths    channels of each stage; 8x8 images carry two stages, 28x28 three
    momentum  of batch norm
    stride    of the first convolution; 2 makes everything after it four times cheaper
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: tuple[int, ...] = (32, 64),
        momentum: float = 0.01,
        stride: int = 1,
    ):
        super().__init__()
        self.normalize = Normalize()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, width in enumerate(widths):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(2):
                size, step, margin = (3, 1, 1) if layers or stride == 1 else (2 * stride + 1, stride, stride)
                layers += [
                    nn.Conv2d(inputs, width, size, step, margin, bias=False),  # the norm brings the bias
                    nn.BatchNorm2d(width, momentum=momentum),
                    nn.LeakyReLU(0.1, inplace=True),
                ]
                inputs = width
        self.layers = nn.Sequential(*layers)
        self.feature_size = inputs
        initialize_he_fan_out(self)
        self.head = glorot_linear(inputs, classes)

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.layers(self.normalize(images)), 1).flatten(1)
