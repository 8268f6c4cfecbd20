import torch
from torch import nn

from wazuka.parts.draws import drawn_again


def test_a_pass_inside_is_repeated_by_the_next_one_and_then_draws_go_on() -> None:
    dropout, ones = nn.Dropout(0.5), torch.ones(1000)
    masks = []
    for _ in range(2):
        with drawn_again(ones.device):
            masks.append(dropout(ones))
    masks += [dropout(ones), dropout(ones)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[2], masks[3])


def test_the_meta_device_draws_nothing() -> None:
    with drawn_again(torch.device("meta")):
        torch.rand(3, device="meta")
