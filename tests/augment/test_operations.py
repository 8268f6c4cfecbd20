import pytest
import torch

from wazuka.augment import color, geometry
from wazuka.augment.operations import IDENTITY, Blend, Change, Map, OperationTable

OPERATIONS = {
    "shear": Map(lambda size, v, w: geometry.slant(v, 0 * v)),
    "none": IDENTITY,
    "bright": Blend(lambda x, v, w: (color.black(x), x, v)),
    "turn": Map(lambda size, v, w: geometry.around_center(size, degrees=w)),
    "solarize": Change(lambda x, v, w: color.solarize(x, w)),
    "contrast": Blend(lambda x, v, w: (color.mean_gray(x), x, v)),
}


def alone(name: str, x: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return {
        "shear": lambda: geometry.shear(x, v, 0 * v, fill=9),
        "none": lambda: x,
        "bright": lambda: color.brightness(x, v),
        "turn": lambda: geometry.rotate(x, w, fill=9),
        "solarize": lambda: color.solarize(x, w),
        "contrast": lambda: color.contrast(x, v),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_gets_its_operations_in_turn_with_its_parameters(channels):
    n, turns = 40, 3
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, 12, 9), generator=generator, dtype=torch.uint8)
    choices = torch.randint(0, len(OPERATIONS), (turns, n), generator=generator)
    v = torch.rand(turns, n, generator=generator, dtype=torch.float64)
    w = torch.rand(turns, n, generator=generator, dtype=torch.float64) * 200
    table = OperationTable(OPERATIONS, fill=9)
    together = table.apply(images, choices, torch.stack([v, w], dim=1))
    for row in range(n):
        expected = images[row : row + 1]
        for turn in range(turns):
            name = table.names[choices[turn, row]]
            expected = alone(name, expected, v[turn, row : row + 1], w[turn, row : row + 1])
        assert torch.equal(together[row : row + 1], expected), row


def test_no_images_and_no_turns_are_fine():
    table = OperationTable(OPERATIONS)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert table.apply(images[:0], torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 2, 0)).shape == (0, 3, 4, 4)
    assert torch.equal(table.apply(images, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2, 2)), images)
