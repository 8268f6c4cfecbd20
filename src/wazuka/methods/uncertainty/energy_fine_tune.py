"""Energy fine-tuning: a trained network learns to have little to say for pictures of nothing.

Liu, Wang, Owens and Li 2020, "Energy-based Out-of-distribution Detection", arXiv:2010.03759 (NeurIPS), Eqs. 7 to 9;
wetliu/energy_ood, CIFAR/train.py, for CIFAR-10: 10 passes from a trained network, with pictures of other things beside
(80 Million Tiny Images there, which was withdrawn). Score it with the energy; those pictures must not be of the kind
that it is to be tested on. Differs from it: the learning rate ends at 0, theirs at a millionth.
The margins are energies, and so belong to one network's logits: look at those of the trained network's own images
before choosing. Margins that all of them keep teach nothing.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Batch, Method, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.schedules import cosine


def energy_hinges(known: Tensor, odd: Tensor, margin_in: float, margin_out: float) -> tuple[Tensor, Tensor]:
    """How far energies E = -log sum_c exp(z_c) lie on the wrong side of their margins, squared (Eqs. 8 and 9).

    known, odd  (N, C), (M, C)  logits
    margin_in                   above which a known image's energy costs; nats, negative
    margin_out                  below which an odd image's costs
    returns     (), ()          means over the known, and over the odd images
    """
    above = (-known.float().logsumexp(dim=1) - margin_in).relu()
    below = (margin_out + odd.float().logsumexp(dim=1)).relu()
    return above.square().mean(), below.square().mean()


@dataclass(frozen=True, kw_only=True)
class EnergyFineTuneSettings:
    """Sources: train.py's defaults and run.sh's margins for CIFAR-10 (CIFAR-100: -27 and -5)."""

    labeled_batch: int = 128
    odd_batch: int = 256
    view: Literal["plain", "weak"] = "weak"
    margin_in: float = -23.0
    margin_out: float = -5.0
    energy_weight: float = 0.1
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=0.001, weight_decay=5e-4, schedule=cosine))

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.odd_batch) < 1:
            raise ValueError("labeled_batch and odd_batch must be at least 1")
        if self.view not in ("plain", "weak"):
            raise ValueError(f'view must be "plain" or "weak", got {self.view!r}')
        if not self.margin_in < self.margin_out:
            raise ValueError(f"margin_in must lie below margin_out, got {self.margin_in} and {self.margin_out}")
        if not self.energy_weight >= 0:
            raise ValueError(f"energy_weight must not be negative, got {self.energy_weight}")


class EnergyFineTune(Method):
    """Cross-entropy of the labeled images, and the energies of these and of the odd ones held apart.

    net  trained: images -> (N, classes) logits. The pool "odd" holds pictures of none of the classes
    """

    def __init__(self, net: nn.Module, settings: EnergyFineTuneSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or EnergyFineTuneSettings()

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),
            Stream(pool="odd", batch=s.odd_batch, views={"odd": s.view}),
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s, n = self.settings, len(batch.images)
        logits = self.net(torch.cat([batch.images, batch.odd]))  # one pass: batch norm sees both, as in the authors'
        supervised = F.cross_entropy(logits[:n], batch.labels)
        known, odd = energy_hinges(logits[:n], logits[n:], s.margin_in, s.margin_out)
        total = supervised + s.energy_weight * (known + odd)  # Eq. 7
        return total, as_tensor_parts(supervised=supervised, known=known, odd=odd)

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
