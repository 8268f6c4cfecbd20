"""Label propagation: labels spread along a graph of nearest neighbors until they come to rest.

Zhou, Bousquet, Lal, Weston & Schölkopf 2003, "Learning with Local and Global Consistency", NIPS: with the affinity W
without loops, its degrees D and S = D^(-1/2) W D^(-1/2), the fixed point of F <- alpha S F + (1 - alpha) Y, which is
(1 - alpha) (I - alpha S)^(-1) Y, solved by conjugate gradients; scikit-learn's LabelSpreading iterates to the same.
That is `walk=False`. By default S is (D^(-1) W)^T, a variant that the paper names: then each label spreads the same
mass over the images. With S, a label's mass grows with its image's degree, so that with few labels one class drowns the
others; where all images are labeled and near one another, it names all of them alike.
Differs from it: the paper's graph joins all pairs by a Gaussian of their distance, which 50,000 images forbid. Here W
is A + A^T, where A holds the cosine to each of an image's nearest neighbors, negative ones as zero, to a power, as
Iscen, Tolias, Avrithis & Chum 2019, "Label Propagation for Deep Semi-supervised Learning", CVPR, arXiv:1904.04717
(ahmetius/LP-DeepSSL), build it. The paper takes the largest of F's row; here the row over its sum is the probability,
and an image that no label reaches gets the same for each class. Labeled images may be outvoted, as in the paper.
New images, which the paper has not, get one step of the same spreading from their nearest remembered images, by which
they change nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import check_fit, check_predict
from wazuka.functional.graphs import Graph, conjugate_gradients, normalized, shares, symmetric_graph
from wazuka.functional.neighbors import nearest


@dataclass(frozen=True, kw_only=True)
class LabelPropagationSettings:
    neighbors: int = 10     # k; Iscen et al. take 50 of 50,000 images
    power: float = 3.0      # gamma, of the cosine, Iscen et al.
    alpha: float = 0.99     # what the neighbors count against the image's own label, both papers
    walk: bool = True       # S is the transposed transition matrix of a random walk; else symmetric
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"neighbors must be at least 1, got {self.neighbors}")
        if not self.power > 0 or not self.tolerance > 0:
            raise ValueError(f"power and tolerance must be above 0, got {self.power} and {self.tolerance}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must lie in [0, 1), got {self.alpha}")


class LabelPropagation(Head):
    """Names each image by the labels that reach it along a graph of neighbors.

    It remembers the features of all images: a saved head is as large as they are.
    """

    bank: Tensor   # (N, D)  all images, of length 1
    votes: Tensor  # (N, C)  >= 0, D^(-1/2) F, or D^(-1) F of the walk: a neighbor's image gets weight times vote

    def __init__(self, classes: int, settings: LabelPropagationSettings | None = None):
        super().__init__()
        self.classes, self.settings = classes, settings or LabelPropagationSettings()

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        s, bank = self.settings, F.normalize(features, dim=1)
        cosines, neighbors = nearest(bank, bank, s.neighbors, same=True)
        graph, scale = normalized(symmetric_graph(neighbors, self._weights(cosines)))
        given = bank.new_zeros(len(bank), self.classes)
        given[labels >= 0] = F.one_hot(labels[labels >= 0], self.classes).to(bank.dtype)
        # The walk's P^T is D^(1/2) S D^(-1/2), so that its F is D^(1/2) times the solution for D^(-1/2) Y.
        right = scale * given if s.walk else given
        solved = conjugate_gradients(lambda values: values - s.alpha * graph.times(values), right, s.tolerance)
        solved = (1 - s.alpha) * solved.clamp_min(0)  # what lies below zero is rounding: S has no negative entry
        self.remember(bank=bank, votes=scale * solved)
        return shares(solved)  # a factor of the row, as D^(1/2), changes no share

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "bank"):
            raise UserError("Label propagation knows no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, self.bank.shape[1])
        features = F.normalize(features.to(self.bank.dtype), dim=1)
        cosines, neighbors = nearest(features, self.bank, self.settings.neighbors)
        starts = torch.arange(len(features), device=neighbors.device) * neighbors.shape[1]
        return shares(Graph(starts, neighbors.flatten(), self._weights(cosines).flatten()).times(self.votes))

    def _weights(self, cosines: Tensor) -> Tensor:
        return cosines.clamp_min(0).pow(self.settings.power)
