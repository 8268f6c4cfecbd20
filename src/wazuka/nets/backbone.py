"""What every image network offers: logits, features, and the outputs of its inner layers when asked."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wazuka.contract import Observation


class Backbone(nn.Module):
    """A network whose last layer is the linear `head` on `features`.

    feature_size     D, the length of a feature vector
    recorded_layers  names of the submodules whose outputs `observe` records, in the order they run
    """

    head: nn.Module
    feature_size: int

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, D), what enters the head."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, classes) logits, float32 whatever the layers compute in."""
        return self.head(self.features(images)).float()

    def recorded_layers(self) -> list[str]:
        """Default: every convolution and every batch norm."""
        kinds = (nn.Conv2d, nn.BatchNorm2d)
        return [name for name, module in self.named_modules() if isinstance(module, kinds)]

    def observe(self, images: Tensor, layers: Iterable[str] | None = ()) -> Observation:
        """Logits, features and the outputs of `layers` (None: `recorded_layers`) in one pass.

        The hooks are gone when it returns, also after an error. Outputs are cloned, for a later in-place layer would
        overwrite them.
        """
        names = list(self.recorded_layers() if layers is None else layers)
        modules, activations, hooks = dict(self.named_modules()), {}, []
        try:
            for name in names:

                def record(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
                    activations[name] = output.clone()

                hooks.append(modules[name].register_forward_hook(record))
            features = self.features(images)
            return Observation(self.head(features).float(), features.float(), activations, self.head)
        finally:
            for hook in hooks:
                hook.remove()


def glorot_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Glorot-normal weights and zero bias, as TensorFlow's code for these papers has it."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def initialize_he_fan_out(net: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / (k k out_channels)), biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
