"""SimpleShot: subtract the mean feature, scale to length 1, and take the nearest class mean.

Wang, Chao, Weinberger & van der Maaten 2019, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
Learning", arXiv:1911.04623, Sec. 3; mileyan/simple_shot. The order is theirs: center, scale, average; the class means
are not scaled again.
Differs from it: their center is the mean feature of the base classes that the network was trained on. Those images are
not at hand; here the center is the mean of all features given to fit, labeled and unlabeled. With CL2N the head
therefore learns from unlabeled images, one number a feature. And the paper only names the nearest class; here a softmax
over minus the squared distance, divided by a temperature, says how near.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import centered_unit, check_fit, check_predict
from wazuka.functional.prototypes import class_means, squared_distances_of_many


@dataclass(frozen=True, kw_only=True)
class SimpleShotSettings:
    transform: Literal["CL2N", "L2N", "UN"] = "CL2N"  # center and scale, scale, or leave as it is
    temperature: float = 0.1  # on squared distances, which lie in [0, 4] but for UN; PT-MAP's lambda of 10

    def __post_init__(self) -> None:
        if self.transform not in ("CL2N", "L2N", "UN"):
            raise ValueError(f'transform must be "CL2N", "L2N" or "UN", got {self.transform!r}')
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class SimpleShot(Head):
    """Names the class with the nearest mean of transformed features."""

    center: Tensor      # (D,); read by CL2N alone
    prototypes: Tensor  # (C, D)

    def __init__(self, classes: int, settings: SimpleShotSettings | None = None):
        super().__init__()
        self.classes, self.settings = classes, settings or SimpleShotSettings()

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        labeled = labels >= 0
        self.remember(center=features.mean(dim=0))
        self.remember(prototypes=class_means(self._transformed(features[labeled]), labels[labeled], self.classes))
        return self.predict(features)

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "prototypes"):
            raise UserError("SimpleShot knows no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, self.prototypes.shape[1])
        features = self._transformed(features.to(self.prototypes.dtype))
        distances = squared_distances_of_many(features, self.prototypes)
        return (-distances / self.settings.temperature).softmax(dim=1).float()

    def _transformed(self, features: Tensor) -> Tensor:
        if self.settings.transform == "CL2N":
            return centered_unit(features, self.center)
        return F.normalize(features, dim=1) if self.settings.transform == "L2N" else features
