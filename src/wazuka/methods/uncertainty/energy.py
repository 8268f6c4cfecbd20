"""Energy: an image is odd that all classes together have little to say for.

Liu, Wang, Owens and Li 2020, "Energy-based Out-of-distribution Detection", arXiv:2010.03759 (NeurIPS), Eq. 3;
wetliu/energy_ood. The training that widens the gap by pictures of nothing is energy_fine_tune.
The score belongs to one network: a constant added to all logits moves it and no probability.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wazuka.contract import Detector, Observation


def free_energy(logits: Tensor, temperature: float) -> Tensor:
    """E = -T log sum_c exp(z_c / T).

    logits       (N, C)
    temperature  above 0
    returns      (N,)    nats, in float32 or better; at most minus the largest logit
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -temperature * (wide / temperature).logsumexp(dim=1)


@dataclass(frozen=True, kw_only=True)
class EnergySettings:
    """temperature: T; towards 0, the energy becomes minus the largest logit."""

    temperature: float = 1.0  # Sec. 4.2: larger ones only blur it

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class Energy(Detector):
    """Free energy of the logits; nothing to fit."""

    def __init__(self, settings: EnergySettings | None = None):
        super().__init__()
        self.settings = settings or EnergySettings()

    def fit(self, observations: Callable[[], Iterable[Observation]]) -> "Energy":
        """Looks at nothing."""
        return self

    @torch.no_grad()
    def score(self, observation: Observation) -> Tensor:
        """(N,) float32; high means odd."""
        return free_energy(observation.logits, self.settings.temperature).float()
