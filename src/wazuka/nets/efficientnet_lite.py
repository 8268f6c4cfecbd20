"""EfficientNet-Lite0: 4.7 million parameters, 0.4 G multiply-adds at 224 pixels, no squeeze-excitation, ReLU6.

Tan & Le 2019, arXiv:1905.11946; the Lite variant is tensorflow/tpu, models/official/efficientnet/lite. Padding is
TensorFlow's "same", found from each input's own size, so that images of any size may come in. Batch norm's epsilon is
1e-3 and its momentum 0.01, TensorFlow's 0.99. Dropout of 0.2 before the head and stochastic depth, which the authors
train with, are left out: here the network extracts features or is tuned for a few steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.backbone import Backbone, initialize_he_fan_out
from wazuka.nets.normalize import Normalize

STAGES = (  # kernel, stride, expansion, channels out, blocks: lite/efficientnet_lite_builder.py
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: ceil(size / stride) outputs, the odd pixel at the far side."""

    def forward(self, x: Tensor) -> Tensor:
        above, below = self._padding(x.shape[2], 0)
        left, right = self._padding(x.shape[3], 1)
        if (above, left) == (below, right):
            return F.conv2d(x, self.weight, self.bias, self.stride, (above, left), self.dilation, self.groups)
        padded = F.pad(x, (left, right, above, below))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return missing // 2, missing - missing // 2


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm."""
    conv = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel, narrow by 1x1; the input is added where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = conv_norm(inputs, inner) if expansion != 1 else None
        self.depthwise = conv_norm(inner, inner, kernel, stride, groups=inner)
        self.project = conv_norm(inner, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        inner = self.project(F.relu6(self.depthwise(inner)))
        return x + inner if self.residual else inner


class EfficientNetLite0(Backbone):
    """Features of 1,280 numbers, the mean of the last layer over the image, each in [0, 6].

    classes   of the head; ImageNet's weights have 1,000
    """

    input_size = 224

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.normalize = Normalize((127 / 255,), (128 / 255,))  # TensorFlow's (x - 127) / 128 on 0...255
        self.stem = conv_norm(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        width = 32
        for kernel, stride, expansion, outputs, count in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(width, outputs, kernel, stride if index == 0 else 1, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_norm(width, 1280)
        self.feature_size = 1280
        self.head = nn.Linear(1280, classes)
        initialize_he_fan_out(self)

    def maps(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] -> (N, 1280, ceil(H / 32), ceil(W / 32)), whose mean is the features."""
        x = F.relu6(self.stem(self.normalize(images)))
        return F.relu6(self.last(self.blocks(x)))

    def features(self, images: Tensor) -> Tensor:
        return self.maps(images).mean(dim=(2, 3))


def from_reference(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `efficientnet-lite0-57934424.pth`, as a state_dict of EfficientNetLite0(1000).

    Its names are those of the PyTorch port by lukemelas; the order of the layers is the same in both.
    """
    layers = {"_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
              "_project_conv": "project.0", "_bn2": "project.1"}  # fmt: skip
    outer = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "last.0", "_bn1": "last.1", "_fc": "head"}
    state = {}
    for name, value in weights.items():
        path = name.split(".")
        if path[0] == "_blocks":
            state[".".join(["blocks", path[1], layers[path[2]], *path[3:]])] = value
        else:
            state[".".join([outer[path[0]], *path[1:]])] = value
    return state


def fuse(net: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place: the same function in eval mode, in fewer passes.

    The network can't be trained any further.
    """
    for name, module in list(net.named_children()):
        if (
            isinstance(module, nn.Sequential) and len(module) == 2
            and isinstance(module[0], nn.Conv2d) and isinstance(module[1], nn.BatchNorm2d)
        ):  # fmt: skip
            setattr(net, name, torch.nn.utils.fusion.fuse_conv_bn_eval(module[0].eval(), module[1].eval()))
        else:
            fuse(module)
    return net
