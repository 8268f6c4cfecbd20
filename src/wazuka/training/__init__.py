"""The one loop, and what it stands on: optimizers, checkpoints, processes."""

from wazuka.training.checkpoint import load_checkpoint, save_checkpoint
from wazuka.training.loop import Progress, train
from wazuka.training.optimizers import Stepper

__all__ = ["Progress", "Stepper", "load_checkpoint", "save_checkpoint", "train"]
