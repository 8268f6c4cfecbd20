import copy

import torch
from torch import nn

from wazuka.parts.anchor import Anchor


def test_it_holds_copies_in_their_order_that_are_saved_and_never_learn() -> None:
    layer = nn.Linear(2, 3)
    before = copy.deepcopy(layer)
    anchor = Anchor(layer.parameters())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    for kept, was in zip(anchor(), before.parameters(), strict=True):
        assert torch.equal(kept, was)
        assert not kept.requires_grad
    assert list(anchor.parameters()) == []
    other = Anchor(layer.parameters())
    other.load_state_dict(anchor.state_dict())
    assert torch.equal(other()[0], before.weight)
