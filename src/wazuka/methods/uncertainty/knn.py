"""KNN: an image is odd whose features lie far from those of all known images.

Sun, Ming, Zhu and Li 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors", arXiv:2204.06507 (ICML);
deeplearning-wisc/knn-ood: features normalized to length 1, score the distance to the k-th nearest, k = 50 for 50,000
known images and 1000 for 1 % of ImageNet's.
Differs from it: k is a share of the known images, for these may be 28 labeled photos or a pool of thousands; where
there are more of them than `bank`, evenly spread ones are kept, where the authors draw at random; distances are not
squared (the same order). Fit it on labeled images where unlabeled ones may hold odd ones: k or more odd images that
are alike make each other known (on photos, with one image in ten a textile, the pool turned AUROC 1.00 into 0.00).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Detector, Observation
from wazuka.errors import UserError
from wazuka.parts.fitted import Fitted

BLOCK = 2**24  # distances at a time: 64 MiB


def kth_distance(queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None) -> Tensor:
    """Distance to the k-th nearest, between vectors of length 1, by blocks of queries.

    queries  (M, D)
    bank     (N, D)  N >= k, or more than k where `own` is given
    own      (M,)    position of the query itself in the bank, which is no neighbor of its own
    returns  (M,)    in [0, 2]
    """
    distances = []
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, BLOCK // len(bank))):
        likeness = queries[rows] @ bank.mT
        if own is not None:
            likeness.scatter_(1, own[rows, None], -torch.inf)
        distances.append((2 - 2 * likeness.topk(k, dim=1).values[:, -1]).clamp_min(0).sqrt())
    return torch.cat(distances) if distances else queries.new_empty(0)


@dataclass(frozen=True, kw_only=True)
class KNNSettings:
    """neighbors: k as a share of the known images, rounded up. bank: the most known images that are kept."""

    neighbors: float = 0.01  # the authors' 0.001 to 0.1
    bank: int = 20_000

    def __post_init__(self) -> None:
        if not 0 < self.neighbors < 1:
            raise ValueError(f"neighbors is a share of the known images, in (0, 1), got {self.neighbors}")
        if self.bank < 2:
            raise ValueError(f"bank must hold at least 2 images, got {self.bank}")


class KNN(Fitted, Detector):
    """Distance to the k-th nearest known image, in [0, 2]."""

    bank: Tensor  # (N, D) float32, rows of length 1

    def __init__(self, settings: KNNSettings | None = None):
        super().__init__()
        self.settings = settings or KNNSettings()
        self.register_buffer("bank", torch.empty(0))

    @torch.no_grad()
    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "KNN":
        """One pass; a second one first, to count, so that no more than the bank is ever held."""
        total, most = sum(len(observation) for observation in observations()), self.settings.bank
        if total == 0:
            raise UserError("KNN learns from known images, and there are none.")
        kept, start = [], 0
        for observation in observations():
            places = torch.arange(start, start + len(observation))
            start += len(observation)
            chosen = places if total <= most else places[(places + 1) * most // total > places * most // total]
            rows = (chosen - places[:1]).to(observation.features.device)
            kept.append(F.normalize(observation.features[rows].float(), dim=1))
        self.bank = torch.cat(kept)
        return self

    @property
    def k(self) -> int:
        """Which neighbor counts; one that all known images have among the others too."""
        return max(1, min(math.ceil(self.settings.neighbors * len(self.bank) - 1e-9), len(self.bank) - 1))

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32. An image that is itself in the bank finds itself there: `left_out` scores those."""
        if self.bank.ndim != 2:
            raise ValueError("this KNN detector is not fitted: call fit, or load a fitted one's state")
        return kth_distance(F.normalize(observation.features.float(), dim=1), self.bank, self.k)

    @torch.no_grad()
    def left_out(self) -> Tensor:
        """(N,) what each image of the bank scores among the others; a lone one is infinitely odd."""
        own = torch.arange(len(self.bank), device=self.bank.device)
        if len(own) < 2:
            return self.bank.new_full((len(own),), torch.inf)
        return kth_distance(self.bank, self.bank, self.k, own)
