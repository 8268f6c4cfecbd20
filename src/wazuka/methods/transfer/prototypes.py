"""Class prototypes: an image belongs to the class whose mean feature is nearest.

Snell, Swersky & Zemel 2017, "Prototypical Networks for Few-shot Learning", NeurIPS, arXiv:1703.05175, Eq. 1 and 2, on
the features of a frozen network; methods/fewshot/protonet.py trains the network too.
Differs from it: features may be scaled to length 1 first, and a temperature divides the distances, which the paper
leaves alone (1). Unlabeled images are answered and teach nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import check_fit, check_predict
from wazuka.functional.prototypes import class_means, squared_distances_of_many


@dataclass(frozen=True, kw_only=True)
class PrototypesSettings:
    distance: Literal["euclidean", "cosine"] = "euclidean"  # squared, or 1 - cosine; Sec. 3.2 compares them
    normalize: bool = False   # scale each feature to length 1 before the means are taken
    temperature: float = 1.0  # what the distances are divided by before the softmax

    def __post_init__(self) -> None:
        if self.distance not in ("euclidean", "cosine"):
            raise ValueError(f'distance must be "euclidean" or "cosine", got {self.distance!r}')
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class Prototypes(Head):
    """Names the class with the nearest mean, from the labeled images alone."""

    prototypes: Tensor  # (C, D)

    def __init__(self, classes: int, settings: PrototypesSettings | None = None):
        super().__init__()
        self.classes, self.settings = classes, settings or PrototypesSettings()

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        labeled = labels >= 0
        self.remember(prototypes=class_means(self._scaled(features[labeled]), labels[labeled], self.classes))  # Eq. 1
        return self.predict(features)

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "prototypes"):
            raise UserError("These prototypes know no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, self.prototypes.shape[1])
        features, prototypes = self._scaled(features.to(self.prototypes.dtype)), self.prototypes
        if self.settings.distance == "cosine":  # half the squared distance on the unit sphere
            features, prototypes = F.normalize(features, dim=1), F.normalize(prototypes, dim=1)
            distances = squared_distances_of_many(features, prototypes) / 2
        else:
            distances = squared_distances_of_many(features, prototypes)
        return (-distances / self.settings.temperature).softmax(dim=1).float()  # Eq. 2

    def _scaled(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) if self.settings.normalize else features
