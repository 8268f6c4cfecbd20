"""Residual networks for CIFAR: ResNet-32 and its relatives (He et al. 2016, arXiv:1512.03385, Sec. 4.2).

As hankook/SLA builds them (models/cifar_resnet.py), after facebook/fb.resnet.torch: where the width doubles, the
shortcut takes every other pixel and fills up with channels of zeros, so that no shortcut has a parameter (option A).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.backbone import Backbone, initialize_he_fan_out
from wazuka.nets.normalize import Normalize


class BasicBlock(nn.Module):
    """conv3x3 - norm - ReLU - conv3x3 - norm, added to the shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, momentum: float):
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(F.pad(shortcut, (0, 0, 0, 0, 0, self.added)) + inner)


class ResNet(Backbone):
    """ResNet-32 by default: 464,154 parameters and 69 M multiply-adds for 10 classes at 32x32x3.

    channels  of the images
    classes   C
    blocks    a stage; 3, 5, 7, 9, 18 make ResNet-20, -32, -44, -56, -110
    widths    channels of each stage, never falling; from the second on, a stage halves the sides
    momentum  of batch norm; PyTorch's, which the authors keep
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        blocks: int = 5,
        widths: tuple[int, ...] = (16, 32, 64),
        momentum: float = 0.1,
    ):
        super().__init__()
        if list(widths) != sorted(widths) or blocks < 1:
            raise ValueError(f"widths must never fall and blocks be at least 1, got {widths} and {blocks}")
        self.normalize = Normalize()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0], momentum=momentum)
        made: list[nn.Module] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for index in range(blocks):
                made.append(BasicBlock(inputs, width, 2 if stage > 0 and index == 0 else 1, momentum))
                inputs = width
        self.blocks = nn.Sequential(*made)
        self.feature_size = inputs
        self.head = nn.Linear(inputs, classes)
        initialize_he_fan_out(self)

    def features(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(self.normalize(images))))
        return self.blocks(x).mean(dim=(2, 3))
