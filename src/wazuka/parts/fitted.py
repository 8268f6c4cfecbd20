"""Memory whose shapes are known only after fitting: buffers that take them from `fit`, or from a saved state."""

from typing import Any

import torch
from torch import nn


class Fitted(nn.Module):
    """Its buffers are empty until it is fitted; a state that is loaded gives them their shapes."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
