import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import wazuka
from tests.app.stripes import NAMES, few, stripes
from wazuka.errors import UserError

SMALL = {"labeled_batch": 8, "unlabeled_ratio": 1}
EXPECTED_TO_FAIL = {
    "check_classifiers_classes": "it uses -1 as a class, which means unlabeled here",
    "check_methods_subset_invariance": "float32 convolutions differ in the last bits with the images in a pass",
}


def quick(**changes):
    return wazuka.Classifier(**({"steps": 2, "settings": SMALL} | changes))


@parametrize_with_checks(
    [wazuka.Classifier(steps=3, settings=SMALL)], expected_failed_checks=lambda estimator: EXPECTED_TO_FAIL
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator, check):
    if check.func.__name__ == "check_classifiers_train":  # the one that asks for accuracy
        estimator.set_params(steps=60)
    check(estimator)


@pytest.fixture(scope="module")
def learned():
    """Three labels a class, and as many images without as there are."""
    images, labels = stripes(60)
    return quick(steps=80).fit(images, few(labels))


def test_it_learns_from_few_labels(learned):
    images, labels = stripes(200, seed=1)
    assert learned.score(images, labels) > 0.95
    np.testing.assert_array_equal(learned.classes_, [0, 1])
    assert learned.steps_ == 80
    assert learned.n_features_in_ == 64


def test_unlabeled_images_are_learned_from_and_hidden_labels_are_not():
    images, labels = stripes(20)
    alone = quick().fit(images[:6], labels[:6]).predict_proba(images)
    together = quick().fit(images, few(labels)).predict_proba(images)
    assert np.abs(alone - together).max() > 1e-4
    other = np.where(few(labels) == -1, -1, labels)
    np.testing.assert_array_equal(quick().fit(images, other).predict_proba(images), together)


def test_probabilities_are_probabilities(learned):
    probs = learned.predict_proba(stripes(30, seed=2)[0])
    assert probs.shape == (30, 2)
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(learned.predict(stripes(30, seed=2)[0]), probs.argmax(axis=1))


GRAY = stripes(20)[0]
COLOR = np.stack([GRAY, GRAY[:, ::-1], 255 - GRAY], axis=1)  # (n, c, h, w)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GRAY, GRAY / np.float32(255)),
        (GRAY, GRAY.astype(np.float64)),
        (GRAY, GRAY.astype(np.int64)),
        (GRAY, GRAY.astype(np.uint16) * 257),
        (GRAY, GRAY[:, None]),
        (GRAY, GRAY[..., None]),
        (GRAY, GRAY.tolist()),
        (GRAY, torch.from_numpy(GRAY)),
        (COLOR, COLOR.transpose(0, 2, 3, 1)),
    ],
    ids=["[0, 1]", "[0, 255]", "integers", "uint16", "channel first", "channel last", "list", "tensor", "color"],
)
def test_the_same_pictures_in_another_form_give_the_same_classifier(one, other):
    labels = np.arange(20) % 2
    expected = quick().fit(one, labels).predict_proba(one)
    np.testing.assert_array_equal(quick().fit(other, labels).predict_proba(other), expected)


def test_flat_rows_of_a_square_number_are_pictures_on_their_own_scale():
    levels = np.round(GRAY / 16.0)  # 0..16, as in scikit-learn's digits
    levels[0, 0, :2] = [0, 16]
    flat, labels = levels.reshape(20, 64), np.arange(20) % 2
    model = quick().fit(flat, labels)
    images = np.round(levels / 16 * 255).astype(np.uint8)
    np.testing.assert_array_equal(model.predict_proba(flat), quick().fit(images, labels).predict_proba(images))
    dark = flat[:3] * 0.5  # whose largest number is 8, not 16
    halved = np.round(images[:3] * 0.5 / 255 * 255)
    assert np.abs(model.layout_.pack(dark).images[:, 0] - halved).max() <= 1
    np.testing.assert_array_equal(model.predict_proba(flat.astype(np.uint8)), model.predict_proba(flat))
    np.testing.assert_array_equal(model.layout_.pack(flat * 9).images.max(), 255)  # clipped, not wrapped


def test_image_shape_says_what_flat_rows_are():
    labels = np.arange(20) % 2
    flat = COLOR.reshape(20, -1)
    expected = quick().fit(COLOR, labels).predict_proba(COLOR)
    np.testing.assert_array_equal(quick(image_shape=(3, 8, 8)).fit(flat, labels).predict_proba(flat), expected)
    wide = GRAY.reshape(20, 4, 16)
    expected = quick().fit(wide, labels).predict_proba(wide)
    model = quick(image_shape=(4, 16)).fit(wide.reshape(20, 64), labels)
    np.testing.assert_array_equal(model.predict_proba(wide.reshape(20, 64)), expected)
    with pytest.raises(UserError, match=r"image_shape \(5, 5\) doesn't hold the 64 features"):
        quick(image_shape=(5, 5)).fit(GRAY.reshape(20, 64), labels)
    with pytest.raises(UserError, match="leave it out"):
        quick(image_shape=(4, 16)).fit(GRAY, labels)


def test_a_table_keeps_each_feature_in_its_place():
    draw = np.random.default_rng(0)
    table = np.column_stack([draw.normal(size=30), 1e6 * draw.normal(size=30), np.full(30, 7.0)])
    model = quick().fit(table, np.arange(30) % 2)
    packed = model.layout_.pack(table).images.reshape(30, 4)
    for column in (0, 1):  # each on its own scale
        np.testing.assert_array_equal(np.argsort(packed[:, column], kind="stable")[[0, -1]],
                                      np.argsort(table[:, column])[[0, -1]])  # fmt: skip
        assert (packed[:, column].min(), packed[:, column].max()) == (0, 255)
    assert (packed[:, 2:] == 0).all()  # a constant, and the room that is left


def test_the_views_of_a_table_mix_no_features():
    model = quick().fit(np.random.default_rng(0).normal(size=(20, 36)), np.arange(20) % 2)
    rows = torch.zeros(64, 1, 6, 6, dtype=torch.uint8)
    rows[:, 0, 2, 3] = 200
    for policy in model.plan_.policies.values():
        views = policy(rows, torch.Generator().manual_seed(0))
        assert (views.flatten(1).argmax(dim=1) == 15).all()


def test_few_features_are_a_table_even_if_their_number_is_a_square():
    table = np.random.default_rng(0).normal(size=(20, 49)) * 10.0 ** np.arange(49)
    packed = quick().fit(table, np.arange(20) % 2).layout_.pack(table).images.reshape(20, 49)
    assert (packed.max(axis=0) == 255).all()


def test_rows_that_may_be_color_pictures_are_pointed_out():
    rows = np.random.default_rng(0).integers(0, 256, (8, 192))
    with pytest.warns(UserWarning, match=r"image_shape=\(8, 8, 3\)"):
        quick().fit(rows, np.arange(8) % 2)


@pytest.mark.parametrize(
    ("train", "later", "message"),
    [
        (GRAY, GRAY / 255.0, r"reach from 0 to .*lay in \[0, 255\], where that is black"),
        (GRAY / 255.0, GRAY.astype(float), r"lay in \[0, 1\]"),
        (GRAY, GRAY[:, :7], r"\(7, 8\).*\(8, 8\)"),
        (GRAY, GRAY.reshape(20, 64), r"\(64,\).*\(8, 8\)"),
        (GRAY.reshape(20, 64), GRAY, r"\(8, 8\).*\(64,\)"),
        (GRAY.reshape(20, 64), GRAY.reshape(40, 32), "32 features.*64"),
        (GRAY, np.full((2, 8, 8), np.nan), "NaN"),
    ],
    ids=["darker scale", "wider scale", "size", "flat", "not flat", "features", "nan"],
)
def test_images_unlike_those_at_fit_are_refused(train, later, message):
    model = quick().fit(train, np.arange(20) % 2)
    with pytest.raises(ValueError, match=message):
        model.predict(later)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GRAY - 100.0, r"numbers in \[0, 1\] or \[0, 255\]; these reach from -100"),
        (GRAY * 256.0, "these reach from"),
        (np.full((20, 8, 8), np.inf), "infinity"),
        (np.zeros((20, 8, 8, 7)), "channels"),
        (np.zeros((20, 1, 8)), "1 x 8 pixels are too small"),
        (np.zeros(20), "2D array"),
        (np.zeros((20, 2, 8, 8, 3)), "shape"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(images, np.arange(20) % 2)


@pytest.mark.parametrize("blank", [-1, None])
def test_names_may_be_classes(blank):
    images, labels = stripes(20)
    names = NAMES.astype(object)[labels]
    names[6:] = blank
    model = quick().fit(images, names)
    assert model.classes_.tolist() == ["across", "down"]
    assert set(model.predict(images)) <= {"across", "down"}
    numbers = quick().fit(images, few(labels)).predict_proba(images)
    np.testing.assert_array_equal(model.predict_proba(images), numbers)
    plain = quick().fit(images, NAMES[labels])  # a label for every image
    assert plain.classes_.tolist() == ["across", "down"]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "b", ""] + ["a"] * 17, "dtype=object"),
        (np.array(["a", "b", -1] + ["a"] * 17), "dtype=object"),
        (np.array(["a", "b", "-1"] + ["a"] * 17, dtype=object), "the number -1"),
        (np.array(["a", "b", 3] + ["a"] * 17, dtype=object), "mixes names with 3"),
        (np.array(["a", "b", np.nan] + ["a"] * 17, dtype=object), "mixes names with nan"),
        ([0.0, 1.0, np.nan] + [0.0] * 17, "NaN"),
        ([0.5] * 10 + [1.5] * 10, "continuous"),
        ([-1] * 20, "0 classes"),
        ([1, -1] * 10, "1 class,"),
        ([0, 1], "inconsistent|20 images but 2"),
        (None, "y"),
        (np.eye(20), "1d array"),
    ],
)
def test_labels_that_say_nothing_clear_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(GRAY, y)


def test_a_label_that_is_a_dash_is_a_name():
    assert quick().fit(GRAY, np.array(["-", "+"] * 10)).classes_.tolist() == ["+", "-"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fixmach"}, "did you mean fixmatch"),
        ({"method": "gram"}, "can't be trained by fit"),
        ({"settings": {"treshold": 0.9}}, "did you mean threshold"),
        ({"steps": 0}, "steps must be positive"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": None, "minutes": float("nan")}, "minutes must be positive"),
        ({"minutes": 1}, "give one of them"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"device": "tpu"}, "device must be one of"),
    ],
)
def test_wrong_parameters_are_told_at_fit(changes, message):
    with pytest.raises(UserError, match=message):
        quick(**changes).fit(GRAY, np.arange(20) % 2)


def test_a_seed_means_one_classifier_and_leaves_the_callers_generators_alone():
    labels = np.arange(20) % 2
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = quick(random_state=3).fit(GRAY, labels).predict_proba(GRAY)
    torch.testing.assert_close(torch.rand(3), expected)
    np.testing.assert_array_equal(quick(random_state=3).fit(GRAY, labels).predict_proba(GRAY), first)
    np.random.seed(0)
    others = [quick(random_state=state).fit(GRAY, labels) for state in (4, None, None, np.random.RandomState(1))]
    for other in others:
        assert np.abs(other.predict_proba(GRAY) - first).max() > 1e-6


def test_minutes_become_steps(monkeypatch):
    monkeypatch.setattr("wazuka.app.learn.Learner.seconds_per_step", lambda self: 0.1)
    assert quick(steps=None, minutes=0.55 / 60).fit(GRAY, np.arange(20) % 2).steps_ == 5
    assert quick(steps=None, minutes=1e-9).fit(GRAY, np.arange(20) % 2).steps_ == 1


def test_it_can_be_cloned_pickled_and_shown(learned):
    images, _ = stripes(30, seed=3)
    copy = pickle.loads(pickle.dumps(learned))
    np.testing.assert_array_equal(copy.predict_proba(images), learned.predict_proba(images))
    fresh = clone(learned)
    assert fresh.get_params() == learned.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    assert "steps=80" in repr(learned)


def test_score_leaves_unlabeled_images_out(learned):
    images, labels = stripes(40, seed=4)
    hidden = labels.copy()
    hidden[:30] = -1
    assert learned.score(images, hidden) == learned.score(images[30:], labels[30:])
    wrong = np.where(np.arange(40) < 20, 1 - labels, labels)
    weights = np.where(np.arange(40) < 20, 0.0, 2.0)
    assert learned.score(images, wrong, weights) == learned.score(images[20:], labels[20:])
    with pytest.raises(UserError, match="every y is -1"):
        learned.score(images, np.full(40, -1))


def test_it_works_in_searches_pipelines_and_cross_validation():
    images, labels = stripes(40)
    flat = images.reshape(40, 64)
    scaled = make_pipeline(MinMaxScaler(), quick()).fit(flat, few(labels))
    assert scaled.predict(flat).shape == (40,)
    shaped = make_pipeline(FunctionTransformer(np.negative), FunctionTransformer(lambda x: 255 + x), quick())
    assert shaped.fit(images.astype(int), labels).predict(images.astype(int)).shape == (40,)
    folds = StratifiedKFold(2)
    scores = cross_val_score(quick(steps=40), images, few(labels, 10), cv=folds, error_score="raise")
    assert scores.shape == (2,)
    assert scores.mean() > 0.8  # were the unlabeled images counted, it could not pass 0.5
    search = GridSearchCV(quick(), {"settings": [SMALL, SMALL | {"threshold": 0.5}], "steps": [1, 2]}, cv=folds)
    search.fit(flat, labels)
    assert search.best_params_["steps"] in (1, 2)
    assert search.predict(flat).shape == (40,)


def test_a_saved_classifier_opens_as_a_run(learned, tmp_path):
    images, _ = stripes(30, seed=5)
    folder = learned.save(tmp_path / "run")
    model = wazuka.load(folder)
    assert model.classes == ("0", "1")
    np.testing.assert_allclose(model.predict_proba(images[:, None]), learned.predict_proba(images), atol=1e-6)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jsonl", ".safetensors"}
    with pytest.raises(UserError, match="holds a run already"):
        learned.save(folder)
    table = quick().fit(np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) % 2)
    with pytest.raises(UserError, match="table"):
        table.save(tmp_path / "other")


def test_a_saved_classifier_remembers_settings_that_shape_the_network(tmp_path):
    settings = {"labeled_batch": 4, "unlabeled_batch": 4, "hidden": np.int64(7)}
    model = wazuka.Classifier("ds3l", settings, steps=1).fit(GRAY, np.arange(20) % 2)
    loaded = wazuka.load(model.save(tmp_path / "run"))
    np.testing.assert_allclose(loaded.predict_proba(GRAY[:, None]), model.predict_proba(GRAY), atol=1e-6)


def test_progress_is_shown_only_when_asked(capfd, monkeypatch):
    monkeypatch.setattr("wazuka.app.console.SHOW_AFTER", 0)
    quick().fit(GRAY, np.arange(20) % 2)
    assert capfd.readouterr() == ("", "")
    quick(verbose=True).fit(GRAY, np.arange(20) % 2)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training: 2 of 2, done" in err


def test_the_front_door_opens_without_the_rooms_behind():
    code = "import sys, wazuka; assert 'Classifier' in dir(wazuka); "
    code += "assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
