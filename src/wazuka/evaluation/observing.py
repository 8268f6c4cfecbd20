"""One look at each image for many detectors: what they want together, computed once.

A pass through the network is dear, and what most detectors need of it is small. So `fit_all` runs it once, keeps
logits, features and the like, and lets every detector look at those as often as it likes; outputs of inner layers,
which are a thousand times larger, stream by and are never held for more than a batch. Parameters get no gradient,
modes are as before, and no hook stays, also after an error.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from wazuka.contract import Detector, Nudge, Observation
from wazuka.functional.uncertainty import mean_logits

Nets = nn.Module | Sequence[nn.Module]
KEEP = 2**30  # bytes of logits and features that `fit_all` holds


def observe(nets: Nets, images: Tensor, layers: Iterable[str] | None = (), nudges: Iterable[Nudge] = ()) -> Observation:
    """What a frozen network makes of a batch: one pass, one more backward for each temperature that images are nudged
    at, and one more forward for each nudge.

    nets    a module with `observe(images)`, and `observe(images, layers)` where inner layers are asked for; or several:
            an ensemble, see `together`
    images  (N, C, H, W) float in [0, 1]; left as they are
    layers  as `Backbone.observe` takes them
    """
    members = [nets] if isinstance(nets, nn.Module) and hasattr(nets, "observe") else list(nets)  # type: ignore[arg-type]
    if not members:
        raise ValueError("an ensemble has one member at least")
    ask = None if layers is None else tuple(layers)

    def look(at: Tensor, ask: tuple[str, ...] | None = ()) -> Observation:
        if members[0] is nets:
            return _seen(members[0], at, ask)
        own = [ask and _of_member(ask, place) for place in range(len(members))]
        return together([_seen(net, at, names) for net, names in zip(members, own, strict=True)])

    wanted = list(dict.fromkeys(nudges))
    temperatures = list(dict.fromkeys(nudge.temperature for nudge in wanted if nudge.size))
    with evaluating(members):
        if not temperatures:
            with torch.no_grad():
                seen = look(images, ask)
            return replace(seen, nudged=dict.fromkeys(wanted, seen.logits))
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
            seen = look(leaf, ask)
            uphill = _directions(seen.logits, leaf, temperatures)
        seen = _detached(seen)
        with torch.no_grad():
            nudged = {
                nudge: look(images + nudge.size * uphill[nudge.temperature]).logits if nudge.size else seen.logits
                for nudge in wanted
            }
        return replace(seen, nudged=nudged)


def together(seen: Sequence[Observation]) -> Observation:
    """What the members of an ensemble say of the same images.

    Their probabilities are averaged, never their logits (see `mean_logits`). Features stand side by side, an inner
    layer's name gets its member's number ("0.conv1"), and there is no last layer.
    """
    passes = torch.cat([one.logits[None] if one.passes is None else one.passes for one in seen]).float()
    activations = {
        f"{place}.{name}": activation for place, one in enumerate(seen) for name, activation in one.activations.items()
    }
    features = torch.cat([one.features for one in seen], dim=1)
    return Observation(mean_logits(passes), features, activations, passes=passes)


class Observer:
    """Looks at images for these detectors, and for no one else: call it with a batch.

    What they want may change as they are fitted, so they are asked anew for each batch.
    """

    def __init__(self, nets: Nets, detectors: Iterable[Detector]):
        self.nets, self.detectors = nets, list(detectors)

    def __call__(self, images: Tensor) -> Observation:
        wants = [detector.wants for detector in self.detectors]
        names = [want.activations for want in wants]
        layers = None if None in names else tuple(dict.fromkeys(name for own in names for name in own or ()))
        return observe(self.nets, images, layers, [want.nudge for want in wants if want.nudge])


def fit_all(
    detectors: Iterable[Detector], nets: Nets, batches: Callable[[], Iterable[Tensor]], keep: int = KEEP
) -> None:
    """Fit them on the same images, with as few passes as can be: one, and one more for each further look that a
    detector takes at inner layers (Gram matrices take two looks).

    batches  starts a fresh pass over the images (N, C, H, W), always the same in the same order
    keep     bytes of logits and features, of the first images, that are held between passes: (D + C) * 4 bytes an
             image, 5 KiB for 1280 features. Beyond that, images are looked at anew in each pass
    """
    # memory is buffers: who has none learns nothing, and what it wants, it wants for scoring
    learning = [detector for detector in detectors if next(detector.buffers(), None) is not None]
    known = _Known(nets, batches, [one.wants.nudge for one in learning if one.wants.nudge], keep)
    for detector in sorted(learning, key=lambda one: one.wants.activations == ()):  # the deep ones' pass serves all
        layers = detector.wants.activations
        detector.fit(known.light if layers == () else lambda layers=layers: known.deep(layers))  # type: ignore[misc]


def score_all(detectors: Mapping[str, Detector], nets: Nets, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """What each of them says of the images, in one pass: name -> (N,) scores, high means odd."""
    observer = Observer(nets, detectors.values())
    found: dict[str, list[Tensor]] = {name: [] for name in detectors}
    for images in batches:
        seen = observer(images)
        for name, detector in detectors.items():
            found[name].append(detector.score(seen))
    return {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in found.items()}


class _Known:
    """Passes over the known images; what is small of the first ones is held, up to a number of bytes."""

    def __init__(self, nets: Nets, batches: Callable[[], Iterable[Tensor]], nudges: list[Nudge], keep: int):
        self.nets, self.batches, self.nudges, self.room = nets, batches, nudges, keep
        self.kept: list[Observation] = []
        self.complete = False  # all of them are kept
        self.full = False

    def light(self) -> Iterator[Observation]:
        """Without inner layers."""
        yield from self.kept
        if not self.complete:
            start = len(self.kept)
            for number, images in enumerate(itertools.islice(self.batches(), start, None), start):
                yield self._keep(number, observe(self.nets, images, (), self.nudges))
            self.complete = not self.full

    def deep(self, layers: tuple[str, ...] | None) -> Iterator[Observation]:
        """With inner layers, which nobody holds."""
        for number, images in enumerate(self.batches()):
            if number < len(self.kept):
                yield replace(observe(self.nets, images, layers), nudged=self.kept[number].nudged)
            else:
                yield self._keep(number, observe(self.nets, images, layers, self.nudges))
        self.complete = not self.full

    def _keep(self, number: int, seen: Observation) -> Observation:
        light = replace(seen, activations={})
        tensors = [light.logits, light.features, light.passes, *light.nudged.values()]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        self.full = self.full or size > self.room
        if not self.full and number == len(self.kept):
            self.kept.append(light)
            self.room -= size
        return seen


@contextmanager
def evaluating(nets: Iterable[nn.Module]) -> Iterator[None]:
    """All of them in eval mode, and each part back in its own afterwards."""
    modes = [(part, part.training) for net in nets for part in net.modules()]
    try:
        for net in nets:
            net.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _seen(net: nn.Module, images: Tensor, layers: tuple[str, ...] | None) -> Observation:
    """`layers` is left unsaid where none are wanted: not every network records."""
    seen: Observation = net.observe(images) if layers == () else net.observe(images, layers=layers)  # type: ignore[operator]
    return seen


def _of_member(names: tuple[str, ...], place: int) -> tuple[str, ...]:
    return tuple(name.removeprefix(f"{place}.") for name in names if name.startswith(f"{place}."))


def _directions(logits: Tensor, images: Tensor, temperatures: Sequence[float]) -> dict[float, Tensor]:
    """Temperature -> (N, C, H, W) of -1, 0 and 1: the way each pixel must go to make the guess likelier."""
    if not logits.requires_grad:
        raise ValueError("images can't be nudged: the network's observe lets no gradient through to them")
    guesses, found = logits.argmax(dim=1, keepdim=True), {}
    guessed, others = logits.gather(1, guesses), logits.scatter(1, guesses, -torch.inf)
    for place, temperature in enumerate(temperatures, 1):
        # Cross-entropy is softplus of the log-odds against the guess and rises with them: the same signs, but where
        # the guess is sure, the cross-entropy's gradient is 0. The sum, for no image may depend on its batch.
        against = ((others / temperature).logsumexp(dim=1, keepdim=True) - guessed / temperature).sum()
        (gradient,) = torch.autograd.grad(against, images, retain_graph=place < len(temperatures))
        found[temperature] = -gradient.sign()
    return found


def _detached(seen: Observation) -> Observation:
    return replace(
        seen,
        logits=seen.logits.detach(),
        features=seen.features.detach(),
        activations={name: activation.detach() for name, activation in seen.activations.items()},
        passes=None if seen.passes is None else seen.passes.detach(),
    )
