"""BSS: fine-tune, and shrink the weakest directions of a batch's features, which transfer ill.

Chen, Wang, Fu, Long & Wang 2019, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe
Transfer Learning", NeurIPS; thuml/Batch-Spectral-Shrinkage (BSS.py), whose numbers are the defaults.
Differs from the code: the squared singular values are eigenvalues of the smaller Gram matrix, whose gradient stays
finite where some coincide, as it does not through the singular vectors of torch.svd; batch norm keeps its running
statistics (`tuning.norms="train"` is the code's way); weight decay reaches kernels only.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.processes import joined
from wazuka.functional.schedules import staircase
from wazuka.nets import Backbone
from wazuka.parts.tuning import Tuned, Tuning


def spectral_shrinkage(features: Tensor, smallest: int) -> Tensor:
    """The sum of the k smallest squared singular values of a batch's features (L_bss, without its eta).

    features  (N, D)  of one batch, not centered
    smallest          k; there are min(N, D) singular values, and a larger k takes them all
    returns   ()      at least 0, float32 or better: in less the small ones drown in the rounding of the large
    """
    device = features.device.type if features.device.type != "meta" else "cpu"  # the meta device knows no autocast
    with torch.autocast(device, enabled=False):
        rows = features.to(torch.promote_types(features.dtype, torch.float32))
        gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        squares = torch.linalg.eigvalsh(gram)  # ascending; by rounding, what is 0 may come out below it
    return squares[:smallest].clamp_min(0).sum()


@dataclass(frozen=True, kw_only=True)
class BSSSettings:
    """optimizer: its learning rate is that of the encoder's top layers."""

    labeled_batch: int = 48
    view: Literal["plain", "weak", "strong"] = "weak"
    shrinkage_weight: float = 0.001  # eta
    smallest: int = 1                # k: how many singular values are shrunk
    tuning: Tuning = field(default_factory=lambda: Tuning(head="normal"))
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.001, nesterov=False, weight_decay=5e-4, schedule=staircase(2 / 3))
    )

    def __post_init__(self) -> None:
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not self.shrinkage_weight >= 0 or self.smallest < 1:
            raise ValueError(
                "shrinkage_weight must not be negative and smallest be at least 1, "
                f"got {self.shrinkage_weight} and {self.smallest}"
            )


class BSS(Method):
    """Cross-entropy on the labeled images, and the shrinkage of their features.

    net      pre-trained; it is tuned in place
    classes  C
    """

    def __init__(self, net: Backbone, classes: int, settings: BSSSettings | None = None):
        super().__init__()
        self.settings = settings or BSSSettings()
        self.net = Tuned(net, classes, self.settings.tuning)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def players(self) -> dict[Player, Optimizer]:
        return {self: self.net.optimizer(self.settings.optimizer)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        s = self.settings
        self.net.wake(progress)
        features = self.net.features(batch.images)
        supervised = F.cross_entropy(self.net.classify(features), batch.labels)
        shrinkage = spectral_shrinkage(joined(features.float()), s.smallest)  # of the whole batch, over all processes
        total = supervised + s.shrinkage_weight * shrinkage
        return total, as_tensor_parts(supervised=supervised, shrinkage=shrinkage)

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)
