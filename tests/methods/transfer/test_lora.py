import pytest
import torch
from torch import nn

from tests.methods.small import images_of, run, small, small_net
from wazuka.methods.transfer.lora import LoRA, LoRASettings
from wazuka.nets import Backbone
from wazuka.parts.lora import Adapted
from wazuka.parts.tuning import Tuning


def adapted(**changes: object) -> LoRA:
    method = small("lora", changes={"rank": 2, "alpha": 2.0, **changes})
    assert isinstance(method, LoRA)
    return method


def plain() -> Backbone:
    torch.manual_seed(0)
    return small_net().eval()


def images() -> torch.Tensor:
    return images_of(6, seed=3)[0].float() / 255


def test_before_the_first_step_the_features_are_those_of_the_network() -> None:
    assert torch.equal(adapted().eval().net.features(images()), plain().features(images()))


@pytest.mark.parametrize("norms", ["frozen", "frozen_all"])
def test_only_adapters_head_and_what_was_asked_for_learn(norms: str) -> None:
    method = adapted(tuning=Tuning(head_rate=1.0, norms=norms))  # type: ignore[arg-type]
    start = plain().state_dict()
    run(method, steps=4)
    learned = {name for name, p in method.net.net.named_parameters() if p.requires_grad}
    for name, value in method.net.net.state_dict().items():
        own = name.replace(".layer.", ".")
        if own in start and "head" not in name:
            assert torch.equal(value, start[own]) == (name not in learned), name
    convs = [module for module in method.modules() if isinstance(module, nn.Conv2d)]
    assert sum(isinstance(module, Adapted) for module in method.modules()) == 4
    assert len(convs) == 3 * 4
    sizes = 2 * (9 + 8) + 3 * 2 * (72 + 8) + (4 * 2 * 8 if norms == "frozen" else 0) + 8 * 4 + 4
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == sizes
    assert isinstance(method.net.net.head, nn.Linear)


def test_merged_the_network_is_as_it_was_built_and_answers_the_same() -> None:
    method = adapted()
    run(method, steps=4)
    said = method.eval().predict(images())
    net = method.merge()
    assert net.state_dict().keys() == plain().state_dict().keys()
    torch.testing.assert_close(net(images()).softmax(dim=1), said, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(method.predict(images()), said, atol=1e-5, rtol=1e-5)
    assert not torch.equal(net.layers[3].weight, plain().layers[3].weight)  # type: ignore[index, union-attr]


def test_a_head_that_is_given_learns_whole() -> None:
    head = adapted(tuning=Tuning(head="given", head_rate=1.0)).net.net.head
    assert isinstance(head, nn.Linear)
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_the_defaults_are_pefts() -> None:
    s = LoRASettings()
    assert (s.rank, s.alpha, s.dropout) == (8, 8, 0)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"view": "odd"}])
def test_wrong_settings_fail_at_once(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoRASettings(**wrong)
