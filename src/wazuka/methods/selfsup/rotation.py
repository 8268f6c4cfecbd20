"""Rotation prediction: say by how many quarter turns an image was turned, and learn what things look like upright.

Gidaris, Singh & Komodakis 2018, arXiv:1803.07728; gidariss/FeatureLearningRotNet (dataloader.py, config/). The network
ends in four outputs that are thrown away afterwards. What is evaluated is the trunk, and of it a *middle* layer
(the paper's conv2): the last one knows turns, not things, and transfers worst.
Differs from it: nothing, but the crop and flip are made by the data stream, before the turning as in the paper.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.errors import UserError


def all_quarter_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """Every image in its four orientations, exactly: pixels are transposed and flipped, never interpolated.

    images   (N, C, H, H)
    returns  (4N, C, H, H)  all N unturned, then all N turned once counterclockwise, twice, three times
             (4N,)          int64, how many quarter turns
    """
    if images.shape[2] != images.shape[3]:
        height, width = images.shape[2:]
        raise UserError(
            f"Rotation prediction needs square images, and these are {height}x{width} pixels; "
            "open them with one number as their size."
        )
    turned = torch.cat([torch.rot90(images, turns, dims=(2, 3)) for turns in range(4)])
    return turned, torch.arange(4, device=images.device).repeat_interleave(len(images))


def fifths(progress: float) -> float:
    """The paper's schedule for CIFAR-10: the learning rate falls to a fifth after 30, 60 and 80 % of the run."""
    return 0.2 ** sum(progress >= step for step in (0.3, 0.6, 0.8))


@dataclass(frozen=True, kw_only=True)
class RotationSettings:
    """Defaults are the authors' for CIFAR-10 (config/CIFAR10_RotNet_NIN4blocks.py), there for 200 passes."""

    batch: int = 128    # images a step; each counts four times
    view: str = "weak"  # crop and flip; no policy that turns
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=0.1, weight_decay=5e-4, schedule=fifths))

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")


class Rotation(Method):
    """Cross-entropy over all four orientations of each image, in one batch.

    net  images -> (N, 4) logits. Where it is a Backbone, `net.features` and `net.observe` give what was learned.
    """

    def __init__(self, net: nn.Module, settings: RotationSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or RotationSettings()

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="unlabeled", batch=s.batch, views={"images": s.view}),)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        images, turns = all_quarter_turns(batch.images)
        logits = self.net(images)
        loss = F.cross_entropy(logits, turns)
        return loss, as_tensor_parts(rotation=loss, accuracy=(logits.argmax(dim=1) == turns).float().mean())

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, H) float in [0, 1] -> (N, 4) probabilities of 0 to 3 counterclockwise quarter turns: this method's
        classes are the turns. The user's classes it has never seen; a probe on its features names them.
        """
        return self.net(images).softmax(dim=1)
