"""The three promises the rest of Wazuka keeps: a Method learns, a Head learns on features, a Detector scores.

A **Method** turns a batch into losses and images into answers. It knows no device, file, optimizer or process:
it says which streams of images it wants (`streams`), who its players are and how their parameters step (`players`),
and what the losses are (`loss`, or `moves` for a game). What it remembers is a parameter or a buffer, so that saving,
moving and resuming need no code of its own.

A **Head** learns classes on the features of a frozen network, from labeled and unlabeled images together, in one go:
no loop, no images, no gradient steps that anyone else must know of.

A **Detector** is fitted after training, from what a frozen network makes of images, and says how odd an image is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Callable[[float], float]
Parts = dict[str, Tensor]
Player = nn.Module | tuple[nn.Module, ...]


class Batch(SimpleNamespace):
    """What the streams deliver for one step: one attribute per view, label and index that the method asked for.

    Images are float32 in [0, 1], shape (N, C, H, W); labels and indices int64, shape (N,).
    """


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A flow of single images, each drawn once per pass over its pool, in an order that the seed decides.

    pool     which images: "labeled", "unlabeled" (which, as in the papers' code, contains the labeled ones),
             "source", "target", or any name the caller and the method agree on
    batch    images per step, over all processes
    views    field of the batch -> name of the policy that makes it ("plain", "weak", "strong", ...);
             views of one stream show the same images in the same order
    labels   field of the batch that gets the labels; None: the method may not see them
    index    field of the batch that gets each image's row in the pool; None: not wanted
    """

    pool: str
    batch: int
    views: Mapping[str, str]
    labels: str | None = None
    index: str | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"a stream's batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """A flow of few-shot tasks: `way` classes, `shot` support and `query` query images of each, drawn without
    replacement. The batch gets `support` (way*shot, C, H, W) and `query` (way*query, C, H, W), class-major.
    """

    pool: str
    way: int
    shot: int
    query: int
    policy: str = "plain"

    def __post_init__(self) -> None:
        if min(self.way, self.shot, self.query) < 1:
            raise ValueError(f"way, shot and query must be at least 1, got {self.way}, {self.shot}, {self.query}")


def constant(progress: float) -> float:
    """The schedule that leaves the learning rate alone."""
    return 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Pace:
    """A part of a player that learns at a pace of its own.

    parameters  of the part; they are among the player's
    rate        factor on the player's learning rate
    start       share of the run, in [0, 1), before which the part rests: nothing moves it, neither decay nor momentum,
                and no gradient is computed for it
    """

    parameters: tuple[nn.Parameter, ...]
    rate: float = 1.0
    start: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate >= 0 or not 0 <= self.start < 1:
            raise ValueError(f"rate must not be negative and start lie in [0, 1), got {self.rate} and {self.start}")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a player's parameters step. Weight decay reaches kernels only: biases and norms have one dimension.

    algorithm     "sgd" (Nesterov where momentum > 0), "adam" (decay coupled: added to the gradient), "adamw"
                  (decay decoupled: W <- W * (1 - lr * weight_decay)) or "muon" (convolutions step orthogonalized,
                  the rest as AdamW; with AdamW's learning rate and decay)
    lr            learning rate at the schedule's value 1
    momentum      SGD's or Muon's momentum, or Adam's beta1, in [0, 1)
    beta2         Adam's second beta, in [0, 1)
    weight_decay  coefficient, as torch.optim takes it
    schedule      progress in [0, 1] -> factor on lr
    clip          largest norm that the gradient of all the player's parameters together may have: a longer one is
                  scaled down to it, after processes were averaged; None: as it is
    paces         parts of the player with rates and starts of their own, which share no parameter; what is in none of
                  them learns at lr from the start
    """

    algorithm: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    lr: float
    momentum: float = 0.9
    nesterov: bool = True
    beta2: float = 0.999
    weight_decay: float = 0.0
    schedule: Schedule = field(default=constant)
    clip: float | None = None
    paces: tuple[Pace, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.algorithm not in ("sgd", "adam", "adamw", "muon"):
            raise ValueError(f'algorithm must be "sgd", "adam", "adamw" or "muon", got {self.algorithm!r}')
        if self.lr < 0 or self.weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {self.lr} and {self.weight_decay}")
        if not 0 <= self.momentum < 1 or not 0 <= self.beta2 < 1:
            raise ValueError(f"momentum and beta2 must lie in [0, 1), got {self.momentum} and {self.beta2}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or None for no limit, got {self.clip}")


class Method(nn.Module):
    """What the loop needs. Most methods write `streams`, `loss` and `predict`; a game writes `players` and `moves`."""

    settings: Any  # a frozen dataclass; its `optimizer` field serves the default `players`

    def streams(self) -> tuple[Stream | Episodes, ...]:
        """Which images it wants each step."""
        raise NotImplementedError

    def players(self) -> dict[Player, Optimizer]:
        """The modules that step, and how. Default: the whole method, as one."""
        return {self: self.settings.optimizer}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        """The scalar to minimize, and detached scalars worth a curve. progress: share of training done, in [0, 1]."""
        raise NotImplementedError

    def moves(self, batch: Batch, progress: float) -> Iterator[tuple[Player, Tensor, Parts]]:
        """Yield (player, loss, parts) for each turn. The loop steps that player; then the generator goes on."""
        total, parts = self.loss(batch, progress)
        yield self, total, parts

    def after_step(self) -> None:
        """Called once a step, when all turns are done: averages, queues, centroids."""

    def before_round(self, data: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Called before each pass over the largest pool, in eval mode and without gradient, with every pool's
        (images uint8, labels): clustering.
        """

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, classes) probabilities. Call it in eval mode."""
        raise NotImplementedError


class Head(nn.Module):
    """Learns classes on features at hand, labeled and unlabeled together. The same input gives the same answers.

    What it has learned is buffers, which `fit` registers with `remember`; `load_state_dict` makes those that a saved
    state holds, so that saving and loading need no code. It works in float32 or better.
    """

    classes: int

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        """Learn, and name the images that were learned from.

        features  (N, D)        float32, as the backbone gives them
        labels    (N,)          int64 positions of classes; -1 where unlabeled
        returns   (N, classes)  float32 probabilities of the same images; those of labeled ones are not held to the
                                label where the method itself does not hold them
        """
        raise NotImplementedError

    def predict(self, features: Tensor) -> Tensor:
        """(M, D) features of new images -> (M, classes) float32 probabilities, each image on its own."""
        raise NotImplementedError

    def remember(self, **values: Tensor) -> None:
        """Register what was learned as buffers, in place of what was learned before."""
        for name, value in values.items():
            self.register_buffer(name, value.detach().contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        self.remember(**{name: value.clone() for name, value in own.items() if "." not in name})
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True, kw_only=True)
class Nudge:
    """A small step of every pixel towards what the network took the image for (ODIN): x - size * sign(gradient of the
    cross-entropy between softmax(logits / temperature) and the guess), not clipped.

    size         of the step, where images lie in [0, 1]
    temperature  above 0
    """

    size: float
    temperature: float = 1000.0

    def __post_init__(self) -> None:
        if not self.size >= 0 or not self.temperature > 0:
            raise ValueError(f"size must not be negative and temperature be above 0, got {self.size} and "
                             f"{self.temperature}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wants:
    """What a detector needs beside logits and features; nobody computes it for the others' sake.

    activations  names of inner layers; None: all that the network records
    nudge        a second pass over nudged images
    """

    activations: tuple[str, ...] | None = ()
    nudge: Nudge | None = None


@dataclass(frozen=True)
class Observation:
    """What a frozen network made of a batch, in one pass; a detector needs nothing else.

    logits       (N, C)
    features     (N, D)          what enters the last linear layer
    activations  name -> (N, ...)  outputs of inner layers, in the order they ran; empty unless asked for
    head         the last linear layer, logits = head(features); None where there is none
    passes       (T, N, C)       logits of each member of an ensemble or of each noisy pass, whose mean softmax is the
                                 softmax of `logits`; None where a single pass answered
    nudged       nudge -> (N, C)  logits of the nudged images; empty unless asked for
    """

    logits: Tensor
    features: Tensor
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    head: nn.Module | None = None
    passes: Tensor | None = None
    nudged: Mapping[Nudge, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)

    def of(self, rows: Tensor) -> "Observation":
        """Those images of it that the mask (N,) names."""
        return Observation(
            self.logits[rows],
            self.features[rows],
            {name: activation[rows] for name, activation in self.activations.items()},
            self.head,
            None if self.passes is None else self.passes[:, rows],
            {nudge: logits[rows] for nudge, logits in self.nudged.items()},
        )


class Detector(nn.Module):
    """Says how odd an image is to a trained network. Fitted on images that are not odd; never shown odd ones."""

    @property
    def wants(self) -> Wants:
        """What its observations must hold beside logits and features; for scoring, once it is fitted."""
        return Wants()

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "Detector":
        """Learn from the training images. `observations()` starts a fresh pass over them in batches, so that a
        detector may look twice without anyone holding all activations at once. Returns itself.
        """
        raise NotImplementedError

    def score(self, observation: Observation) -> Tensor:
        """(N,) float; high means odd."""
        raise NotImplementedError


def parameters_of(player: Player) -> list[nn.Parameter]:
    """The player's parameters that step, each once, in a fixed order."""
    modules = player if isinstance(player, tuple) else (player,)
    unique: dict[nn.Parameter, None] = {p: None for module in modules for p in module.parameters() if p.requires_grad}
    return list(unique)


def as_tensor_parts(**parts: Tensor) -> Parts:
    """Detach every part, so that a curve never keeps a graph alive."""
    return {name: torch.as_tensor(value).detach() for name, value in parts.items()}
