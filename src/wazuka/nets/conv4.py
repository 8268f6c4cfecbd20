"""Conv-4, the common backbone of few-shot learning (Vinyals et al. 2016; Snell et al. 2017, Sec. 3.1)."""

from torch import Tensor, nn


class Conv4(nn.Module):
    """Four blocks of conv3x3 - batch norm - ReLU - 2x2 max-pooling, flattened: images -> embedding, no head.

    28x28x1 gives 64 numbers, 84x84x3 gives 1,600. Images float in [0, 1]; there is no normalization, as in
    jakesnell/prototypical-networks (invert Omniglot first: strokes are 1 on 0).

    channels  of the images
    width     channels of every block
    """

    def __init__(self, channels: int = 1, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, width, width, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1).float()
