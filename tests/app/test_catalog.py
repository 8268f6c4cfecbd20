import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import wazuka.methods
from wazuka.app.catalog import build, entries, entry, make_settings, planned_settings
from wazuka.contract import Detector, Head, Method, Optimizer
from wazuka.errors import UserError
from wazuka.nets import ConvNet


def test_every_method_file_is_found_with_its_settings_and_a_summary():
    files = {path.stem for path in Path(wazuka.methods.__file__).parent.glob("*/*.py")} - {"__init__"}
    assert {item.kind.__module__.rpartition(".")[2] for item in entries().values()} == files
    for name, item in entries().items():
        assert issubclass(item.kind, (Method, Head, Detector)), name
        assert item.summary, name
        assert item.kind.__module__.split(".")[-2] == item.setting
        if item.settings is not None:
            assert item.settings.__name__ == f"{item.kind.__name__}Settings"
            assert item.settings()  # every setting has its default


def test_what_fit_can_train():
    fitting = {name for name, item in entries().items() if item.fits}
    assert {"fixmatch", "supervised", "ds3l"} <= fitting
    assert not {"adda", "gram", "rotation"} & fitting
    assert entry("fixmatch").kind.__name__ == "FixMatch"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fixmach", "^There is no method 'fixmach'; did you mean fixmatch"),
        ("zzz", "^There is no method 'zzz'; there are .*fixmatch"),
        ("gram", "^gram belongs to uncertainty and can't be trained by fit, which takes .*fixmatch"),
    ],
)
def test_unknown_methods_are_met_with_help(name, message):
    with pytest.raises(UserError, match=message):
        entry(name)


@pytest.mark.parametrize(
    ("method", "path", "typed", "value"),
    [
        ("fixmatch", "threshold", "0.9", 0.9),
        ("fixmatch", "labeled_batch", "32", 32),
        ("fixmatch", "alignment", "yes", True),
        ("fixmatch", "alignment", "FALSE", False),
        ("fixmatch", "alignment", True, True),
        ("fixmatch", "optimizer.lr", "1e-3", 0.001),
        ("fixmatch", "optimizer.nesterov", "0", False),
        ("supervised", "view", "weak", "weak"),
    ],
)
def test_typed_settings_become_what_the_default_is(method, path, typed, value):
    settings = make_settings(entry(method), {path: typed})
    for name in path.split("."):
        settings = getattr(settings, name)
    assert settings == value
    assert type(settings) is type(value)


def test_settings_that_are_not_named_keep_their_value():
    item = entry("fixmatch")
    made = make_settings(item, {"optimizer.lr": "0.5", "threshold": "0.8"})
    default = item.settings()
    assert made == dataclasses.replace(default, threshold=0.8, optimizer=dataclasses.replace(default.optimizer, lr=0.5))
    assert make_settings(item, {}) == default


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("fixmatch", {"treshold": 1}, "fixmatch has no setting 'treshold'; did you mean threshold"),
        ("fixmatch", {"optimizer.rate": 1}, "no setting 'rate'"),
        ("fixmatch", {"optimizer": Optimizer(lr=1)}, r"has parts; change one of .*optimizer\.lr"),
        ("fixmatch", {"optimizer": "sgd"}, r"has parts; change one of .*optimizer\.lr"),
        ("fixmatch", {"optimizer.schedule": "cosine"}, "is a function"),
        ("fixmatch", {"threshold.x": 1}, "nothing lies inside"),
        ("fixmatch", {"threshold": "high"}, "threshold must be a number, got 'high'"),
        ("fixmatch", {"labeled_batch": "1.5"}, "labeled_batch must be a whole number"),
        ("fixmatch", {"alignment": "perhaps"}, "alignment must be yes or no"),
        ("fixmatch", {"threshold": "-1"}, "settings of fixmatch don't fit: threshold must not be negative"),
        ("fixmatch", {"threshold": None}, "settings of fixmatch don't fit"),
        ("supervised", {"view": "sideways"}, "view must be"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_one_sentence(method, given, message):
    with pytest.raises(UserError, match=message) as raised:
        make_settings(entry(method), given)
    assert "\n" not in str(raised.value)


def test_a_plan_goes_before_the_defaults_and_the_user_before_the_plan():
    planned = {"labeled_batch": 16, "threshold": 0.5, "no_such_setting": 1}
    made = planned_settings(entry("fixmatch"), planned, {"threshold": "0.7"})
    assert (made.labeled_batch, made.threshold) == (16, 0.7)
    assert made.unlabeled_ratio == entry("fixmatch").settings().unlabeled_ratio
    without = dataclasses.replace(entry("fixmatch"), settings=None)
    assert planned_settings(without, planned, {}) is None
    with pytest.raises(UserError, match="has no settings, but threshold was given"):
        planned_settings(without, planned, {"threshold": 1})


@pytest.mark.parametrize("name", [n for n, item in entries().items() if item.fits and issubclass(item.kind, Method)])
def test_every_method_that_fits_is_built_from_a_network(name):
    item = entry(name)
    method = build(
        item, ConvNet(1, 3, (4,)), 3, make_settings(item, {}), unlabeled=9, shape=(1, 8, 8), unheard_of=1,
        guesses=torch.full((9, 3), 1 / 3),
    )  # fmt: skip
    assert isinstance(method, nn.Module)
    assert {stream.pool for stream in method.streams()} <= {"labeled", "unlabeled"}
