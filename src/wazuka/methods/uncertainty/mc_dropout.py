"""MC dropout: leave dropout on when answering, and look how much the answers differ.

Gal & Ghahramani 2016, "Dropout as a Bayesian Approximation", ICML, arXiv:1506.02142. Training is dropout's own; an
answer is the mean softmax of T passes, each by another thinned network. Batch norm answers by its running statistics:
`model.train()`, the usual way to switch dropout on, would switch these off.
Differs from it: a pass thins the network once, and the same for all images of all batches, as a draw of weights does
(the paper's q; its code draws anew for every image). So an answer depends on neither the batch nor what was drawn
before. Where a network has no dropout, features are dropped before its head, which is the least that the paper's
argument needs; then only the head runs T times.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from wazuka.contract import Batch, Method, Observation, Optimizer, Parts, Stream, as_tensor_parts
from wazuka.functional.schedules import staircase
from wazuka.functional.seeds import generator_from
from wazuka.functional.sending import to_device
from wazuka.functional.uncertainty import mean_logits
from wazuka.nets import Backbone

WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
KINDS = (nn.Dropout, *WHOLE_CHANNELS)


@contextmanager
def thinned(net: nn.Module, *seed: int) -> Iterator[None]:
    """Inside, dropout drops, in whatever mode `net` is: the same units of every image, decided by `seed` alone.

    A module that is used twice drops other units the second time. No other module notices; no hook stays.
    """
    generator = generator_from(*seed)

    def drop(module: _DropoutNd, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if module.p == 0:
            return output
        x = inputs[0]
        shape = [1, *x.shape[1:2], *[1] * (x.ndim - 2)] if isinstance(module, WHOLE_CHANNELS) else [1, *x.shape[1:]]
        kept = torch.rand(shape, generator=generator) >= module.p
        return x * (to_device(kept, x.device).to(x.dtype) / (1 - module.p) if module.p < 1 else 0)

    hooks = [module.register_forward_hook(drop) for module in net.modules() if isinstance(module, KINDS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, kw_only=True)
class MCDropoutSettings:
    """dropout: share that is dropped before the head, where the network has no dropout of its own. passes: T. seed: of
    the masks. Optimizer: as the deep ensembles', to compare.
    """

    labeled_batch: int = 128
    view: Literal["plain", "weak", "strong"] = "weak"
    dropout: float = 0.5
    passes: int = 50  # 10 to 100 are usual
    seed: int = 0
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(lr=0.05, nesterov=False, weight_decay=5e-4, schedule=staircase(1 / 3, 2 / 3))
    )

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.passes) < 1:
            raise ValueError(f"labeled_batch and passes must be at least 1, got {self.labeled_batch} and {self.passes}")
        if self.view not in ("plain", "weak", "strong"):
            raise ValueError(f'view must be "plain", "weak" or "strong", got {self.view!r}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share of the units, in [0, 1), got {self.dropout}")


class MCDropout(Method):
    """A network that is trained with dropout, and asked T times with it.

    net  its own nn.Dropout modules count; functional dropout can't be reached, and alpha dropout is refused
    """

    def __init__(self, net: Backbone, settings: MCDropoutSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or MCDropoutSettings()
        found = [module for module in net.modules() if isinstance(module, _DropoutNd)]
        if not all(isinstance(module, KINDS) for module in found):
            raise ValueError("MC dropout knows nn.Dropout and its 1d, 2d and 3d forms, not alpha dropout")
        self.only_the_head = not found
        if self.only_the_head:
            net.head = nn.Sequential(nn.Dropout(self.settings.dropout), net.head)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (Stream(pool="labeled", batch=s.labeled_batch, views={"images": s.view}, labels="labels"),)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        loss = F.cross_entropy(self.net(batch.images), batch.labels)
        return loss, as_tensor_parts(supervised=loss)

    def passes(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (T, N, classes) logits, those of pass t by the same thinned network."""
        return self._passes(images, self.net.features(images) if self.only_the_head else None)

    def _passes(self, images: Tensor, features: Tensor | None) -> Tensor:
        logits = []
        for t in range(self.settings.passes):
            with thinned(self.net, self.settings.seed, t):
                logits.append(self.net(images) if features is None else self.net.head(features).float())
        return torch.stack(logits)

    def observe(self, images: Tensor, layers: Iterable[str] | None = ()) -> Observation:
        """Features and inner layers are those of a pass without dropout; logits, of the mean softmax: `mean_logits`."""
        seen = self.net.observe(images, layers)
        passes = self._passes(images, seen.features if self.only_the_head else None)
        return replace(seen, logits=mean_logits(passes), head=None, passes=passes)

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, classes) mean of the passes' probabilities."""
        return self.passes(images).softmax(dim=-1).mean(dim=0)
