"""ODIN: the softmax at a high temperature, of an image nudged towards what the network takes it for.

Liang, Li and Srikant 2018, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
arXiv:1706.02690 (ICLR); facebookresearch/odin. A known image gains more by the nudge than an odd one.
Differs from it: `size` is 0 by default, no nudge. The authors chose it with odd images at hand, 0.0014 for most of
their CIFAR-10 and 0 to 0.0048 elsewhere, and a detector here never sees any (that known images alone could choose it,
Hsu et al. 2020, arXiv:2002.11297, was shown for another score; this one grows with each step towards the guess).
Sizes are of images in [0, 1]: the authors' division by the normalization's standard deviation is undone by networks
that normalize inside. A pixel whose gradient is exactly 0 stays, theirs goes down. The guess of a batch is each
image's own, where their code took one image at a time. Scores are float64: at T = 1000, all of them lie so near to
1 - 1/C that float32 makes ties.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.contract import Detector, Nudge, Observation, Wants
from wazuka.functional.doubt import doubt


@dataclass(frozen=True, kw_only=True)
class ODINSettings:
    """size: of the nudge, where images lie in [0, 1]; 0: none, and no second pass. temperature: T, of both."""

    size: float = 0.0
    temperature: float = 1000.0  # Sec. 4.3

    def __post_init__(self) -> None:
        Nudge(size=self.size, temperature=self.temperature)  # says what doesn't fit


class ODIN(Detector):
    """One minus the largest tempered probability of the nudged image; nothing to fit."""

    def __init__(self, settings: ODINSettings | None = None):
        super().__init__()
        self.settings = settings or ODINSettings()

    @property
    def wants(self) -> Wants:
        """The nudged images' logits, unless the nudge has no size."""
        s = self.settings
        return Wants(nudge=Nudge(size=s.size, temperature=s.temperature) if s.size else None)

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "ODIN":
        """Looks at nothing."""
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float64; high means odd."""
        nudge = self.wants.nudge
        if nudge is not None and nudge not in observation.nudged:
            raise ValueError(f"ODIN needs the logits of images nudged by {nudge.size:g} at temperature "
                             f"{nudge.temperature:g}: observe with Observer(net, [detector])")  # fmt: skip
        logits = observation.logits if nudge is None else observation.nudged[nudge]
        return doubt(logits, self.settings.temperature)
