from collections.abc import Iterator

import pytest
import torch

from wazuka.contract import Batch, Episodes
from wazuka.data.streams import Batches, Pool
from wazuka.errors import UserError

CLASSES, EACH = 9, 6


def pool(labels: torch.Tensor | None = None) -> Pool:
    """Every image is its own gray level, so that a batch tells which images it holds; classes are mixed."""
    n = CLASSES * EACH
    levels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return Pool(levels, torch.arange(n) % CLASSES if labels is None else labels)


def plain(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images


def noisy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, images.shape, generator=generator).to(torch.uint8)


def batches(given: Pool | None = None, way: int = 4, shot: int = 2, query: int = 3, **more) -> Batches:
    stream = Episodes(pool="labeled", way=way, shot=shot, query=query, policy=more.pop("policy", "plain"))
    policies = {"plain": plain, "noisy": noisy}
    return Batches((stream,), {"labeled": given or pool()}, policies, **({"seed": 0} | more))


def rows(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().to(torch.int64).tolist()


def episodes(made: Batches, n: int = 40) -> Iterator[Batch]:
    return (made(step) for step in range(n))


def test_counts_and_form_are_those_asked_for() -> None:
    batch = batches(way=4, shot=2, query=3)(0)
    assert batch.support.shape == (8, 1, 2, 2)
    assert batch.query.shape == (12, 1, 2, 2)
    assert batch.support.dtype == torch.float32
    assert batch.support.max() <= 1
    assert not hasattr(batch, "labels")


def test_support_and_query_share_no_image() -> None:
    for batch in episodes(batches()):
        drawn = rows(batch.support) + rows(batch.query)
        assert len(set(drawn)) == len(drawn) == 20


def test_order_is_class_major_and_the_same_in_support_and_query() -> None:
    for batch in episodes(batches()):
        support = torch.tensor(rows(batch.support)).view(4, 2) % CLASSES
        query = torch.tensor(rows(batch.query)).view(4, 3) % CLASSES
        assert (support == support[:, :1]).all()
        assert torch.equal(query, support[:, :1].expand(4, 3))
        assert len(support[:, 0].unique()) == 4


def test_every_class_and_every_image_gets_its_turn_in_either_role() -> None:
    supports, queries, firsts = set(), set(), set()
    for batch in episodes(batches(), 150):
        supports |= set(rows(batch.support))
        queries |= set(rows(batch.query))
        firsts.add(rows(batch.support)[0] % CLASSES)
    assert supports == queries == set(range(CLASSES * EACH))
    assert firsts == set(range(CLASSES))  # classes come in random order


def test_all_images_of_a_class_can_be_used() -> None:
    batch = batches(way=CLASSES, shot=1, query=EACH - 1)(0)
    assert sorted(rows(batch.support) + rows(batch.query)) == list(range(CLASSES * EACH))


def test_unlabeled_images_and_other_pools_are_never_drawn() -> None:
    labels = torch.arange(CLASSES * EACH) % CLASSES
    labels[labels >= 5] = -1  # novel classes, or unlabeled ones
    drawn = set()
    for batch in episodes(batches(pool(labels))):
        drawn |= set(rows(batch.support) + rows(batch.query))
    assert {row % CLASSES for row in drawn} == set(range(5))
    known = Pool(pool().images[labels >= 0], labels[labels >= 0])
    novel = Pool(pool().images[labels < 0], torch.full((4 * EACH,), 7))
    stream = Episodes(pool="labeled", way=4, shot=2, query=3)
    both = Batches((stream,), {"labeled": known, "novel": novel}, {"plain": plain}, seed=0)
    for batch in episodes(both):
        assert {row % CLASSES for row in rows(batch.support) + rows(batch.query)} <= set(range(5))


def test_a_class_with_too_few_images_is_passed_over() -> None:
    labels = torch.arange(CLASSES * EACH) % CLASSES
    labels[-2 * CLASSES] = -1  # one image less in class 0
    for batch in episodes(batches(pool(labels), way=4, shot=2, query=4)):
        assert all(row % CLASSES != 0 for row in rows(batch.support))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"way": 10}, "10-way episode needs 10 classes of at least 5 images, but the labeled images hold 9"),
        ({"query": 5}, "4-way episode needs 4 classes of at least 7 images, but the labeled images hold 0"),
    ],
    ids=["classes", "images"],
)
def test_too_little_to_draw_from_is_said_clearly(asked: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        batches(**asked)(0)


def test_an_episode_depends_on_seed_step_and_process_alone() -> None:
    forward = [batches(policy="noisy")(step) for step in range(4)]
    backward = [batches(policy="noisy")(step) for step in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one.support, other.support)
        assert torch.equal(one.query, other.query)
    first = rows(batches()(0).support)
    assert first == rows(batches()(0).support)
    assert first != rows(batches()(1).support)
    assert first != rows(batches(seed=1)(0).support)
    assert first != rows(batches(rank=1, world=2)(0).support)  # each process has an episode of its own


def test_the_policy_changes_every_image_of_the_episode() -> None:
    plain_one, noisy_one = batches()(0), batches(policy="noisy")(0)
    for name in ("support", "query"):
        same = (getattr(plain_one, name) == getattr(noisy_one, name)).flatten(1).all(dim=1)
        assert not same.any()
    with pytest.raises(ValueError, match="unheard"):
        batches(policy="unheard")


@pytest.mark.parametrize("bad", [{"way": 0}, {"shot": 0}, {"query": 0}])
def test_an_empty_episode_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Episodes(**({"pool": "labeled", "way": 2, "shot": 1, "query": 1} | bad))
