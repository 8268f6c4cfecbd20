"""The passes of a step from weak to strong: labeled images, a weak view to guess from, a strong view to learn from.

FixMatch and its heirs run the network on all three and differ in what they make of the weak view's logits. Who meets
whom in batch norm, and who gets a backward pass, is decided here:

- joint, the papers' way: all three go through as one batch, and batch norm sees them together;
- apart: the weak views first, without gradient, by the live weights or by averaged ones; then the labeled images and
  the strong views, whose statistics alone move the running ones;
- frugal, in either: images without a loss of their own go through forward beside those that learn (`with_onlookers`).
  Joint, these are the weak views; apart, the strong views of weight 0, which are known by then.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wazuka.contract import Batch
from wazuka.parts.averaged import AveragedWeights
from wazuka.parts.batchnorm import frozen_statistics
from wazuka.parts.onlookers import with_onlookers

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]


class WeakToStrong(NamedTuple):
    """What the passes bring; row for row, `guesses` and `weights` are of the image in `strong`.

    labeled  (N, C)  logits
    strong   (M, C)  logits
    guesses  (M, C)  probabilities, as judged; no gradient flows into them
    weights  (M,)    at least 0 (or bool, a mask), as judged; no gradient flows into them
    """

    labeled: Tensor
    strong: Tensor
    guesses: Tensor
    weights: Tensor


def weak_to_strong(
    net: nn.Module,
    batch: Batch,
    judge: Judge,
    *,
    joint: bool,
    frugal: bool,
    average: AveragedWeights | None,
) -> WeakToStrong:
    """Run `net` on the `images`, `weak` and `strong` of a batch, and `judge` the weak views on the way.

    judge    logits of the weak views (M, C) -> guesses (M, C) and weights (M,); called once, without gradient
    joint    one batch of all three; it takes the live weights, so it means nothing where averaged ones guess
    frugal   no backward pass through images without a loss. Apart, it asks the device how many learn: one wait a step
    average  the weights that guess; None: those of `net`
    """
    if joint and average is None:
        return _together(net, batch, judge, frugal)
    return _apart(net, batch, judge, frugal, average)


def _together(net: nn.Module, batch: Batch, judge: Judge, frugal: bool) -> WeakToStrong:
    learning, n = torch.cat([batch.images, batch.strong]), len(batch.images)
    if frugal:
        logits, weak = with_onlookers(net, learning, batch.weak)
    else:
        logits, weak = net(torch.cat([learning, batch.weak])).split([len(learning), len(batch.weak)])
    with torch.no_grad():
        guesses, weights = judge(weak.detach())
    return WeakToStrong(logits[:n], logits[n:], guesses, weights)


def _apart(net: nn.Module, batch: Batch, judge: Judge, frugal: bool, average: AveragedWeights | None) -> WeakToStrong:
    n = len(batch.images)
    with torch.no_grad():
        guesses, weights = judge(_look(net, batch.weak) if average is None else average(batch.weak))
    if not frugal:
        logits = net(torch.cat([batch.images, batch.strong]))
        return WeakToStrong(logits[:n], logits[n:], guesses, weights)
    learns = weights > 0
    order = learns.to(torch.int8).argsort(descending=True, stable=True)
    learners, onlookers = batch.strong[order].tensor_split([int(learns.sum())])  # the one wait for the device
    logits, idle = with_onlookers(net, torch.cat([batch.images, learners]), onlookers)
    return WeakToStrong(logits[:n], torch.cat([logits[n:], idle]), guesses[order], weights[order])


def _look(net: nn.Module, weak: Tensor) -> Tensor:
    """Logits of the weak views by the live weights, in a pass that leaves no trace."""
    with frozen_statistics(net):
        logits: Tensor = net(weak)
    torch.clear_autocast_cache()  # it holds weights that were cast without a gradient
    return logits
