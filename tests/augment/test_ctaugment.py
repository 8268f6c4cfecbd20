"""Operations against the authors' formulas applied by Pillow; learning against their one-by-one arithmetic."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from wazuka.augment import CTAugment
from wazuka.augment.ctaugment import BINS, operations
from wazuka.augment.operations import OperationTable

AFFINE = Image.Transform.AFFINE
NAMES = tuple(BINS)


def blended(change):
    return lambda i, v: Image.blend(i, change(i), v)


def affine(image, *numbers):
    return image.transform(image.size, AFFINE, numbers)


AUTHORS = {
    "autocontrast": blended(ImageOps.autocontrast),
    "blur": blended(lambda i: i.filter(ImageFilter.BLUR)),
    "brightness": lambda i, v: ImageEnhance.Brightness(i).enhance(0.1 + 1.9 * v),
    "color": lambda i, v: ImageEnhance.Color(i).enhance(0.1 + 1.9 * v),
    "contrast": lambda i, v: ImageEnhance.Contrast(i).enhance(0.1 + 1.9 * v),
    "equalize": blended(ImageOps.equalize),
    "invert": blended(ImageOps.invert),
    "identity": lambda i, v: i,
    "posterize": lambda i, v: ImageOps.posterize(i, 1 + int(v * 7.999)),
    "rotate": lambda i, v: i.rotate(int(np.round((2 * v - 1) * 45))),
    "sharpness": lambda i, v: ImageEnhance.Sharpness(i).enhance(0.1 + 1.9 * v),
    "shear_x": lambda i, v: affine(i, 1, (2 * v - 1) * 0.3, 0, 0, 1, 0),
    "shear_y": lambda i, v: affine(i, 1, 0, 0, (2 * v - 1) * 0.3, 1, 0),
    "smooth": blended(lambda i: i.filter(ImageFilter.SMOOTH)),
    "solarize": lambda i, v: ImageOps.solarize(i, int(v * 255.999)),
    "translate_x": lambda i, v: affine(i, 1, 0, (2 * v - 1) * 0.3 * i.width, 0, 1, 0),
    "translate_y": lambda i, v: affine(i, 1, 0, 0, 0, 1, (2 * v - 1) * 0.3 * i.height),
}
LEVELS = [0.0, 0.02, 0.11, 0.25, 0.333, 0.49, 0.5, 0.58, 0.66, 0.7501, 0.81, 0.93, 0.999]


def one(name, strict=None, second=0.0, place=0.5):
    table = OperationTable({name: operations(strict)[name]})

    def apply(images, level):
        rest = [torch.full_like(level, number) for number in (second, place, place)]
        return table.apply(images, torch.zeros(1, len(images), dtype=torch.int64), torch.stack([level, *rest])[None])

    return apply


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUTHORS)
def test_operations_are_the_authors(name, difference):
    assert difference(one(name), AUTHORS[name], LEVELS).max() == 0


def test_the_table_is_complete():
    assert set(AUTHORS) | {"cutout", "rescale"} == set(BINS) == set(operations(None))
    assert len(BINS) == 19
    assert (BINS["posterize"], BINS["rescale"], BINS["identity"]) == ((8,), (17, 6), ())


def test_cutout_is_the_authors(difference):
    def pillow(image, v):
        half = (1 + int(v * min(image.size) * 0.499)) // 2
        x, y = image.width // 2, image.height // 2
        gray = 127 if image.mode == "L" else (127,) * 3
        image.paste(gray, (x - half, y - half, x + half, y + half))
        return image

    assert difference(one("cutout"), pillow, LEVELS, (32, 32)).max() == 0


@pytest.mark.parametrize(("second", "method"), [(0.0, 1), (0.4, 2), (0.6, 4), (0.999, 0)])
def test_rescale_is_the_authors(second, method, difference):
    def pillow(image, v):
        width, height, v = image.width, image.height, 0.25 * v
        return image.crop((v * width, v * height, width * (1 - v), height * (1 - v))).resize(image.size, method)

    assert difference(one("rescale", second=second), pillow, LEVELS, (32, 31)).max() <= 1


def test_strict_keeps_the_oddities(difference):
    for name in ("translate_x", "translate_y"):
        still = difference(one(name, "fixmatch"), lambda i, v: i, LEVELS)
        assert still.max() == 0  # 0.3 of a pixel is no pixel
        assert difference(one(name), lambda i, v: i, LEVELS).max() > 0
    assert difference(one("rescale", "remixmatch", second=0.4), lambda i, v: i, LEVELS).max() == 0
    assert difference(one("rescale", "fixmatch", second=0.4), lambda i, v: i, LEVELS).max() > 0


def test_a_probe_reports_what_it_did():
    images = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8)
    policy = CTAugment()
    changed, record = policy.probe(images, seeded())
    assert record.shape == (200, 2, 3)
    assert record[..., 0].unique().tolist() == list(range(19))
    assert (record[..., 1:] >= 0).all()
    assert (record[..., 1:] < 1).all()
    for n in range(200):
        expected, names = images[n : n + 1], [NAMES[int(k)] for k in record[n, :, 0]]
        if "cutout" in names:
            continue  # its place is not in the record
        for turn, name in enumerate(names):
            expected = one(name, second=record[n, turn, 2].item())(expected, record[n, turn, 1][None])
        assert torch.equal(changed[n : n + 1], expected)


def rates_one_by_one(weights, draw, proximity, decay):
    weights = weights.clone().double()
    for record, seen in zip(draw, proximity.tolist(), strict=True):
        for operation, *levels in record.tolist():
            for parameter, bins in enumerate(BINS[NAMES[int(operation)]]):
                place = int(levels[parameter] * bins * 0.999)
                old = weights[int(operation), parameter, place]
                weights[int(operation), parameter, place] = old * decay + seen * (1 - decay)
    return weights


@pytest.mark.parametrize("decay", [0.99, 0.5, 0.0])
def test_an_update_is_the_authors_image_by_image(decay):
    policy = CTAugment(decay=decay)
    expected = policy.weights
    for seed in range(3):
        _, draw = policy.probe(torch.zeros(600, 1, 6, 6, dtype=torch.uint8), seeded(seed))
        proximity = torch.rand(600, generator=seeded(seed))
        expected = rates_one_by_one(expected, draw, proximity, decay)
        policy.update(draw, proximity)
        torch.testing.assert_close(policy.weights.double(), expected, atol=1e-6, rtol=1e-5)
    assert policy.weights[NAMES.index("identity")].eq(1).all()
    assert policy.weights[NAMES.index("posterize"), 0, 8:].eq(1).all()


def test_processes_learn_from_each_others_probes_in_the_order_of_their_ranks(monkeypatch):
    images = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    _, draw = CTAugment().probe(images, seeded())
    proximity = torch.rand(40, generator=seeded())
    alone, shared = CTAugment(decay=0.5), CTAugment(decay=0.5)
    alone.update(draw, proximity)

    def all_gather(gathered, rows):
        first, second = (draw if rows.ndim == 3 else proximity.double()).split(20)
        assert torch.equal(rows, first)
        gathered[0].copy_(first), gathered[1].copy_(second)

    monkeypatch.setattr("wazuka.augment.ctaugment.process_count", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    shared.update(draw[:20], proximity[:20])
    assert torch.equal(shared.weights, alone.weights)


def test_a_hopeless_bin_dies_after_exactly_23_updates():
    policy, row = CTAugment(), NAMES.index("rotate")
    draw = torch.zeros(1, 2, 3)
    draw[0, 0] = torch.tensor([row, 0.3, 0.0])     # bin 5 of 17
    draw[0, 1, 0] = NAMES.index("identity")
    for update in range(1, 24):
        policy.update(draw, torch.zeros(1))
        torch.testing.assert_close(policy.weights[row, 0, 5], torch.tensor(0.99**update))
        used = policy.probabilities()[row, 0] > 0
        assert used[5] == (update < 23)
        assert used[[n for n in range(17) if n != 5]].all()
    assert policy.probabilities()[NAMES.index("posterize"), 0].gt(0).sum() == 8


def test_a_weight_counts_with_one_minus_decay_more():
    policy, row = CTAugment(), NAMES.index("blur")
    policy.weights[row, 0, 3], policy.weights[row, 0, 4] = 0.799, 0.797
    relative = policy.probabilities()[row, 0, 3:6]
    torch.testing.assert_close(relative, torch.tensor([0.809 / 1.01, 0.0, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_sure_recognition_keeps_every_bin():
    policy = CTAugment()
    for seed in range(5):
        _, draw = policy.probe(torch.zeros(64, 1, 4, 4, dtype=torch.uint8), seeded(seed))
        policy.update(draw, torch.ones(64))
    torch.testing.assert_close(policy.weights, torch.ones_like(policy.weights))


def spread(policy, n=6000):
    """Where `strong` puts a bright column when translate_x is all it may do: the levels it chose."""
    images = torch.zeros(n, 1, 1, 200, dtype=torch.uint8)
    images[..., 100] = 255
    chosen = policy.strong(images, seeded()).flatten(1)
    return (100 - chosen.argmax(dim=1))[chosen.amax(dim=1) == 255].float() / 120 + 0.5


@pytest.fixture
def only_translation(monkeypatch):
    from wazuka.augment import ctaugment

    known = operations(None)
    table = OperationTable({n: known[n if n == "translate_x" else "identity"] for n in BINS})
    monkeypatch.setattr(ctaugment, "_table", lambda strict: table)


@pytest.mark.usefixtures("only_translation")
def test_strong_views_use_the_living_bins_in_proportion_and_spread_within_them():
    policy = CTAugment(depth=1, cutout=False)
    row = NAMES.index("translate_x")
    policy.weights[row, 0] = 0.0
    policy.weights[row, 0, 2], policy.weights[row, 0, 11] = 0.9, 0.78
    policy.weights[row, 0, 14] = 0.70  # 0.71 / 0.91 is below the threshold
    level = spread(policy, 60_000)
    level = level[(level - 0.5).abs() > 0.01]  # the identities of the other 18
    low, high = (level > 1.9 / 17) & (level < 3.1 / 17), (level > 10.9 / 17) & (level < 12.1 / 17)
    assert (low | high).all()
    assert abs(low.float().mean() - 0.91 / (0.91 + 0.79)) < 0.02
    torch.testing.assert_close(level[low].mean(), torch.tensor(2.5 / 17), atol=0.004, rtol=0)
    torch.testing.assert_close(level[low].std(), torch.tensor(1 / 17 / 12**0.5), atol=0.002, rtol=0)


@pytest.mark.usefixtures("only_translation")
def test_remixmatch_draws_between_neighboring_bins():
    policy = CTAugment(depth=1, cutout=False, strict="remixmatch")
    row = NAMES.index("translate_x")
    policy.weights[row, 0] = 0.0
    policy.weights[row, 0, 3] = 1.0  # segments 2-3 and 3-4 of 16
    level = spread(policy, 30_000)
    level = level[(level - 0.5).abs() > 0.01]
    assert level.min() > 1.85 / 16
    assert level.max() < 4.15 / 16
    torch.testing.assert_close(level.mean(), torch.tensor(3 / 16), atol=0.004, rtol=0)


@pytest.mark.parametrize("strict", [None, "fixmatch", "remixmatch"])
def test_strong_works_however_strict_and_paints_half_the_side(strict):
    images = torch.zeros(300, 3, 32, 32, dtype=torch.uint8)
    plain = CTAugment(strict=strict, cutout=False).strong(images, seeded())
    covered = CTAugment(strict=strict).strong(images, seeded())
    square = plain.ne(covered)[:, 0]
    assert square.any(dim=2).sum(dim=1).max() == 16
    assert covered.eq(127).flatten(1).any(dim=1).all()


def test_its_memory_is_saved_copied_and_moved_with_the_module():
    policy = CTAugment()
    _, draw = policy.probe(torch.zeros(50, 1, 4, 4, dtype=torch.uint8), seeded())
    policy.update(draw, torch.zeros(50))
    assert list(policy.state_dict()) == ["weights"]
    again = CTAugment()
    again.load_state_dict(policy.state_dict())
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(again.strong(images, seeded(5)), policy.strong(images, seeded(5)))
    assert torch.equal(copy.deepcopy(policy).double().weights.float(), policy.weights)
