"""DS3L: learn how far to trust each unlabeled image, so that images of unknown classes do no harm.

Guo, Zhang, Jiang, Li & Zhou 2020, "Safe Deep Semi-Supervised Learning for Unseen-Class Unlabeled Data", ICML;
guolz-ml/DS3L (train.py, followed where the paper is silent). Bi-level: a small network weighs every unlabeled image's
consistency loss, and is judged by how well the classifier does on the *labels* after one step on the weighted loss.
Differs from it: the two views are made by the data stream, per image, and the passes over them serve both levels; the
code draws one augmentation per batch and pass, and passes anew. The ramp is a share of the run (there: of 200,000
steps). The weigher's gradient is the code's, reached without a gradient of a gradient: see `DS3L.slope`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from wazuka.contract import Batch, Method, Optimizer, Parts, Player, Stream, as_tensor_parts
from wazuka.functional.consistency import squared_consistency
from wazuka.functional.processes import mean_over_processes, process_count
from wazuka.functional.schedules import gaussian_ramp
from wazuka.parts.draws import drawn_again


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """sum w l / sum w over the images of all processes; 0 where all weights are 0.

    losses   (N,)
    weights  (N,)  in [0, 1]
    returns  ()
    """
    total, weight = mean_over_processes(torch.stack([(weights * losses).mean(), weights.mean()]))
    return total / (weight + (weight == 0))


def labeled_loss(logits: Tensor, labels: Tensor, images: int) -> Tensor:
    """Cross-entropy of the labeled images over the number of *all* images in the pass, as the authors' code has it.

    logits   (N, C)
    labels   (N,)
    images   labeled and unlabeled ones together, N + M
    returns  ()  nats; half the usual mean where both batches are of one size
    """
    return F.cross_entropy(logits, labels, reduction="sum") / images


@dataclass(frozen=True, kw_only=True)
class DS3LSettings:
    """Defaults are the authors' for CIFAR-10 (train.py). On MNIST they train the classifier with plain SGD, lr 1e-3, on
    pixels in 0..255: there the step that is looked through is the step that is taken. On images in [0, 1] a rate of
    1e-3 looks next to nowhere, and tells the weigher less; recipes/ds3l_mnist.py takes 0.1.

    learn_weights  False: every unlabeled image weighs the same, which is the Pi-model
    """

    labeled_batch: int = 50
    unlabeled_batch: int = 50
    consistency_weight: float = 10.0
    ramp: float = 1.0  # share of the run in which the consistency weight rises
    learn_weights: bool = True
    inner_lr: float = 0.001  # of the plain SGD step that is looked through
    hidden: int = 100  # units of the weighing network
    weigher: Optimizer = field(
        default_factory=lambda: Optimizer(algorithm="adam", lr=6e-5)  # "to be tuned for different settings"
    )
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(algorithm="adam", lr=3e-4))

    def __post_init__(self) -> None:
        if min(self.labeled_batch, self.unlabeled_batch, self.hidden) < 1:
            raise ValueError("labeled_batch, unlabeled_batch and hidden must be at least 1")
        if self.consistency_weight < 0 or self.inner_lr < 0:
            raise ValueError(
                f"consistency_weight and inner_lr must not be negative, got {self.consistency_weight}, {self.inner_lr}"
            )
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is a share of the run, in (0, 1], got {self.ramp}")


class Weigher(nn.Module):
    """How far to trust an image, from what the classifier thinks of it: (N, C) probabilities -> (N,) in (0, 1)."""

    def __init__(self, classes: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(classes, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, probs: Tensor) -> Tensor:
        return self.layers(probs).to(probs.dtype).sigmoid()[:, 0]  # never bfloat16: the weights are summed


class DS3L(Method):
    """A classifier and the network that weighs its unlabeled images; they step in turns.

    net      images -> (N, classes) logits
    classes  C, the known ones
    """

    def __init__(self, net: nn.Module, classes: int, settings: DS3LSettings | None = None):
        super().__init__()
        self.net, self.settings = net, settings or DS3LSettings()
        self.weigher = Weigher(classes, self.settings.hidden)

    def streams(self) -> tuple[Stream, ...]:
        s = self.settings
        return (
            Stream(pool="labeled", batch=s.labeled_batch, views={"images": "weak"}, labels="labels"),
            Stream(pool="unlabeled", batch=s.unlabeled_batch, views={"first": "weak", "second": "weak"}),
        )

    def players(self) -> dict[Player, Optimizer]:
        classifier: dict[Player, Optimizer] = {self.net: self.settings.optimizer}
        return {self.weigher: self.settings.weigher} | classifier if self.settings.learn_weights else classifier

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        s = self.settings
        coefficient = s.consistency_weight * gaussian_ramp(progress, s.ramp)
        with drawn_again(batch.images.device):  # so that `slope` sees the very same passes, dropout included
            supervised, losses, probs = self._passes(self.net, batch)
            if s.learn_weights:
                inner = supervised + coefficient * weighted_mean(losses, self.weigher(probs))
                outer, direction = self.look_ahead(batch, inner)
        if s.learn_weights:
            slope = coefficient * self.slope(batch, direction)
            outer = outer - s.inner_lr * (slope - slope.detach())  # L_meta's value with its gradient
            yield self.weigher, outer, as_tensor_parts(outer=outer)
        # The classifier itself learns with the weights that the weigher gives after its step, and not through them.
        with torch.no_grad():
            weights = self.weigher(probs) if s.learn_weights else torch.ones_like(losses)
        unlabeled = weighted_mean(losses, weights)
        total = supervised + coefficient * unlabeled
        yield self.net, total, as_tensor_parts(supervised=supervised, unlabeled=unlabeled, trusted=weights.mean())

    def look_ahead(self, batch: Batch, inner: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Take an SGD step on the inner loss with a copy of the network, and judge the copy by the labeled images.

        inner    ()  on this process's share of the images; its graph is kept
        returns  ()  L_meta, cross-entropy of the labeled images after the step, nats; without graph
                 name -> its gradient with respect to the stepped parameters, on all processes' images
        """
        parameters = self._learning()
        gradients = torch.autograd.grad(inner, list(parameters.values()), retain_graph=True, materialize_grads=True)
        stepped = {
            name: (parameter.detach() - self.settings.inner_lr * gradient).requires_grad_()
            for (name, parameter), gradient in zip(parameters.items(), _averaged(gradients), strict=True)
        }
        outer = F.cross_entropy(self._copy(stepped)(batch.images), batch.labels)
        direction = torch.autograd.grad(outer, list(stepped.values()), materialize_grads=True)
        return outer.detach(), dict(zip(stepped, _averaged(direction), strict=True))

    def slope(self, batch: Batch, direction: dict[str, Tensor]) -> Tensor:
        """How fast the weighted loss U = sum w l / sum w rises along `direction`; (), with a graph to the weigher only.

        The parameters a of the weigher reach L_meta through theta' = theta - lr grad(L_labeled + coefficient U) alone:

            dL_meta/da = grad L_meta(theta') . dtheta'/da = -lr coefficient d/da (direction . grad U),

        where direction = grad L_meta(theta') stays fixed. Forward-mode differentiation along it brings, in one pass,
        direction . grad of every image's loss and probabilities: exact, and the network is not differentiated twice.
        """
        parameters = self._learning()
        with forward_ad.dual_level():
            moving = {
                name: forward_ad.make_dual(parameter.detach(), direction[name])
                for name, parameter in parameters.items()
            }
            _, losses, probs = self._passes(self._copy(moving), batch)
            weights = self.weigher(probs)
            here, speed = forward_ad.unpack_dual(torch.stack([(weights * losses).mean(), weights.mean()]))
        total, weight, total_speed, weight_speed = mean_over_processes(torch.cat([here, speed]))
        weight = weight + (weight == 0)  # as in `weighted_mean`, whose derivative this is
        return (total_speed - total / weight * weight_speed) / weight

    def _passes(self, net: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Two stochastic passes over all images -> (labeled loss (), consistency losses (M,), probabilities (M, C)).

        The labeled images go through the second pass for batch norm's sake alone.
        """
        n = len(batch.images)
        first = net(torch.cat([batch.images, batch.first]))
        company = batch.images if self._has_batch_norm() else batch.images[:0]
        second = net(torch.cat([company, batch.second]))[len(company) :]
        supervised = labeled_loss(first[:n], batch.labels, len(first))
        return supervised, squared_consistency(second, target=first[n:]), first[n:].softmax(dim=1)

    def _has_batch_norm(self) -> bool:
        return any(isinstance(module, _BatchNorm) for module in self.net.modules())

    def _learning(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.net.named_parameters() if parameter.requires_grad}

    def _copy(self, parameters: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """The network with these parameters; batch norm's running statistics of `net` don't move."""
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return lambda images: functional_call(self.net, parameters | buffers, images)

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(dim=1)


def _averaged(gradients: tuple[Tensor, ...]) -> list[Tensor]:
    """Mean over processes, in one message; the inner step is everyone's."""
    if process_count() == 1:
        return list(gradients)
    flat = mean_over_processes(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return [
        piece.view_as(gradient)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True)
    ]
