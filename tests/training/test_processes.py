"""Two processes under torchrun: the same gradient, the same weights, for each method there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.methods.small import METHODS

ROOT = Path(__file__).resolve().parents[2]
HALVES = """
import sys
from pathlib import Path

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
(Path(sys.argv[1]) / f"{fabric.global_rank}.equal").touch()
"""


def torchrun(*what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *what]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(HALVES)
    done = torchrun(str(tmp_path / "script.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob("*.equal")) == ["0.equal", "1.equal"]


def test_every_method_learns_in_two_processes_what_it_learns_in_one(tmp_path: Path) -> None:
    """One torchrun for all of them, for a start costs more than all their steps; see halves.py."""
    done = torchrun("-m", "tests.training.halves", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for told in reports:
        assert len(told) >= len(METHODS)
        wrong = {name: what for name, what in told.items() if what != "equal"}
        assert not wrong, wrong
    assert "autograd kernel was not registered" not in done.stderr, "a gradient passed through a bare all_reduce"
