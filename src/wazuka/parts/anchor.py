"""Weights as they were, to be held close to."""

from collections.abc import Iterable

from torch import Tensor, nn


class Anchor(nn.Module):
    """Copies of parameters, taken now. They are buffers: a resumed run pulls to where the first one began."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        super().__init__()
        for number, parameter in enumerate(parameters):
            self.register_buffer(f"start_{number}", parameter.detach().clone())

    def forward(self) -> list[Tensor]:
        """The copies, in the order in which the parameters came."""
        return list(self.buffers())
