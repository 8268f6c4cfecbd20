"""What a photo's surface is like, and how far its oddest spot stands out from the rest of the same photo.

A network's last features name objects; a fault of ten pixels on a cloth does not reach them. So the maps of an early
layer are taken at twice the usual resolution, and three things are told of them: the mean of each channel, the
logarithm of its variance, and, in windows of several sizes, the largest squared distance of a window's mean from the
mean of the photo, in units of the photo's own covariance (the distance of Mahalanobis, as in PaDiM, Defard et al. 2021,
arXiv:2011.08785, who compare with other photos; here each photo is its own measure, and none need be free of faults).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.nets.efficientnet_lite import EfficientNetLite0

BLOCKS = 3            # of the network: 24 channels, one position for 4 x 4 pixels
WINDOWS = (3, 5, 9)   # positions a side


class Texture(nn.Module):
    """(N, 3, H, W) float in [0, 1] -> (N, 51). H and W of at least 9 * 4 pixels."""

    feature_size = 2 * 24 + len(WINDOWS)

    def __init__(self, net: EfficientNetLite0):
        super().__init__()
        self.normalize, self.stem, self.blocks = net.normalize, net.stem, net.blocks[:BLOCKS]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(F.relu6(self.stem(self.normalize(images)))).float()
        return surface(maps)


def surface(maps: Tensor) -> Tensor:
    """Mean and log variance of each channel, and the log of the largest distance for each window.

    maps     (N, D, H, W)
    returns  (N, 2 D + windows)
    """
    flat = maps.flatten(2)
    mean = flat.mean(dim=2, keepdim=True)
    apart = flat - mean
    covariance = apart @ apart.transpose(1, 2) / flat.shape[2]
    variance = covariance.diagonal(dim1=1, dim2=2)
    floor = 1e-3 * variance.mean(dim=1).clamp_min(1e-9)  # a channel that never moves must not decide
    steady = covariance + torch.diag_embed(floor[:, None].expand_as(variance))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(steady), apart, upper=False)
    white = white.unflatten(2, maps.shape[2:])
    odd = [F.avg_pool2d(white, side, stride=1).square().sum(dim=1).flatten(1).amax(dim=1) for side in WINDOWS]
    told = torch.stack(odd, dim=1).clamp_min(1e-9).log()
    return torch.cat([mean.squeeze(2), (variance + floor[:, None]).log(), told], dim=1)
