"""The last layer of a network, for detectors that think in its weights."""

from torch import Tensor, nn

from wazuka.contract import Observation


def last_layer(observation: Observation, asking: str) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of the linear layer that made the logits, float64; without bias: zeros.

    asking  who needs it, for the ValueError where there is no such layer
    """
    head = observation.head
    if not isinstance(head, nn.Linear):
        kind = "none" if head is None else f"a {type(head).__name__}"
        raise ValueError(f"{asking} needs a network whose last layer is linear (Observation.head), and there is {kind}")
    weight = head.weight.detach().double()
    return weight, weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double()
