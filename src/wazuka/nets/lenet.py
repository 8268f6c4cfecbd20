"""LeNet as ADDA's digits code builds it (erictzeng/adda, adda/models/lenet.py)."""

import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.backbone import Backbone


class LeNet(Backbone):
    """conv 20@5x5, conv 50@5x5 (valid, ReLU, 2x2 max-pooling), fc 500, fc `classes`; 28x28 gray images in [0, 1].

    Every layer starts Xavier-uniform with zero bias. There is no normalization: the released code subtracts no mean.
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.hidden, self.head = nn.Linear(800, 500), nn.Linear(500, classes)
        self.feature_size = 500
        for layer in (self.conv1, self.conv2, self.hidden, self.head):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def features(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.hidden(x.flatten(1)))
