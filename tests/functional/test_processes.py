"""Two processes without torchrun: gloo through a file."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from wazuka.functional.processes import gathered

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import torch
import torch.distributed as dist
from wazuka.functional.processes import gathered, joined
from wazuka.methods.semi.softmatch import mean_and_variance

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
whole = torch.arange(12).view(6, 2)
mine = whole[3 * rank : 3 * rank + 3]
assert torch.equal(gathered(mine), whole)
assert torch.equal(gathered(whole.t()[:, 3 * rank : 3 * rank + 3].t()), whole)  # strided rows
floats = mine.float().requires_grad_()
assert not gathered(floats).requires_grad
assert torch.equal(joined(floats), whole.float())
(gradient,) = torch.autograd.grad(joined(floats).pow(3).sum(), floats)
torch.testing.assert_close(gradient / 2, 3 * mine.float() ** 2)  # their mean over processes is taken afterwards
values = torch.tensor([0.1, 0.2, 0.9, 0.8, 0.85, 0.3], dtype=torch.float64)
mean, variance = mean_and_variance(values[3 * rank : 3 * rank + 3])
torch.testing.assert_close(mean, values.mean())
torch.testing.assert_close(variance, values.var())
open(f"{folder}/{rank}.equal", "w").close()
"""


def test_rows_of_two_processes_come_in_the_order_of_ranks_and_statistics_are_of_all(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(rank)], env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted(path.name for path in tmp_path.glob("*.equal")) == ["0.equal", "1.equal"]


def test_one_process_gathers_its_own() -> None:
    rows = torch.rand(3, 2, requires_grad=True)
    assert torch.equal(gathered(rows), rows)
    assert not gathered(rows).requires_grad
