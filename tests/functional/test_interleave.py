import pytest
import torch
from torch import Tensor

from wazuka.functional.interleave import interleaving

SIZES = [
    (64, 192, 3), (64, 640, 10), (5, 15, 3), (2, 6, 3), (7, 70, 10), (4, 4, 1), (16, 208, 3), (3, 31, 10), (0, 5, 2),
]  # fmt: skip


def as_the_authors_do(pieces: list[Tensor]) -> Tensor:
    """libml/layers.py, interleave: pieces of one size, cut into shares that change places."""
    size, others = len(pieces[0]), len(pieces) - 1
    shares = [size // (others + 1)] * (others + 1)
    for place in range(size - sum(shares)):
        shares[-place - 1] += 1
    cut = [list(piece.split(shares)) for piece in pieces]
    for i in range(1, others + 1):
        cut[0][i], cut[i][i] = cut[i][i], cut[0][i]
    return torch.cat([torch.cat(piece) for piece in cut])


@pytest.mark.parametrize(("size", "pieces"), [(64, 3), (64, 10), (5, 3), (2, 3), (7, 10), (3, 1)])
def test_pieces_of_one_size_are_dealt_as_the_authors_do(size: int, pieces: int) -> None:
    rows = torch.arange(size * pieces)
    assert torch.equal(interleaving(size, len(rows), pieces), as_the_authors_do(list(rows.split(size))))


@pytest.mark.parametrize(("labeled", "rows", "batches"), SIZES)
def test_it_is_its_own_inverse(labeled: int, rows: int, batches: int) -> None:
    order = interleaving(labeled, rows, batches)
    assert torch.equal(order.sort().values, torch.arange(rows))
    assert torch.equal(order[order], torch.arange(rows))


@pytest.mark.parametrize(("labeled", "rows", "batches"), SIZES)
def test_every_batch_gets_its_share_of_the_labeled(labeled: int, rows: int, batches: int) -> None:
    parts = interleaving(labeled, rows, batches).tensor_split(batches)
    shares = [int((part < labeled).sum()) for part in parts]
    share, larger = divmod(labeled, batches)
    assert shares == [share] * (batches - larger) + [share + 1] * larger


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="but there are 11 rows"):
        interleaving(labeled=4, rows=11, batches=3)
