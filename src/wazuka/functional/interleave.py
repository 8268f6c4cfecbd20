"""Dealing labeled and unlabeled rows out over several batches, so that batch norm sees both kinds in each of them."""

import torch
from torch import Tensor


def interleaving(labeled: int, rows: int, batches: int, device: torch.device | str | None = None) -> Tensor:
    """The order in which MixMatch's code feeds its rows (google-research/mixmatch, libml/layers.py, interleave).

    Taken in this order and cut by `tensor_split(batches)`, every batch holds about labeled / batches labeled rows:
    the p-th share of them changes places with as many rows of batch p.

    labeled  the first so many rows are labeled; at most a batch
    rows     all rows, labeled and unlabeled
    batches  how many; there, rows = batches * labeled
    returns  (rows,) int64; its own inverse, so `x[order][order]` is x
    """
    if labeled < 0 or batches < 1 or labeled * batches > rows:
        raise ValueError(f"{batches} batches must each hold {labeled} labeled rows, but there are {rows} rows")
    share, larger = divmod(labeled, batches)   # the last `larger` shares have one row more, as in the authors' code
    size, longer = divmod(rows, batches)       # the first `longer` batches have one row more, as in tensor_split
    order = torch.arange(rows, device=device)
    end = share
    for batch in range(1, batches):
        start, end = end, end + share + (batch >= batches - larger)
        shift = batch * size + min(batch, longer)
        order[start:end] += shift
        order[shift + start : shift + end] -= shift
    return order
