"""Consensus: four ways to learn from few labels and a pool of photos, weighted by what cross-validation says.

Wazuka's own, and what `wazuka fit` takes for photos; it is made of published parts. Notation: N images, C classes.

1. Multinomial logistic regression on the labeled features alone, which are centered square roots (the power transform
   of Hu, Gripon & Pateux 2020, arXiv:2006.03806, PT-MAP), each class weighing the same.
2. Labels spread along a graph of nearest neighbors in the whitened principal directions of the pool (Zhou et al. 2003,
   NIPS; the graph as in Iscen et al. 2019, arXiv:1904.04717).
3. The same along a graph that labels have shaped: the answers of 1 and 2 are learned by a linear classifier, whose
   logits join the directions; neighbors are those that also look alike to it (in the spirit of metric learning on
   pseudo-labels). Averaged with that classifier.
4. A mixture of Gaussians with one covariance for all classes, fitted by expectation-maximization that starts at 3 and
   is held to it (semi-supervised discriminant analysis; Dempster, Laird & Rubin 1977, and McLachlan 1975).

All four answer as if classes were equally frequent. Where a class has two labels or more, each answers for labels that
it did not see (cross-validation), and the weights of their log-probabilities are fitted to that (stacking, Wolpert
1992; a penalty holds them to weights that did best on other data sets). Then the shares of the classes in the pool are
estimated (Saerens, Latinne & Decaestecker 2002), held to equal shares the more, the fewer labels there are: no prior is
assumed known. Last, a linear classifier learns the answers, and it alone is kept: it names new photos as it names old.

Constants were chosen on other sets than those of our tables: see docs/decisions.md.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.contract import Head
from wazuka.errors import UserError
from wazuka.functional.features import check_fit, check_predict
from wazuka.functional.graphs import Graph, normalized, shares, spread, symmetric_graph
from wazuka.functional.linear import fit_linear, logistic, stacked, with_shares
from wazuka.functional.neighbors import nearest

# log2 of labels a class -> weights of the four; between these, interpolated. Fitted on sets outside our tables.
WEIGHTS = ((0, (0.1, 0.3, 0.3, 0.3)), (2, (0.45, 0.0, 0.15, 0.15)), (4, (0.35, -0.2, 0.25, 0.25)))
FIRST_WEIGHTS = ((0, (0.15, 0.85)), (2, (0.5, 0.65)), (4, (0.7, 0.5)))
SCALE = 10.0      # of unit-length features before a linear classifier
SMALLEST = 1e-6   # probability
AGAIN = 10        # steps of a search that begins near its end


@dataclass(frozen=True, kw_only=True)
class ConsensusSettings:
    """pool: most images that are looked at together; more are named by what was learned from so many."""

    pool: int = 20000
    directions: int = 128     # of the graph and the mixture
    kept: int = 256           # directions of the classifier that is kept
    neighbors: int = 10
    alpha: float = 0.95       # what neighbors count against an image's own label
    folds: int = 4
    hold: float = 3.0         # of the stacking weights to those of other sets, in labels
    even: float = 3.0         # of the shares to equal ones, over labels a class; at most 0.6

    def __post_init__(self) -> None:
        if min(self.pool, self.directions, self.kept, self.neighbors) < 1:
            raise ValueError("pool, directions, kept and neighbors must be at least 1")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")
        if not 0 <= self.alpha < 1 or self.hold < 0 or self.even < 0:
            raise ValueError("alpha must lie in [0, 1), hold and even must not be negative")


class Views(NamedTuple):
    """What of the features needs no label.

    powers      (N, D)  centered square roots
    directions  (N, d)  whitened principal directions, of length 1
    near        (N, K)  candidates for neighbors
    alike       (N, K)  their inner products on the directions
    graph               of the nearest
    extra       (N, E)  standardized
    """

    powers: Tensor
    directions: Tensor
    near: Tensor
    alike: Tensor
    graph: Graph
    extra: Tensor


class Space(NamedTuple):
    """How features become views: center (D,), length () of powers, whiten (D, d); shift and stretch (E,) of extra."""

    center: Tensor
    length: Tensor
    whiten: Tensor
    shift: Tensor
    stretch: Tensor


class Prepared(NamedTuple):
    """All of a pool that needs no label, computed once: labels may then come one by one.

    rows    (P,)      positions of the pool's images among all
    views             of these
    inputs  (P, K+E)  what the kept classifier sees
    space             for images that join later
    """

    rows: Tensor
    views: Views
    inputs: Tensor
    space: Space


class Learned(NamedTuple):
    """Linear classifiers to begin the next search at: of the third answer, and the kept one; each weight and bias."""

    third: tuple[Tensor, Tensor]
    kept: tuple[Tensor, Tensor]


class Consensus(Head):
    """See the file's head. With `extra` columns at the end of the features, which come from another view of the image
    (a few numbers, any scale), a fifth answer is like the fourth, on these alone and from a logistic regression on; it
    counts only where cross-validation says so.
    """

    center: Tensor      # (D,)       of the square roots
    basis: Tensor       # (D, K)     whitening directions
    shift: Tensor       # (E,)       of the extra columns
    stretch: Tensor     # (E,)
    weight: Tensor      # (K + E, C)
    bias: Tensor        # (C,)
    stacking: Tensor    # (4 or 5,)  the weights, for the report
    pool_shares: Tensor  # (C,)      estimated shares of the classes

    def __init__(self, classes: int, settings: ConsensusSettings | None = None, *, extra: int = 0):
        super().__init__()
        self.classes, self.settings, self.extra = classes, settings or ConsensusSettings(), extra

    def fit(self, features: Tensor, labels: Tensor) -> Tensor:
        check_fit(features, labels, self.classes)
        with torch.inference_mode(False), torch.no_grad():
            prepared = self.prepare(features, labels)
            self.learn(prepared, labels[prepared.rows].clone())
        return self.predict(features)

    @torch.no_grad()
    def prepare(self, features: Tensor, labels: Tensor) -> Prepared:
        """Everything that needs no label, of all labeled images and as many others as the pool holds."""
        rows = pool_of(labels.clone(), self.settings.pool)  # copies: inference tensors can't be learned from
        pool = features[rows].float().clone()
        space = self._place(pool)
        return Prepared(rows, self._views(pool, space), self.inputs(pool), space)

    @torch.no_grad()
    def join(self, prepared: Prepared, rows: Tensor, features: Tensor) -> Prepared:
        """With more images, (M,) their positions and (M, D) their features: their neighbors are those already there."""
        views, space = prepared.views, prepared.space
        powers, directions, extra = self._seen(features.float(), space)
        alike, near = nearest(directions, views.directions, views.near.shape[1])
        alike, near = torch.cat([views.alike, alike]), torch.cat([views.near, near])
        s = self.settings
        joined = Views(
            torch.cat([views.powers, powers]), torch.cat([views.directions, directions]), near, alike,
            graph_of(alike[:, : s.neighbors], near[:, : s.neighbors]), torch.cat([views.extra, extra]),
        )  # fmt: skip
        inputs = torch.cat([prepared.inputs, self.inputs(features)])
        return Prepared(torch.cat([prepared.rows, rows]), joined, inputs, space)

    def learn(self, prepared: Prepared, labels: Tensor, before: Learned | None = None) -> Learned:
        """From the labels (P,) of the pool's images. `before`: what it learned from nearly the same labels; then the
        search begins there, and the weights of the answers stay as cross-validation last found them.
        """
        with torch.inference_mode(False), torch.no_grad():
            probs, third = self._transduce(prepared.views, labels, before)
            return Learned(third, self._keep(prepared.inputs, labels, probs, before))

    def predict(self, features: Tensor) -> Tensor:
        if not hasattr(self, "weight"):
            raise UserError("Consensus knows no classes yet: call fit, or load a fitted head's state.")
        check_predict(features, len(self.center) + len(self.shift))
        parts = [self.answers(self.inputs(part.to(self.weight.dtype))) for part in features.split(8192)]
        return torch.cat(parts)

    def answers(self, inputs: Tensor) -> Tensor:
        """(N, K + E) inputs of the kept classifier -> (N, classes) float32 probabilities."""
        return (inputs @ self.weight + self.bias).softmax(dim=1).float()

    def inputs(self, features: Tensor) -> Tensor:
        """(N, D) features, extra columns included -> (N, K + E), what the kept classifier sees."""
        first, extra = features[:, : len(self.center)], features[:, len(self.center) :]
        short = F.normalize((roots(first) - self.center) @ self.basis, dim=1) * SCALE
        return torch.cat([short, (extra - self.shift) * self.stretch], dim=1)

    def _transduce(
        self, views: Views, labels: Tensor, before: Learned | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        s, known = self.settings, labels >= 0
        answers, third = self._answers(views, labels, None if before is None else before.third)
        answers = answers.clamp_min(SMALLEST).log()
        counts = labels[known].bincount(minlength=self.classes)
        each = float(known.sum()) / self.classes
        if before is not None and hasattr(self, "stacking"):
            weights = self.stacking
        else:
            weights = start = weights_for(each, len(answers)).to(answers)
            held = self._held_out(views, labels, counts)
            if held is not None:
                weights = stacked(held[0].clamp_min(SMALLEST).log(), held[1], start, s.hold)
        probs = torch.einsum("m,mnc->nc", weights, answers).softmax(dim=1)
        even = min(0.6, s.even / each)
        probs, estimated = with_shares(probs, ~known, (counts + 1.0) / (counts + 1.0).sum(), even)
        self.remember(stacking=weights, pool_shares=estimated)
        return probs, third

    def _place(self, features: Tensor) -> Space:
        """Where pictures are looked at from, by the answers and by the classifier that is kept."""
        width = features.shape[1] - self.extra
        powers, extra = roots(features[:, :width]), features[:, width:]
        center = powers.mean(dim=0)
        powers = powers - center
        count = min(len(powers) - 1, width)
        basis = whitening(powers, max(self.settings.kept, self.settings.directions)) if count else powers.T * 0
        shift = extra.mean(dim=0)
        spread_ = extra.sub(shift).square().mean(dim=0).sqrt().clamp_min(1e-6)
        self.remember(
            center=center, basis=basis[:, : max(1, min(self.settings.kept, count))], shift=shift,
            stretch=SCALE / math.sqrt(max(1, self.extra)) / spread_,
        )  # fmt: skip
        length = powers.norm(dim=1).mean().clamp_min(1e-12)
        return Space(center, length, basis[:, : max(1, min(self.settings.directions, count))], shift, 1 / spread_)

    def _views(self, features: Tensor, space: Space) -> Views:
        s = self.settings
        powers, directions, extra = self._seen(features, space)
        alike, near = nearest(directions, directions, min(50, len(powers) - 1), same=True)
        return Views(powers, directions, near, alike, graph_of(alike[:, : s.neighbors], near[:, : s.neighbors]), extra)

    def _seen(self, features: Tensor, space: Space) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) and (N, d) and (N, E): powers, directions and extra columns of images in that space."""
        width = features.shape[1] - self.extra
        powers = (roots(features[:, :width]) - space.center) / space.length
        extra = (features[:, width:] - space.shift) * space.stretch
        return powers, F.normalize(powers @ space.whiten, dim=1), extra

    def _answers(
        self, views: Views, labels: Tensor, start: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(4 or 5, N, C) probabilities, all as if classes were equally frequent; the third answer's classifier."""
        s, known, C = self.settings, labels >= 0, self.classes
        given = F.one_hot(labels.clamp_min(0), C).float() * known[:, None]
        even = given / given.sum(dim=0)
        alone = logistic(views.powers * SCALE, labels, C, penalty=1e-3)
        along = smoothed(spread(views.graph, even, s.alpha))
        each = float(known.sum()) / C
        both = mixed(alone, along, first_mix(each))
        both[known] = given[known]
        third_ = fit_linear(
            views.directions * SCALE, both, penalty=1e-3, start=start, steps=None if start is None else AGAIN
        )
        logits = views.directions * SCALE @ third_[0] + third_[1]
        shaped = self._shaped(views, logits)
        third = mixed(logits.softmax(dim=1), smoothed(spread(shaped, even, s.alpha)), (0.5, 0.5))
        fourth = discriminant(views.directions, third, given, known)
        answers = [alone, along, third, fourth]
        if self.extra:
            seen = logistic(views.extra * (SCALE / math.sqrt(self.extra)), labels, C, penalty=1e-2)
            answers.append(discriminant(views.extra, seen, given, known, hold=0.3, shrink=0.05))
        return torch.stack(answers), third_

    def _shaped(self, views: Views, logits: Tensor) -> Graph:
        """The graph among the same candidates, of images that also look alike to the classifier."""
        told = logits.log_softmax(dim=1)
        told = F.normalize(told - told.mean(dim=1, keepdim=True), dim=1)
        agree = torch.cat([
            (told[rows, None] * told[views.near[rows]]).sum(dim=2)
            for rows in torch.arange(len(told), device=told.device).split(512)
        ])  # fmt: skip
        products = (agree + views.alike) / 2
        best, place = products.topk(min(self.settings.neighbors, products.shape[1]), dim=1)
        return graph_of(best, views.near.gather(1, place))

    def _held_out(self, views: Views, labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor] | None:
        """Answers for labels that were hidden in turn, (4 or 5, n, C), and these labels; None: no class has two."""
        known = (labels >= 0).nonzero().flatten()
        known = known[counts[labels[known]] > 1]
        if len(known) == 0:
            return None
        order = views.powers[known] @ torch.linspace(-1, 1, views.powers.shape[1], device=known.device)
        fold = turns(labels[known], order, min(self.settings.folds, int(counts.max())))
        answers = None
        for number in range(int(fold.max()) + 1):
            hidden = known[fold == number]
            kept = labels.clone()
            kept[hidden] = -1
            found, _ = self._answers(views, kept)
            if answers is None:
                answers = found.new_zeros(len(found), len(known), self.classes)
            answers[:, fold == number] = found[:, hidden]
        assert answers is not None
        return answers, labels[known]

    def _keep(self, inputs: Tensor, labels: Tensor, probs: Tensor, before: Learned | None) -> tuple[Tensor, Tensor]:
        """The linear classifier that learns the answers; labeled images answer their label."""
        known, targets = labels >= 0, probs.clone()
        targets[known] = F.one_hot(labels[known], self.classes).float()
        start, steps = (None, None) if before is None else (before.kept, AGAIN)
        weight, bias = fit_linear(inputs, targets, penalty=1e-3, start=start, steps=steps)
        self.remember(weight=weight, bias=bias)
        return weight, bias


def first_mix(each: float) -> tuple[float, ...]:
    """Weights of logistic regression and spreading in what the linear classifier of the third answer learns."""
    return interpolated(each, FIRST_WEIGHTS)


def weights_for(each: float, count: int) -> Tensor:
    """(count,) stacking weights for so many labels a class, where no cross-validation speaks; 0 for an extra view."""
    return torch.tensor([*interpolated(each, WEIGHTS), 0.0][:count])


def interpolated(each: float, table: tuple[tuple[int, tuple[float, ...]], ...]) -> tuple[float, ...]:
    """A row of the table, between its entries along the logarithm of the labels a class."""
    at = math.log2(max(1.0, each))
    if at >= table[-1][0]:
        return table[-1][1]
    upper = next(number for number, (place, _) in enumerate(table) if place > at)
    (left, low), (right, high) = table[upper - 1], table[upper]
    share = (at - left) / (right - left)
    return tuple(a + share * (b - a) for a, b in zip(low, high, strict=True))


def roots(features: Tensor) -> Tensor:
    """Square roots with their sign, each row of length 1: large entries no longer outvote the others. (N, D)"""
    return F.normalize(features.sign() * (features.abs() + 1e-6).sqrt(), dim=1)


def whitening(centered: Tensor, count: int) -> Tensor:
    """The leading principal directions, divided by the fourth root of their variance: halfway to white. Directions that
    hardly vary stay small, for they are rounding.

    centered  (N, D)
    returns   (D, count)
    """
    covariance = (centered.T @ centered).double() / len(centered)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return (vectors / values.clamp_min(1e-4 * float(values[0]) + 1e-30) ** 0.25).to(centered.dtype)


def graph_of(cosines: Tensor, neighbors: Tensor) -> Graph:
    """The normalized graph of neighbors, joined by the cosine to the power 3 (Iscen et al. 2019)."""
    return normalized(symmetric_graph(neighbors, cosines.clamp_min(0) ** 3))[0]


def smoothed(votes: Tensor) -> Tensor:
    """Votes as probabilities, none of them 0. (N, C)"""
    return shares(votes + 1e-3 * votes.mean(dim=1, keepdim=True).clamp_min(1e-12))


def mixed(one: Tensor, other: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Softmax of the weighted log-probabilities. (N, C)"""
    logs = weights[0] * one.clamp_min(SMALLEST).log() + weights[1] * other.clamp_min(SMALLEST).log()
    return logs.softmax(dim=1)


def discriminant(
    inputs: Tensor, start: Tensor, given: Tensor, known: Tensor, hold: float = 0.7, shrink: float = 0.3, steps: int = 10
) -> Tensor:
    """Gaussians with one covariance, by expectation-maximization from `start` on; labels stay what they are.

    inputs   (N, d)
    start    (N, C)  probabilities; they keep the share `hold` of each answer's logarithm
    given    (N, C)  one-hot where `known` (N,) says so
    shrink           share of the covariance that is made round, in [0, 1]
    returns  (N, C)  as if classes were equally frequent
    """
    probs, first = torch.where(known[:, None], given, start), start.clamp_min(SMALLEST).log()
    total, identity = inputs.T @ inputs, torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    log_density = first
    for _ in range(steps):
        mass = probs.sum(dim=0).clamp_min(1e-6)
        means = probs.T @ inputs / mass[:, None]
        covariance = (total - (means.T * mass) @ means) / len(inputs)
        round_ = covariance.diagonal().mean().clamp_min(1e-12)
        factor = torch.linalg.cholesky((1 - shrink) * covariance + (shrink + 1e-4) * round_ * identity)
        inverse = torch.cholesky_solve(means.T, factor)                     # (d, C)
        log_density = inputs @ inverse - (means.T * inverse).sum(dim=0) / 2  # up to what is the same for all classes
        frequent = (mass / len(inputs) + 0.1 / len(mass)).log()
        probs = ((1 - hold) * (log_density + frequent) + hold * first).softmax(dim=1)
        probs = torch.where(known[:, None], given, probs)
    return ((1 - hold) * log_density + hold * first).softmax(dim=1)


def turns(labels: Tensor, order: Tensor, folds: int) -> Tensor:
    """Which fold each label is hidden in: the labels of each class take turns, in the order of `order`. (n,)"""
    fold = torch.zeros_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        fold[rows[order[rows].argsort(stable=True)]] = torch.arange(len(rows), device=labels.device) % folds
    return fold


def pool_of(labels: Tensor, most: int) -> Tensor:
    """Positions that are looked at together: all labeled images, and of the others so many, evenly spaced."""
    if len(labels) <= most:
        return torch.arange(len(labels), device=labels.device)
    known, others = (labels >= 0).nonzero().flatten(), (labels < 0).nonzero().flatten()
    count = max(0, min(len(others), most - len(known)))
    at = torch.linspace(0, len(others) - 1, count, device=labels.device).round().long()
    return torch.cat([known, others[at]]).sort().values
