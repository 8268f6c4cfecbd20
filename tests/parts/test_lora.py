import copy

import pytest
import torch
from torch import Tensor, nn

from wazuka.nets.efficientnet_lite import InvertedResidual, SameConv
from wazuka.parts.lora import Adapted, add_adapters, merge_adapters, takes_adapter

LAYERS = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "no bias": (nn.Linear(6, 5, bias=False), (4, 6)),
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "1x1": (nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 5)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), (2, 4, 9, 9)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    "grouped": (nn.Conv2d(8, 12, 3, padding=1, groups=4), (2, 8, 6, 6)),
    "same": (SameConv(4, 6, 3, stride=2), (2, 4, 8, 8)),
}
RANK = 4


def adapted(name: str, learned: bool = True, alpha: float = 8.0, dropout: float = 0.0) -> tuple[Adapted, Tensor]:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    module = Adapted(copy.deepcopy(layer), RANK, alpha, dropout)
    if learned:
        nn.init.normal_(module.up.weight)
    return module, torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_before_the_first_step_nothing_has_changed(name: str) -> None:
    module, x = adapted(name, learned=False)
    assert torch.equal(module(x), LAYERS[name][0](x))
    assert torch.equal(module.weight, LAYERS[name][0].weight)
    assert module.down.weight.abs().min() > 0  # else neither factor would ever get a gradient


@pytest.mark.parametrize("name", LAYERS)
def test_merged_it_says_the_same_in_a_layer_of_the_same_kind(name: str) -> None:
    module, x = adapted(name)
    said = module(x)
    assert not torch.allclose(said, LAYERS[name][0](x), atol=0.1)
    merged = module.merged()
    torch.testing.assert_close(merged(x), said, atol=1e-5, rtol=1e-5)
    assert type(merged) is type(LAYERS[name][0])
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert merged.state_dict().keys() == LAYERS[name][0].state_dict().keys()


def test_a_linear_layer_gets_alpha_over_rank_times_b_a() -> None:
    module, x = adapted("linear", alpha=2.0)
    layer = LAYERS["linear"][0]
    product = module.up.weight @ module.down.weight
    torch.testing.assert_close(module(x), layer(x) + 2.0 / RANK * x @ product.T)
    torch.testing.assert_close(module.weight, layer.weight + 2.0 / RANK * product)
    assert torch.linalg.matrix_rank(product) == RANK


def test_what_learns_has_the_published_size() -> None:
    for name, size in (("linear", RANK * (6 + 5)), ("conv", RANK * (4 * 9 + 6)), ("grouped", RANK * (2 * 9) + 12)):
        module, _ = adapted(name)
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == size, name


def test_the_first_factor_starts_as_pytorchs_own_layers_do() -> None:
    """Kaiming-uniform with a = sqrt 5 is U(-1 / sqrt(inputs), 1 / sqrt(inputs))."""
    torch.manual_seed(0)
    down = Adapted(nn.Conv2d(16, 8, 3), 64, 8.0, 0.0).down.weight.detach()
    assert float(down.abs().max()) == pytest.approx((16 * 9) ** -0.5, rel=1e-2)
    assert float(down.std()) == pytest.approx((3 * 16 * 9) ** -0.5, rel=0.03)


def test_dropout_is_the_adapters_alone_and_gone_in_eval_mode() -> None:
    plain, x = adapted("linear", learned=False, dropout=0.5)
    assert torch.equal(plain(x), LAYERS["linear"][0](x))
    module, x = adapted("linear", dropout=0.5)
    assert not torch.equal(module(x), module(x))
    exact, _ = adapted("linear")
    assert torch.equal(module.eval()(x), exact(x))


class Network(nn.Module):
    """A bit of everything; the attention reads its last layer's weight and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.depthwise(self.norm(self.conv(images))).flatten(2).mT
        return self.head(self.inner(self.attention(tokens, tokens, tokens)[0]).mean(dim=1))


def network() -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    return Network().eval(), torch.randn(4, 3, 8, 8)


def test_all_layers_but_depthwise_ones_and_the_head_are_adapted() -> None:
    net, images = network()
    before = net(images)
    assert add_adapters(net, RANK, 8.0, 0.0, but=[net.head]) == 3
    assert torch.equal(net(images), before)
    kinds = {name for name, module in net.named_modules() if isinstance(module, Adapted)}
    assert kinds == {"conv", "attention.out_proj", "inner.0"}
    learning = {name.split(".")[-2] for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {"down", "up", "head"}


def test_training_leaves_the_base_bit_for_bit_and_reaches_every_adapter() -> None:
    net, images = network()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    add_adapters(net, RANK, 8.0, 0.0, but=[net.head])
    adapters = {name: p.detach().clone() for name, p in net.named_parameters() if ".up." in name or ".down." in name}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    after = {name.replace(".layer.", "."): value for name, value in net.state_dict().items()}
    for name, value in start.items():
        assert torch.equal(after[name], value) == (not name.startswith("head")), name
    for name, p in net.named_parameters():
        if name in adapters:
            assert not torch.equal(p, adapters[name]), f"{name} never learned"
    said = net(images)
    assert merge_adapters(net) is net
    assert net.state_dict().keys() == start.keys()
    torch.testing.assert_close(net(images), said, atol=1e-5, rtol=1e-5)


def test_an_inverted_residual_block_keeps_its_depthwise_kernel() -> None:
    block = InvertedResidual(8, 8, 3, 1, 6)
    assert add_adapters(block, 8, 8.0, 0.0) == 2
    assert isinstance(block.depthwise[0], SameConv)
    assert not any(p.requires_grad for p in block.depthwise.parameters())


def test_a_layer_that_takes_no_adapter_is_told() -> None:
    assert takes_adapter(nn.Conv2d(8, 8, 3, groups=4), 8)
    assert not takes_adapter(nn.Conv2d(8, 8, 3, groups=4), 6)
    for wrong in (nn.Conv2d(8, 8, 3, groups=4), nn.ReLU()):
        with pytest.raises(ValueError, match="adapter of rank 6"):
            Adapted(wrong, 6, 8.0, 0.0)  # type: ignore[arg-type]
