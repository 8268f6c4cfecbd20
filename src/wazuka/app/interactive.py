"""Learning again after each label, in a fraction of a second: for someone who labels while it learns.

What needs no label (the pool's directions, neighbors and graph, and what the kept classifier sees of every photo) is
computed once. A new label then costs one round of answers over the pool, whose searches begin where they ended before,
and one small matrix product over all photos. The weights of the answers come from cross-validation, which costs several
rounds: `learn` does it, `relearn` leaves the weights as they are.
"""

import torch
from torch import Tensor

from wazuka.errors import UserError
from wazuka.functional.features import check_fit
from wazuka.methods.transfer.consensus import Consensus, ConsensusSettings, Learned


class Interactive:
    """A consensus at work on features at hand.

    features  (N, D)  float32, as the backbone gives them; `extra` columns at the end come from another view
    pool              most photos that are looked at together; labeled ones beyond it join

    `head` is the classifier as it stands; it names photos of another set too.
    """

    def __init__(self, features: Tensor, classes: int, *, extra: int = 0, pool: int = 5_000):
        if not len(features) or not bool(features.sum().isfinite()):
            raise UserError("Features must be finite numbers, of one photo at least.")
        self.head = Consensus(classes, ConsensusSettings(pool=pool), extra=extra)
        self.features = features
        self._prepared = self.head.prepare(features, torch.full((len(features),), -1))
        self._inputs = torch.cat([self.head.inputs(part.float()) for part in features.split(16384)])
        self._before: Learned | None = None

    def learn(self, labels: Tensor) -> Tensor:
        """(N,) int64 labels, -1 where there is none -> (N, C) float32 probabilities; labeled photos answer too.

        With cross-validation: seconds. Raises UserError unless each class has a label.
        """
        return self._learn(labels, None)

    def relearn(self, labels: Tensor) -> Tensor:
        """As `learn`, for labels that differ a little from those before: a fraction of a second."""
        return self._learn(labels, self._before)

    def _learn(self, labels: Tensor, before: Learned | None) -> Tensor:
        check_fit(self.features, labels, self.head.classes)
        beyond = labels >= 0
        beyond[self._prepared.rows] = False
        if bool(beyond.any()):
            rows = beyond.nonzero().flatten()
            self._prepared = self.head.join(self._prepared, rows, self.features[rows])
        self._before = self.head.learn(self._prepared, labels[self._prepared.rows], before)
        return self.head.answers(self._inputs)
