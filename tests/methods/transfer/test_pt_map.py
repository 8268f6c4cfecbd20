import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.methods.transfer.pt_map import PTMap, PTMapSettings, power_transform, transport

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0] + [-1] * 33)


def some(count: int = 40, size: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transport_by_turns(kernel: Tensor, columns: Tensor) -> Tensor:
    for _ in range(3000):
        kernel = kernel / kernel.sum(dim=1, keepdim=True)
        kernel = kernel * columns / kernel.sum(dim=0)
    return kernel


def test_the_plan_is_sinkhorns() -> None:
    logits, zeros = -10 * some(60, 4) * 4, torch.zeros(4).double()
    for columns in (torch.full((4,), 15.0).double(), torch.tensor([40.0, 10.0, 9.5, 0.5]).double()):
        plan, offsets = transport(logits, columns, zeros, 1e-7, 1000)
        torch.testing.assert_close(plan.sum(dim=1), torch.ones(60).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(plan.sum(dim=0), columns, atol=1e-5, rtol=0)
        torch.testing.assert_close(plan, transport_by_turns(logits.exp(), columns), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(plan, (logits + offsets).softmax(dim=1))
        other = transport(logits, columns, torch.tensor([9.0, 0, 0, -9]).double(), 1e-9, 1000)[0]
        torch.testing.assert_close(other, plan, atol=1e-5, rtol=1e-4)  # wherever it starts
        torch.testing.assert_close(transport(logits + some(60, 1) * 800, columns, zeros, 1e-7, 1000)[0], plan)
        assert not torch.allclose(transport(logits, columns, zeros, 1e-7, 1)[0].sum(dim=0), columns, rtol=1e-3)


@pytest.mark.parametrize("sharpness", [0.1, 10.0, 1e3])
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_few_steps_suffice_for_flat_and_for_all_but_hard_plans(sharpness: float, apart: float) -> None:
    distances = some(300, 3)
    distances[:250, 1:] += apart  # all but 50 belong to the first class, and 200 must go to the others
    columns = torch.full((3,), 100.0).double()
    plan = transport(-sharpness * distances, columns, torch.zeros(3).double(), 1e-6, 10_000)[0]
    torch.testing.assert_close(plan.sum(dim=0), columns, rtol=1e-5, atol=0)
    if sharpness < 1e3:
        plan = transport(-sharpness * distances, columns, torch.zeros(3).double(), 1e-6, 30)[0]
        torch.testing.assert_close(plan.sum(dim=0), columns, rtol=1e-5, atol=0)


def test_the_power_transform_takes_roots_and_keeps_signs() -> None:
    features = torch.tensor([[4.0, 0.0, 9.0], [-4.0, 0.0, 9.0]])
    roots = torch.tensor([[2.0, 1e-3, 3.0], [-2.0, 1e-3, 3.0]])
    torch.testing.assert_close(power_transform(features, 0.5), F.normalize(roots, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(power_transform(features, 1.0), F.normalize(features, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prior", ["uniform", "labels"])
def test_fit_from_the_definitions(prior: str) -> None:
    features = some()
    head = PTMap(3, PTMapSettings(prior=prior, tolerance=1e-10))
    probs = head.fit(features, LABELS)
    points = F.normalize((features + 1e-6).sqrt(), dim=1)
    support = F.normalize(points[:7] - points[:7].mean(dim=0), dim=1)  # each by its own mean
    queries = F.normalize(points[7:] - points[7:].mean(dim=0), dim=1)
    given = F.one_hot(LABELS[:7], 3).double()
    columns = 33 * (given.sum(dim=0) / 7 if prior == "labels" else torch.full((3,), 1 / 3).double())
    centers = torch.stack([support[LABELS[:7] == label].mean(dim=0) for label in range(3)])
    for _ in range(20):
        plan = torch.cat([given, transport_by_turns((-10 * torch.cdist(queries, centers) ** 2).exp(), columns)])
        estimates = plan.T @ torch.cat([support, queries]) / plan.sum(dim=0)[:, None]
        centers = centers + 0.2 * (estimates - centers)
    plan = transport_by_turns((-10 * torch.cdist(queries, centers) ** 2).exp(), columns)
    torch.testing.assert_close(head.centers, centers, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probs[7:].double(), plan, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probs[7:].sum(dim=0).double(), columns, atol=1e-4, rtol=0)
    assert torch.equal(probs[:7], given.float())


def test_an_unlabeled_image_asked_again_gets_its_answer() -> None:
    features = some()
    head = PTMap(3)
    probs = head.fit(features, LABELS)
    torch.testing.assert_close(head.predict(features[7:]), probs[7:], atol=1e-5, rtol=1e-4)


def test_centers_that_do_not_move_are_the_support_means() -> None:
    features = some()
    still, once = PTMap(3, PTMapSettings(step=0.0)), PTMap(3, PTMapSettings(rounds=0))
    torch.testing.assert_close(still.fit(features, LABELS), once.fit(features, LABELS))
    points = power_transform(features[:7], 0.5)
    points = F.normalize(points - points.mean(dim=0), dim=1)
    for label in range(3):
        torch.testing.assert_close(still.centers[label], points[LABELS[:7] == label].mean(dim=0))
    moved = PTMap(3)
    moved.fit(features, LABELS)
    assert not torch.allclose(moved.centers, still.centers, atol=1e-2)


def test_labels_alone_leave_the_centers_where_they_are() -> None:
    head = PTMap(3)
    probs = head.fit(some()[:7], LABELS[:7])
    assert torch.equal(probs, F.one_hot(LABELS[:7], 3).float())
    torch.testing.assert_close(head.offsets, torch.zeros(3).double())
    assert head.predict(some(9, seed=1)).isfinite().all()


def test_an_equal_share_harms_unequal_classes_and_theirs_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0, 1] + [0] * 9 + [1] * 1 + [0] * 90 + [1] * 10)
    features = torch.eye(2)[truth].repeat(1, 4) + 0.4 * torch.rand(len(truth), 8, generator=generator)
    labels = truth.where(torch.arange(len(truth)) < 12, -1)

    def right(prior: str) -> float:
        return float((PTMap(2, PTMapSettings(prior=prior)).fit(features, labels).argmax(dim=1) == truth).float().mean())

    assert right("uniform") < 0.7
    assert right("labels") > 0.9


@pytest.mark.parametrize(
    "bad",
    [
        {"prior": "none"},
        {"power": 0.0},
        {"tolerance": 0.0},
        {"sharpness": 0.0},
        {"step": 1.1},
        {"rounds": -1},
    ],
)
def test_bad_settings_fail_at_once(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        PTMapSettings(**bad)
