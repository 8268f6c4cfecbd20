"""The same random draws for several passes of one step: one dropout mask for all of them."""

from contextlib import AbstractContextManager

import torch


def drawn_again(device: torch.device) -> AbstractContextManager[None]:
    """What torch draws inside, on the host and on `device`, is drawn again afterwards: its generators step back.

    Takes microseconds and waits for nobody: a generator's state lives on the host. Seeding anew would take longer.
    """
    if device.type in ("cpu", "meta"):
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)
