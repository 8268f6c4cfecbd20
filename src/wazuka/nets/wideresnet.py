"""Wide residual networks as google-research/fixmatch builds them (libml/models.py): WRN-28-2 and its relatives.

Zagoruyko & Komodakis 2016, arXiv:1605.07146. Differs from TensorFlow's code in one pixel: stride-2 convolutions pad
both sides by one, not (0, 1). Batch norm's epsilon is 1e-3 and its momentum 0.001, TensorFlow's 0.999.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.backbone import Backbone, glorot_linear, initialize_he_fan_out
from wazuka.nets.normalize import Normalize


class Block(nn.Module):
    """Pre-activation residual block. The network's very first block also feeds its shortcut the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool, momentum: float):
        super().__init__()
        self.first = first
        self.norm1 = nn.BatchNorm2d(inputs, eps=1e-3, momentum=momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs, eps=1e-3, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.norm1(x), 0.1)
        inner = self.conv2(F.leaky_relu(self.norm2(self.conv1(activated)), 0.1))
        if self.shortcut is None:
            return x + inner
        return self.shortcut(activated if self.first else x) + inner


class WideResNet(Backbone):
    """WRN-28-2 by default: 1,469,642 parameters and 0.214 G multiply-adds for 10 classes at 32x32x3.

    channels  of the images
    classes   C
    filters   channels of the first stage; doubled per stage (32: "-2", 128: "-8")
    scales    stages: 3 for 32x32 (WRN-28), 4 for 96x96 (WRN-37)
    repeat    blocks a stage
    momentum  of batch norm; 0.001 suits 2^20 steps, 0.01 to 0.1 a run of under 10,000
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        filters: int = 32,
        scales: int = 3,
        repeat: int = 4,
        momentum: float = 0.001,
    ):
        super().__init__()
        self.normalize = Normalize()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1)
        blocks: list[nn.Module] = []
        width = 16
        for scale in range(scales):
            for index in range(repeat):
                stride = 2 if scale > 0 and index == 0 else 1
                blocks.append(Block(width, filters << scale, stride, first=not blocks, momentum=momentum))
                width = filters << scale
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width, eps=1e-3, momentum=momentum)
        self.feature_size = width
        initialize_he_fan_out(self)
        self.head = glorot_linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.normalize(images)))
        return F.leaky_relu(self.norm(x), 0.1).mean(dim=(2, 3))
