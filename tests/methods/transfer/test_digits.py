"""The published heads on scikit-learn's digits, as pixels; what they gain there was measured with plain NumPy."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from wazuka.methods.transfer.laplacian_shot import LaplacianShot, LaplacianShotSettings
from wazuka.methods.transfer.prototypes import Prototypes
from wazuka.methods.transfer.pt_map import PTMap, PTMapSettings
from wazuka.methods.transfer.simpleshot import SimpleShot

WAY, SHOT, QUERY, EPISODES = 5, 1, 15, 60


@pytest.fixture(scope="module")
def episodes() -> list[tuple[Tensor, Tensor]]:
    """Features and classes; class-major, the first image of a class is its support."""
    images, labels = load_digits(return_X_y=True)
    pixels, generator = torch.tensor(images).float() / 16, torch.Generator().manual_seed(100)
    places, made = [torch.tensor(labels == digit).nonzero().flatten() for digit in range(10)], []
    for _ in range(EPISODES):
        rows = []
        for digit in torch.randperm(10, generator=generator)[:WAY].tolist():
            rows.append(places[digit][torch.randperm(len(places[digit]), generator=generator)[: SHOT + QUERY]])
        made.append((pixels[torch.cat(rows)], torch.arange(WAY).repeat_interleave(SHOT + QUERY)))
    return made


def accuracy(head_of, episodes: list[tuple[Tensor, Tensor]]) -> float:  # type: ignore[no-untyped-def]
    total = 0.0
    for features, truth in episodes:
        asked = torch.arange(len(truth)) % (SHOT + QUERY) >= SHOT
        probs = head_of().fit(features, truth.where(~asked, -1))
        total += float((probs.argmax(dim=1) == truth)[asked].float().mean())
    return 100 * total / len(episodes)


def test_what_each_head_gains_with_one_label_a_class(episodes: list[tuple[Tensor, Tensor]]) -> None:
    plain = accuracy(lambda: Prototypes(WAY), episodes)
    simple = accuracy(lambda: SimpleShot(WAY), episodes)
    laplacian = accuracy(lambda: LaplacianShot(WAY, LaplacianShotSettings(rectify=False)), episodes)
    start = accuracy(lambda: PTMap(WAY, PTMapSettings(rounds=0)), episodes)
    moved = accuracy(lambda: PTMap(WAY), episodes)
    assert plain == pytest.approx(73.4, abs=4)
    assert simple == pytest.approx(74.5, abs=4)  # there the center is the mean of all 1,797 images
    assert laplacian == pytest.approx(77.7, abs=4)
    assert laplacian > simple + 1.5
    assert moved == pytest.approx(85.1, abs=4)
    assert moved > start + 3  # the card's start is without transport
