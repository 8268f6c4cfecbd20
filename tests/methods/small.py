"""All that `wazuka.methods` holds, made small: what the contract tests and the two-process test run.

A new method joins by existing. Where its constructor needs more than a network, a number of classes and settings, or
where its streams draw from pools unknown here, this file is the place to say so.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wazuka.app.catalog import Entry, build, entries
from wazuka.augment import AffineStrong, Plain, Weak
from wazuka.contract import Batch, Detector, Episodes, Head, Method, Optimizer, Player
from wazuka.data.streams import Batches, Pool
from wazuka.nets import Backbone, ConvNet
from wazuka.training import Progress, Stepper, train

METHODS = {name: item for name, item in entries().items() if issubclass(item.kind, Method)}
HEADS = {name: item for name, item in entries().items() if issubclass(item.kind, Head)}
DETECTORS = {name: item for name, item in entries().items() if issubclass(item.kind, Detector)}

NUMBERS = {"sde_net_regression"}  # methods that answer with numbers, not with classes

CLASSES = 4  # of images, of answers, and of quarter turns
SIDE = 8
POOL = 24  # images in each pool
NAMELESS = ("unlabeled", "target", "odd")  # pools whose labels no method may see
POLICIES = {"plain": Plain(), "weak": Weak(shift=0.25), "strong": AffineStrong()}

# Fields by the names that settings share; a method without them keeps its defaults, which only makes it slower.
FEW: dict[str, Any] = {
    "labeled_batch": 4, "unlabeled_batch": 6, "batch": 4, "unlabeled_ratio": 2, "way": 3, "shot": 2, "query": 2,
    "copies": 2, "odd_batch": 6,
    "threshold": 0.3,  # below any maximum of four probabilities but the flattest: guesses count from the first step on
    "inner_lr": 0.5,   # a step that is looked through must lead somewhere
}  # fmt: skip


class Perceptron(Backbone):
    """A network without batch norm, which normalizes by what its own process sees."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_size = 6
        self.hidden, self.head = nn.Linear(SIDE * SIDE, 6), nn.Linear(6, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        return self.hidden(images.flatten(1) * 4).tanh()


def small_net() -> ConvNet:
    return ConvNet(channels=1, classes=CLASSES, widths=(8, 8), momentum=0.1)


def images_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(count, 1, 8, 8) uint8: one bright quarter in noise; (count,) labels, in turn: which quarter."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 1, SIDE, SIDE), generator=generator)
    labels, half = torch.arange(count) % CLASSES, SIDE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        down, right = divmod(label, 2)
        image[:, down * half :, right * half :][:, :half, :half] += 150
    return images.to(torch.uint8), labels


def pools() -> dict[str, Pool]:
    """All that a method may draw from; nobody can learn from labels that are not there."""
    made = {}
    for number, name in enumerate(("labeled", "unlabeled", "source", "target", "odd")):
        images, labels = images_of(POOL, seed=number)
        made[name] = Pool(images, torch.full_like(labels, -1) if name in NAMELESS else labels)
    return made


def settings_of(item: Entry, **changes: Any) -> Any:
    assert item.settings is not None, f"{item.name} has no {item.kind.__name__}Settings"
    names = {field.name for field in dataclasses.fields(item.settings)}
    return item.settings(**{name: value for name, value in FEW.items() if name in names} | changes)


def variants(item: Entry) -> list[dict[str, Any]]:
    """What to change in the settings: nothing, then each switch and each choice of words, one at a time."""
    assert item.settings is not None
    hints, default = typing.get_type_hints(item.settings), item.settings()
    turned: list[dict[str, Any]] = [{}]
    for field in dataclasses.fields(item.settings):
        kind, value = hints[field.name], getattr(default, field.name)
        if kind is bool:
            turned.append({field.name: not value})
        elif typing.get_origin(kind) is typing.Literal:
            turned += [{field.name: word} for word in typing.get_args(kind) if word != value]
    return turned


def small(
    name: str, *, seed: int = 0, net: Callable[[], nn.Module] = small_net, changes: dict[str, Any] | None = None
) -> Method:
    item = METHODS[name]
    settings = settings_of(item, **(changes or {}))
    torch.manual_seed(seed + 1)
    teacher = net()
    torch.manual_seed(seed)
    guesses = torch.randn(POOL, CLASSES, generator=torch.Generator().manual_seed(6)).softmax(dim=1)
    return build(
        item, net(), CLASSES, settings, unlabeled=POOL, shape=(1, SIDE, SIDE), teacher=teacher, guesses=guesses
    )


def batches_of(method: Method, rank: int = 0, world: int = 1) -> Batches:
    return Batches(method.streams(), pools(), POLICIES, seed=3, rank=rank, world=world)


def steppers_of(method: Method, rule: Optimizer | None = None) -> dict[Player, Stepper]:
    return {player: Stepper(player, rule or own) for player, own in method.players().items()}


def run(
    method: Method,
    steppers: dict[Player, Any] | None = None,
    *,
    steps: int = 4,
    batches: Callable[[int], Batch] | None = None,
    seed: int = 5,
    **more: Any,
) -> list[dict[str, float]]:
    """Train; -> what each step reported."""
    told: list[dict[str, float]] = []

    def note(progress: Progress) -> bool:
        told.append({name: float(value) for name, value in progress.parts.items()})
        return True

    train(
        method,
        batches or batches_of(method),
        steppers or steppers_of(method),
        total_steps=steps,
        seed=seed,
        **{"after_step": note, **more},
    )
    return told


def answering(method: Method) -> Method:
    """In eval mode; a method that learns no classes is shown some first."""
    method.eval()
    if hasattr(method, "fit_prototypes"):
        images, labels = images_of(12, seed=9)
        method.fit_prototypes(images.float() / 255, labels)
    return method


class Recording:
    """A stepper that keeps the gradient of each turn."""

    def __init__(self, stepper: Stepper):
        self.stepper, self.gradients = stepper, []  # type: ignore[var-annotated]

    def step(self, loss: Tensor, progress: float) -> None:
        self.stepper.step(loss, progress)
        kept = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.stepper.parameters]
        self.gradients.append(torch.cat([gradient.flatten() for gradient in kept]).clone())


def head_of(name: str, classes: int = CLASSES, **changes: Any) -> Head:
    item = HEADS[name]
    head = item.kind(classes, settings_of(item, **changes))  # type: ignore[call-arg, arg-type]
    assert isinstance(head, Head)
    return head


def detector_of(name: str, **changes: Any) -> Detector:
    item = DETECTORS[name]
    detector = item.kind(settings_of(item, **changes)) if item.settings else item.kind()  # type: ignore[call-arg]
    assert isinstance(detector, Detector)
    return detector


def features_of(count: int, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """(count, 3 * classes) float32, none negative, of classes that lie apart; (count,) their classes, in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    own = torch.eye(classes).repeat_interleave(3, dim=1)[labels]
    return own + torch.randn(count, 3 * classes, generator=generator).abs() * 0.6, labels


def few_labels(labels: Tensor, shots: int) -> Tensor:
    """The labels of each class's first `shots` images, -1 for all others."""
    rank = (labels[:, None] == labels).tril(-1).sum(dim=1)  # how many of the class stand before
    return torch.where(rank < shots, labels, -1)


def draws_episodes(method: Method) -> bool:
    return any(isinstance(stream, Episodes) for stream in method.streams())


def head_cases() -> list[tuple[str, dict[str, Any]]]:
    """(head, what to change in its settings): all variants of all heads."""
    return [(name, turned) for name, item in HEADS.items() for turned in variants(item)]


def detector_cases() -> list[tuple[str, dict[str, Any]]]:
    """(detector, what to change in its settings): all variants of all detectors, and ODIN with a nudge."""
    turned = [(name, one) for name, item in DETECTORS.items() for one in (variants(item) if item.settings else [{}])]
    return [*turned, ("odin", {"size": 0.002}), ("odin", {"size": 0.002, "temperature": 1.0})]


def cases() -> list[tuple[str, dict[str, Any]]]:
    """(method, what to change in its settings): all variants of all methods."""
    return [(name, turned) for name, item in METHODS.items() for turned in variants(item)]
