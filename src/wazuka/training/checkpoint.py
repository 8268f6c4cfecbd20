"""Saving a run so that it can go on: one safetensors file, replaced as a whole, with no code inside.

Batches and random draws are functions of (seed, step), so the state is the method's tensors, the optimizers' tensors
and a few numbers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wazuka.atomic import save_atomic
from wazuka.contract import Method, Player
from wazuka.errors import UserError
from wazuka.training.optimizers import Stepper

WAY_OUT = "delete that file and resume: its part of the training begins anew."


def save_checkpoint(path: Path, method: Method, steppers: dict[Player, Stepper], facts: dict[str, Any]) -> None:
    """Write the state after a step. facts: JSON-able numbers and names, at least what `load_checkpoint` must check."""
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    for number, stepper in enumerate(steppers.values()):
        for place, state in stepper.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"player.{number}.{place}.{name}"] = torch.as_tensor(value)
    # safetensors refuses tensors that share memory (tied weights), and keeps no strides: plain copies
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_atomic(path, lambda temporary: save_file(plain, temporary, metadata={"facts": json.dumps(facts)}))


def load_checkpoint(path: Path, method: Method, steppers: dict[Player, Stepper]) -> dict[str, Any]:
    """Restore method and optimizers in place; returns the facts saved with them.

    Raises UserError when the file is damaged or belongs to another method or network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} can't be read as a checkpoint ({error}); {WAY_OUT}") from error
    except Exception as error:  # safetensors raises its own SafetensorError, which derives from Exception alone
        raise UserError(f"{path} is damaged ({error}); {WAY_OUT}") from error
    state = {name.removeprefix("method."): value for name, value in tensors.items() if name.startswith("method.")}
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path} was saved from another method or network; resume with the settings it was started with."
        ) from error
    for number, stepper in enumerate(steppers.values()):
        _restore_optimizer(stepper.optimizer, tensors, f"player.{number}.")
    return facts


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            number, key = name.removeprefix(prefix).split(".", 1)
            state.setdefault(int(number), {})[key] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, values in state.items():
        for key, value in values.items():
            if value.shape == parameters[place].shape:  # in the parameter's own layout, which fused kernels expect
                values[key] = torch.empty_like(parameters[place], device="cpu").copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
