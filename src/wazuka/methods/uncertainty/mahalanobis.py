"""Mahalanobis: an image is odd whose features lie many standard deviations from every class mean.

Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
arXiv:1807.03888 (NeurIPS); pokaxpoka/deep_Mahalanobis_detector. Relative distances: Ren et al. 2021, arXiv:2106.09022;
normalized features: Mueller and Hein 2025 (Mahalanobis++), arXiv:2505.18032.
Differs from it: the last layer's features alone, without input noise and without the regression over layers that the
authors fit on odd images; the covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004), for that
of 40 images in 1280 dimensions has no inverse; classes are those that the network predicts, for an Observation holds
no labels (on the labeled images it was trained on they are the same).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.errors import UserError
from wazuka.parts.fitted import Fitted

BLOCK = 4096  # images at a time, whose features are copied in float64


def shrinkage(scatter: Tensor, fourth: Tensor, n: int) -> Tensor:
    """How much of the identity the covariance gets: Ledoit and Wolf's estimate of the best share (2004, Lemma 3.3ff).

    scatter  (D, D)  sum over n centered images of x x^T
    fourth   ()      sum over them of |x|^4
    returns  ()      in [0, 1]: 1 where n images tell nothing of directions, towards 0 as n grows

    With S = scatter / n and mean variance m: min(1, (fourth / n - |S|^2) / n / |S - m I|^2).
    """
    covariance = scatter / n
    mean = covariance.trace() / len(covariance)
    spread = (covariance - mean * torch.eye(len(covariance), dtype=scatter.dtype, device=scatter.device)).square().sum()
    noise = (fourth / n - covariance.square().sum()) / n
    return torch.where(spread > 0, (noise / spread).clamp(0, 1), torch.ones_like(spread))


def whitening(batches: Iterable[Tensor]) -> Tensor:
    """The matrix W with |W x|^2 = x^T P x, P the inverse of the shrunk covariance.

    batches  of (N, D)  float64, centered
    returns  (D, D)     lower triangular; the identity where images don't differ at all
    """
    scatter, fourth, n = torch.zeros(()), torch.zeros(()), 0
    for x in batches:
        scatter, fourth, n = x.mT @ x + scatter, x.square().sum(dim=1).square().sum() + fourth, n + len(x)
    eye = torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
    mean = scatter.trace() / n / len(scatter)
    if mean == 0:  # one image of each class
        return eye
    share = shrinkage(scatter, fourth, n).clamp_min(torch.finfo(torch.float32).eps)  # a feature may never vary
    shrunk = (1 - share) * scatter / n + share * mean * eye
    return torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), eye, upper=False)


@dataclass(frozen=True, kw_only=True)
class MahalanobisSettings:
    """relative: less the distance to one Gaussian of all images together, so that what all images have in common
    doesn't count; better on unknown classes that look like the known ones (Ren et al.). normalize: features to length
    1 first; where an odd image's features are short, they lie near the means otherwise (Mueller and Hein).
    """

    relative: bool = False
    normalize: bool = True  # Lee et al.: as they are


class Mahalanobis(Fitted, Detector):
    """Squared distance to the nearest class mean, under one covariance for all classes."""

    center: Tensor      # (D,)    mean of all images
    means: Tensor       # (K, D)  of classes, from `center`; K: those that were predicted at all
    whiten: Tensor      # (D, D)  within classes
    background: Tensor  # (D, D)  all images together; empty unless relative

    def __init__(self, settings: MahalanobisSettings | None = None):
        super().__init__()
        self.settings = settings or MahalanobisSettings()
        for name in ("center", "means", "whiten", "background"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "Mahalanobis":
        """Two passes: means, then scatter around them; a third one for the background."""
        sums = counts = None
        for observation in observations():
            features, predicted = self._scaled(observation.features), observation.logits.argmax(dim=1)
            if sums is None or counts is None:
                sums = features.new_zeros(observation.logits.shape[1], features.shape[1])
                counts = features.new_zeros(len(sums))
            sums.index_add_(0, predicted, features)
            counts.index_add_(0, predicted, torch.ones_like(features[:, 0]))
        if sums is None or counts is None or counts.sum() < 2:
            raise UserError("Mahalanobis distances are learned from known images, and it takes two at least.")
        center, means = sums.sum(dim=0) / counts.sum(), sums / counts.clamp_min(1)[:, None]
        self.center, self.means = center, means[counts > 0] - center
        self.whiten = whitening(self._scaled(o.features) - means[o.logits.argmax(dim=1)] for o in observations())
        self.background = center.new_empty(0)
        if self.settings.relative:
            self.background = whitening(self._scaled(o.features) - center for o in observations())
        return self

    def _scaled(self, features: Tensor) -> Tensor:
        return F.normalize(features.double(), dim=1) if self.settings.normalize else features.double()

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; minus the squared distance to the center under the background's covariance, if relative."""
        if self.means.ndim != 2:
            raise ValueError("this Mahalanobis detector is not fitted: call fit, or load a fitted one's state")
        means, scores = self.means @ self.whiten.mT, [observation.features.new_empty(0)]
        for features in observation.features.split(BLOCK):
            x = self._scaled(features) - self.center
            squares = torch.cdist(x @ self.whiten.mT, means).amin(dim=1).square()
            if len(self.background):
                squares = squares - (x @ self.background.mT).square().sum(dim=1)
            scores.append(squares.float())
        return torch.cat(scores)
