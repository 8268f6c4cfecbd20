"""Looking inside: where the network finds a class, and whether something else than the object gives it away."""

from wazuka.explain.grad_cam import grad_cam, look, overlay
from wazuka.explain.impoverish import impoverish
from wazuka.explain.metadata import metadata_table
from wazuka.explain.shortcuts import Shortcut, check, shortcut_checks

__all__ = ["Shortcut", "check", "grad_cam", "impoverish", "look", "metadata_table", "overlay", "shortcut_checks"]
