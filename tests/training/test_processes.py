"""Two processes under torchrun: the same gradient, the same weights, for each kind of method."""

import os
import subprocess
import sys
from pathlib import Path

HALVES = """
import torch
import torch.nn.functional as F
from torch import nn

from wazuka.contract import Optimizer
from wazuka.functional.processes import mean_over_processes
from wazuka.training import Stepper
from wazuka.training.processes import launch

fabric = launch("cpu")
assert fabric.world_size == 2
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
images, labels = torch.randn(8, 6).double(), torch.randint(0, 3, (8,))
weights = torch.rand(8).double()


def loss(rows):
    each = F.cross_entropy(net(images[rows]), labels[rows], reduction="none")
    ratio = mean_over_processes((weights[rows] * each).mean()) / mean_over_processes(weights[rows].mean())
    return each.mean() + ratio


whole = F.cross_entropy(net(images), labels, reduction="none")
expected = torch.autograd.grad(whole.mean() + (weights * whole).mean() / weights.mean(), list(net.parameters()))
stepper = Stepper(net, Optimizer(lr=0.0, momentum=0.0))
half = torch.arange(4) + 4 * fabric.global_rank
stepper.step(loss(half), 0.0)
for parameter, gradient in zip(net.parameters(), expected, strict=True):
    torch.testing.assert_close(parameter.grad, gradient)
print("equal")
"""


def torchrun(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    done = torchrun(HALVES, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2
