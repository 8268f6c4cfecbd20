"""Graphs that join images with those most alike, and what spreads along them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Graph(NamedTuple):
    """A sparse matrix by rows: what joins image i lies from starts[i] to starts[i + 1]. An edge may stand in parts.

    starts   (N,)  int64
    ends     (E,)  int64, the other image
    weights  (E,)  >= 0
    """

    starts: Tensor
    ends: Tensor
    weights: Tensor

    def times(self, values: Tensor) -> Tensor:
        """The matrix times a dense one; (N, C) -> (N, C). Several times faster than torch.sparse."""
        return F.embedding_bag(self.ends, values, self.starts, mode="sum", per_sample_weights=self.weights)


def symmetric_graph(neighbors: Tensor, weights: Tensor) -> Graph:
    """A + A^T, where A has each image's neighbors in its row; (N, K) int64 and (N, K) -> Graph of 2 N K edges."""
    count = len(neighbors)
    rows = torch.arange(count, device=neighbors.device).repeat_interleave(neighbors.shape[1])
    begins, ends = torch.cat([rows, neighbors.flatten()]), torch.cat([neighbors.flatten(), rows])
    order = begins.argsort(stable=True)
    degrees = begins.bincount(minlength=count)
    return Graph(degrees.cumsum(0) - degrees, ends[order], weights.flatten().repeat(2)[order])


def normalized(graph: Graph) -> tuple[Graph, Tensor]:
    """S = D^(-1/2) W D^(-1/2), and the diagonal of D^(-1/2), (N, 1); 1 for an image that nothing joins."""
    degrees = graph.times(graph.weights.new_ones(len(graph.starts), 1))
    scale = torch.where(degrees > 0, degrees.rsqrt(), 1)
    begins = torch.repeat_interleave(
        torch.arange(len(graph.starts), device=graph.ends.device), graph.starts.diff(append=_total(graph))
    )
    return graph._replace(weights=graph.weights * scale[begins, 0] * scale[graph.ends, 0]), scale


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, limit: int = 2000
) -> Tensor:
    """Solve A X = B for symmetric positive definite A, all columns at a time, from X = 0 on.

    operator   (N, C) -> (N, C), A times its argument
    right      (N, C)  B
    tolerance          a column rests when its residual is no longer than this share of its right side
    limit              most products with A
    """
    solution, residual = torch.zeros_like(right), right
    direction, length = residual, residual.square().sum(dim=0)
    goal = tolerance**2 * length
    for _ in range(limit):
        if (length <= goal).all():
            break
        image = operator(direction)
        step = torch.where(length > 0, length / (direction * image).sum(dim=0), 0)
        solution, residual = solution + step * direction, residual - step * image
        before, length = length, residual.square().sum(dim=0)
        direction = residual + torch.where(before > 0, length / before, 0) * direction
    return solution


def spread(graph: Graph, given: Tensor, alpha: float, tolerance: float = 1e-4) -> Tensor:
    """(1 - alpha) (I - alpha S)^(-1) Y, where labels come to rest along a normalized graph (Zhou et al. 2003, NIPS).

    given    (N, C)  Y, what each image says itself
    alpha            what neighbors count against that, in [0, 1)
    returns  (N, C)  >= 0
    """
    solved = conjugate_gradients(lambda values: values - alpha * graph.times(values), given, tolerance)
    return (1 - alpha) * solved.clamp_min(0)  # what lies below zero is rounding: S has no negative entry


def shares(votes: Tensor) -> Tensor:
    """Each row over its sum, as float32; a row of zeros becomes equal shares. (N, C) >= 0 -> (N, C)"""
    total = votes.sum(dim=1, keepdim=True)
    return torch.where(total > 0, votes / total, 1 / votes.shape[1]).float()


def _total(graph: Graph) -> Tensor:
    return torch.tensor([len(graph.ends)], device=graph.starts.device)
