"""Where the tuning of a pre-trained network begins: at what `consensus` makes of its frozen features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.app.transfer import TOGETHER, Features, learn_apart
from wazuka.app.tuned import Start
from wazuka.functional.linear import fit_linear
from wazuka.methods.transfer.consensus import Consensus, pool_of

SCALE = 10.0  # of features of mean length 1, before the first head


def start_from(features: Features, labels: Tensor, classes: int) -> Start:
    """From the frozen network's features of N images and their labels (N,), -1 where there is none.

    As in `fit`, at most TOGETHER images are learned from, without those that seem to show none of the classes.
    """
    rows, head = pool_of(labels, TOGETHER), Consensus(classes)
    pool, known = features[rows.numpy()], labels[rows]
    learn_apart(head, pool, known)
    guesses = torch.cat([head.predict(block) for _, block in features.blocks()])
    targets = guesses[rows].clone()
    targets[known >= 0] = F.one_hot(known[known >= 0], classes).float()
    center = pool.mean(dim=0)
    length = (pool - center).norm(dim=1).mean().clamp_min(1e-12)
    weight, bias = fit_linear((pool - center) / length * SCALE, targets, penalty=1e-3)
    weight = weight * (SCALE / length)
    return Start(weight.T.contiguous(), bias - center @ weight, guesses)
