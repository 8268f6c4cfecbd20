from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wazuka.contract import Optimizer
from wazuka.nets import ConvNet
from wazuka.nets.efficientnet_lite import EfficientNetLite0
from wazuka.parts.tuning import Tuned, Tuning

FROM_THE_TOP = [  # of ConvNet's four convolutions, each with its norm, in three groups
    {"layers.7", "layers.8", "layers.10", "layers.11"},
    {"layers.3", "layers.4"},
    {"layers.0", "layers.1"},
]


def tuned(**changes: object) -> Tuned:
    torch.manual_seed(0)
    return Tuned(ConvNet(1, 10, (4, 6), momentum=0.1), 3, Tuning(**changes))  # type: ignore[arg-type]


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_encoder_is_cut_from_the_top_and_a_norm_goes_with_its_layer() -> None:
    net = tuned(groups=3, rate_decay=2.0, unfreezing=0.6)
    names = {module: name for name, module in net.net.named_modules()}
    groups = list(net.groups())
    assert [{names[layer] for layer in group.layers} for group in groups] == FROM_THE_TOP
    assert [group.rate for group in groups] == [1, 0.5, 0.25]
    assert [group.start for group in groups] == pytest.approx([0.2, 0.4, 0.6])
    assert all(group.start == 0 for group in tuned(groups=3).groups())
    assert len(list(tuned(groups=99).groups())) == 4


def test_every_parameter_of_a_large_network_has_one_pace() -> None:
    net = EfficientNetLite0()
    rule = Tuned(net, 5, Tuning(groups=4, rate_decay=2.6)).optimizer(Optimizer(lr=0.1))
    paced = [parameter for pace in rule.paces for parameter in pace.parameters]
    assert len(paced) == len(set(paced))
    assert set(paced) == set(net.parameters())
    assert set(rule.paces[0].parameters) == set(net.head.parameters())
    of = {parameter: pace.rate for pace in rule.paces for parameter in pace.parameters}
    assert of[net.last[0].weight] == 1
    assert of[net.stem[0].weight] == of[net.stem[1].weight] == pytest.approx(2.6**-3)
    sizes = [len(pace.parameters) for pace in rule.paces[1:]]
    assert max(sizes) <= 1.2 * min(sizes)


def test_the_rule_is_given_paces_and_nothing_else() -> None:
    rule = Optimizer(lr=0.1, momentum=0.3, clip=2.0, weight_decay=0.01)
    net = tuned(head_rate=7.0)
    paced = net.optimizer(rule)
    assert replace(paced, paces=()) == rule
    assert paced.paces[0].rate == 7
    assert paced.paces[0].start == 0
    assert set(paced.paces[0].parameters) == set(net.head_parameters())
    assert not set(net.encoder_parameters()) & set(net.head_parameters())
    assert {*net.encoder_parameters(), *net.head_parameters()} == set(net.parameters())


def test_the_three_heads() -> None:
    flat = tuned(head="zero")(images())
    assert flat.shape == (5, 3)
    assert flat.eq(0).all()
    torch.manual_seed(0)
    wide = ConvNet(1, 10, (4, 2000))
    head = Tuned(wide, 10, Tuning(head="normal")).net.head
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert float(head.weight.detach().mean()) == pytest.approx(0, abs=3e-4)
    assert head.bias.eq(0).all()
    net = ConvNet(1, 3, (4, 6))
    own = net.head
    assert Tuned(net, 3, Tuning(head="given")).net.head is own


def test_a_new_head_is_of_the_networks_type_and_leaves_no_other_trace() -> None:
    net = ConvNet(1, 10, (4, 6)).double()
    before = {name: value.clone() for name, value in net.state_dict().items() if not name.startswith("head")}
    assert Tuned(net, 3, Tuning()).net.head.weight.dtype == torch.float64
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name


def test_a_linear_probe_starts_the_head() -> None:
    net = tuned().eval()
    weight, bias = torch.randn(3, 6), torch.randn(3)
    net.start_head(weight, bias)
    torch.testing.assert_close(net(images()), net.features(images()) @ weight.T + bias)
    torch.testing.assert_close(net.classify(net.features(images())), net(images()))
    with pytest.raises(ValueError, match=r"weight of shape \(3, 6\)"):
        net.start_head(weight.T, bias)
    with pytest.raises(ValueError, match=r"bias of \(3,\)"):
        net.start_head(weight, bias[:1])


@pytest.mark.parametrize("norms", ["train", "frozen", "frozen_all"])
def test_batch_norm_in_its_three_modes(norms: str) -> None:
    net = tuned(norms=norms, head="normal")
    own = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    means = [norm.running_mean.clone() for norm in own]  # type: ignore[union-attr]
    net.eval().train()  # what freezes them must outlive a change of mode
    net.wake(0.0)
    learning = net(images())
    moved = [not torch.equal(norm.running_mean, mean) for norm, mean in zip(own, means, strict=True)]  # type: ignore[arg-type]
    assert all(moved) if norms == "train" else not any(moved)
    answering = net.eval()(images())
    assert torch.equal(learning, answering) == (norms != "train")
    assert all(parameter.requires_grad == (norms != "frozen_all") for norm in own for parameter in norm.parameters())


def test_norms_of_resting_groups_look_at_no_batch_until_they_wake() -> None:
    net = tuned(norms="train", groups=3, unfreezing=0.6).train()
    names = {module: name for name, module in net.net.named_modules()}
    for progress, groups in ((0.0, 0), (0.19, 0), (0.2, 1), (0.4, 2), (0.59, 2), (0.6, 3), (0.1, 0)):
        net.wake(progress)
        training = {names[module] for module in net.modules() if isinstance(module, nn.BatchNorm2d) and module.training}
        assert training == {"layers.8", "layers.11", "layers.4", "layers.1"} & set().union(*FROM_THE_TOP[:groups])


def test_waking_leaves_frozen_norms_alone() -> None:
    net = tuned(norms="frozen", unfreezing=0.5).train()
    net.wake(0.9)
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(
    "wrong",
    [{"head": "ones"}, {"norms": "thawed"}, {"head_rate": 0.0}, {"rate_decay": 0.5}, {"groups": 0},
     {"unfreezing": 1.0}, {"unfreezing": -0.1}],
)  # fmt: skip
def test_wrong_settings_fail_at_once(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Tuning(**wrong)


def test_norms_are_frozen_from_the_first() -> None:
    """Also before anyone has called `train`."""
    net = tuned(norms="frozen")
    assert net.training
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
