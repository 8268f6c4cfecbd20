"""Networks, ignorant of how they are trained. Each takes float images in [0, 1] and brings its own normalization.

Every image network here is a `Backbone`: `features(images)` is what enters its last linear layer, `head`.
"""

from wazuka.nets.backbone import Backbone
from wazuka.nets.conv4 import Conv4
from wazuka.nets.convnet import ConvNet
from wazuka.nets.efficientnet_lite import EfficientNetLite0
from wazuka.nets.lenet import LeNet
from wazuka.nets.normalize import Normalize
from wazuka.nets.resnet import ResNet
from wazuka.nets.wideresnet import WideResNet

__all__ = ["Backbone", "Conv4", "ConvNet", "EfficientNetLite0", "LeNet", "Normalize", "ResNet", "WideResNet"]
