import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.functional import neighbors
from wazuka.functional.neighbors import nearest, principal_directions


def points(count: int, size: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_they_are_those_of_the_full_table() -> None:
    queries, bank = points(9), points(300, seed=1)
    products, rows = nearest(queries, bank, 5)
    largest, place = (queries @ bank.T).topk(5, dim=1)
    torch.testing.assert_close(products, largest)
    assert torch.equal(rows, place)
    by_distance = torch.cdist(queries, bank).argsort(dim=1)[:, :5]
    assert torch.equal(rows, by_distance)  # lengths are 1


@pytest.mark.parametrize("entries", [1, 700, 2**24])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_blocks_and_groups_change_nothing(entries: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = points(333)  # groups of 32 leave 13 over
    expected = (bank @ bank.T).fill_diagonal_(-torch.inf).topk(count, dim=1)
    monkeypatch.setattr(neighbors, "ENTRIES", entries)
    products, rows = nearest(bank, bank, count, same=True)
    torch.testing.assert_close(products, expected.values)
    assert torch.equal(rows, expected.indices)


def test_an_image_is_not_its_own_neighbor_but_its_copy_is() -> None:
    bank = points(5)[[0, 1, 2, 3, 4, 2]]
    rows = nearest(bank, bank, 1, same=True)[1].flatten()
    assert (rows[2], rows[5]) == (5, 2)
    assert nearest(bank, bank, 1)[1].flatten()[:5].tolist()[:2] == [0, 1]  # unless queries and bank are strangers


def test_where_there_are_fewer_all_are_taken() -> None:
    bank = points(4)
    assert nearest(bank, bank, 9)[1].shape == (4, 4)
    assert nearest(bank, bank, 9, same=True)[1].shape == (4, 3)
    for queries, few in ((bank, bank[:0]), (bank[:0], bank)):
        products, rows = nearest(queries, few, 3)
        assert len(products) == len(rows) == len(queries)
    assert nearest(bank[:1], bank[:1], 3, same=True)[1].shape == (1, 0)


def test_shortened_features_find_almost_all_and_give_true_products(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 60, generator=generator) * torch.logspace(0, -1, 40)[:, None]
    bank = F.normalize(torch.randn(2000, 40, generator=generator) @ mixed + 3 * torch.rand(60, generator=generator))
    exact, expected = nearest(bank, bank, 10, same=True)
    monkeypatch.setattr(neighbors, "EXACT_WORK", 0)
    monkeypatch.setattr(neighbors, "DIRECTIONS", 20)
    products, rows = nearest(bank, bank, 10, same=True)
    found = (rows[:, :, None] == expected[:, None]).any(dim=1).float().mean()
    assert 0.95 < found < 1  # or this was the exact way
    torch.testing.assert_close(products, (bank[:, None] * bank[rows]).sum(dim=2))
    assert (products.diff(dim=1) <= 0).all()
    assert (rows != torch.arange(2000)[:, None]).all()
    assert (products <= exact + 1e-6).all()
    few = nearest(bank[:7], bank, 10)[1]
    assert torch.equal(few[:, 0], torch.arange(7))


def test_principal_directions_are_those_of_the_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    sizes = torch.tensor([9.0, 7.0, 5.0] + [0.01] * 17, dtype=torch.float64)
    features = torch.randn(500, 20, generator=generator, dtype=torch.float64) * sizes @ turn.T + 100
    found = principal_directions(features, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found @ found.T, turn[:, :3] @ turn[:, :3].T, atol=1e-3, rtol=0)
