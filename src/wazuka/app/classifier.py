"""scikit-learn's way in: `Classifier().fit(X, y)`, where -1 in `y` means unlabeled.

The estimator works in pipelines, searches and cross-validation. It writes nothing to the disk unless `save` is called.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

import wazuka
from wazuka.app.backbones import Extractor, opened
from wazuka.app.catalog import Entry, entry, make_settings, planned_settings
from wazuka.app.console import showing_progress
from wazuka.app.learn import Learner, Watch, predict
from wazuka.app.model import save_model
from wazuka.app.plan import Plan, plan_for
from wazuka.app.runs import FORMAT, new_run
from wazuka.app.start import start_from
from wazuka.app.transfer import FeaturePlan, Features, FrozenClassifier, build_head
from wazuka.app.tuned import Start, TunedPlan, as_tuned, tuned_plan, tunes
from wazuka.augment import Noise, Plain
from wazuka.contract import Head, Method
from wazuka.data import ImageSet, open_images
from wazuka.errors import UserError
from wazuka.training.processes import launch, precision_named

SMALLEST_PICTURE = 8  # pixels a side: flat rows of fewer than 64 numbers are a table, unless image_shape says otherwise
OWN_RANGE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(bool): 1}  # the largest value a kind holds


class Classifier(ClassifierMixin, BaseEstimator):
    """Learns image recognition from a few labels and many images without.

        labels = np.full(len(images), -1)           # -1: unlabeled
        labels[known] = ...
        model = wazuka.Classifier(random_state=0).fit(images, labels)
        model.predict(more_images)

    X   images (n, H, W), (n, H, W, c) or (n, c, H, W), c = 1, 3 or 4. uint8, uint16 and bool bring their own range;
        other numbers lie in [0, 1] or [0, 255], as the largest at `fit` decides, and stay on that scale at `predict`.
        Flat rows (n, features) are gray square pictures if features is a square of at least 8 x 8 (scikit-learn's
        digits), or pictures of `image_shape`. The least and the largest number at `fit` become black and white, and
        at `predict` numbers beyond are clipped. Any other flat rows are a table: each feature becomes one gray pixel,
        black at its least and white at its largest value at `fit`, and views differ by noise alone. That is meant to
        work, not to excel: a network for images is no good choice for tables.
    y   numbers, -1 where unlabeled; or names: in an array of dtype object with -1 where unlabeled, as scikit-learn's
        semi-supervised estimators have it, or None. A plain array of strings has a label for every image. With no
        unlabeled image at all, the labeled ones serve in their place, without their labels.

    method        "fixmatch", "supervised", ... (`wazuka methods` lists them); heads such as "consensus" learn photos by
                  the features of a pre-trained network, in seconds
    settings      mapping, the method's settings by name: {"threshold": 0.9, "optimizer.lr": 0.03}
    steps, minutes  how long to train; neither: what the plan for images of this size says (digits: about a minute)
    image_shape   of flat rows: (H, W), (H, W, c) or (c, H, W)
    flip          whether a mirrored image still is of its class; None: yes for images in color, no for gray ones
    precision     "float32", "bfloat16" or "auto"
    device        "auto", "cpu", "cuda": where to train and predict
    backbone      of heads, and of any other method, which then tunes it: a name ("auto", "efficientnet-lite0",
                  "facebook/dinov2-small"), a folder, a module of your own, or a Pretrained
    random_state  int: the same seed gives the same classifier on the same machine; None: another one each time
    verbose       show progress on standard error

    After `fit`: `classes_`, `n_features_in_` (numbers per image), `steps_` (of training), `method_` (the network).
    In scikit-learn's searches and cross-validation use the default scorer: it is `score`, which leaves unlabeled
    images out, where scoring="accuracy" would count every one of them as a mistake.

    Wrong input raises UserError, which is a ValueError.
    """

    def __init__(
        self,
        method: str = "fixmatch",
        settings: Mapping[str, Any] | None = None,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        image_shape: tuple[int, ...] | None = None,
        flip: bool | None = None,
        precision: str = "auto",
        device: str = "auto",
        backbone: Any = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ):
        self.method = method
        self.settings = settings
        self.steps = steps
        self.minutes = minutes
        self.image_shape = image_shape
        self.flip = flip
        self.precision = precision
        self.device = device
        self.backbone = backbone
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "Classifier":
        self._check_parameters()
        item = entry(self.method)
        X = self._checked(X, reset=True)
        codes, classes = read_labels(y, len(X))
        layout = layout_of(X, self.image_shape)
        images = layout.pack(X).with_labels(codes, [str(name) for name in classes])
        if issubclass(item.kind, Head):
            return self._fit_head(item, layout, images, classes)
        fabric, start = launch(self.device), None
        plan: Plan = layout.plan(self.flip)
        if item.setting == "transfer" or not (isinstance(self.backbone, str) and self.backbone in ("auto", "none")):
            if not tunes(item):
                raise UserError(f"{self.method} brings a network of its own, or changes the last layer of the one it "
                                "is given; leave the backbone out.")  # fmt: skip
            plan, start = self._tuning(layout, images, fabric.device)
        settings = planned_settings(item, plan.settings_for(item.name), self.settings or {})
        # training seeds torch's own generators, which are the caller's: they are given back as they were
        with _untouched_generators(fabric.device), showing_progress() if self.verbose else nullcontext() as console:
            learner = Learner(
                item, plan, settings, images, self._seed(), fabric, precision_named(self.precision, fabric.device),
                start=start,
            )  # fmt: skip
            steps = int(self.steps or plan.steps)
            if self.minutes is not None:
                steps = max(1, int(self.minutes * 60 / learner.seconds_per_step()))
            learner.learn(steps, watch=Watch(console.step) if console is not None else None)
        self.plan_: Plan | FeaturePlan = plan
        self.method_: Method = learner.method
        self.classes_, self.layout_ = classes, layout
        self.steps_, self.n_labeled_, self.n_unlabeled_ = steps, images.n_labeled, len(images) - images.n_labeled
        return self

    def _tuning(self, layout: "Layout", images: ImageSet, device: torch.device) -> tuple[TunedPlan, Start]:
        """How a pre-trained network is tuned on these images, and where that begins."""
        if layout.table or (isinstance(self.backbone, str) and self.backbone == "none"):
            what = "X is a table" if layout.table else "leave backbone='none' out"
            raise UserError(f"{self.method} tunes a pre-trained network: {what}.")
        backbone = as_tuned(opened(self.backbone, gpu=device.type == "cuda"), device)
        features = Features((Extractor(backbone, device, self.precision)(images.images),))
        start = start_from(features, torch.from_numpy(images.labels.copy()), images.n_classes)
        return tuned_plan(backbone, self.flip, images.channels), start

    def _fit_head(self, item: Entry, layout: "Layout", images: ImageSet, classes: np.ndarray) -> "Classifier":
        """Learn on the features of the pre-trained network; nothing is written to the disk."""
        if self.steps is not None or layout.table:
            what = "steps are the length of a training from scratch" if self.steps is not None else "X is a table"
            raise UserError(f"{self.method} learns on the features that a pre-trained network has of images: {what}.")
        if isinstance(self.backbone, str) and self.backbone == "none":
            raise UserError(f"{self.method} learns on a pre-trained network's features; leave backbone='none' out.")
        device = launch(self.device).device
        extractor = Extractor(opened(self.backbone, gpu=device.type == "cuda"), device, self.precision)
        head = build_head(item, images.n_classes, make_settings(item, self.settings or {}))
        head.fit(torch.from_numpy(extractor(images.images)), torch.from_numpy(images.labels.copy()))
        backbone = extractor.backbone
        self.classes_, self.layout_, self.plan_ = classes, layout, FeaturePlan(backbone, backbone.key())
        self.method_ = FrozenClassifier((extractor,), head)
        self.steps_, self.n_labeled_, self.n_unlabeled_ = 1, images.n_labeled, len(images) - images.n_labeled
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities, float64, in the order of `classes_`."""
        check_is_fitted(self, "method_")
        images = self.layout_.pack(self._checked(X, reset=False)).images
        probs = predict(self.method_, images, _device_of(self.method_)).astype(np.float64)
        return probs / probs.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels, as they were in `y`."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(axis=1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the labeled images that are named right; images without a label (-1) don't count."""
        check_is_fitted(self, "method_")
        y = column_or_1d(y)
        check_consistent_length(X, y)
        known = ~_unlabeled(y)
        if not known.any():
            raise UserError("There is no label to score against: every y is -1.")
        right = self.predict(X)[known] == y[known]
        return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)[known]))

    def save(self, folder: str | Path) -> Path:
        """Write a run that `wazuka predict` and `wazuka.load` open; no pickle. Raises UserError."""
        check_is_fitted(self, "method_")
        if self.layout_.table:
            raise UserError("This classifier learned from a table, not from images: a run is opened with images.")
        channels, height, width = self.layout_.shape
        settings = {name: np.asarray(value).item() for name, value in (self.settings or {}).items()}
        run = new_run(folder)
        save_model(run, self.method_)
        facts = {
            "format": FORMAT, "state": "done", "wazuka": wazuka.__version__, "torch": torch.__version__,
            "method": self.method, "choices": {"settings": settings, "precision": self.precision},
            "plan": self.plan_.describe(),
            "classes": [str(name) for name in self.classes_], "size": [height, width], "channels": channels,
            "fit": "crop", "steps": self.steps_, "n_labeled": self.n_labeled_, "n_unlabeled": self.n_unlabeled_,
        }  # fmt: skip
        run.write("run.json", facts)
        return run.folder

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A network on a GPU is pickled as one on the CPU, so that any machine can open it."""
        state = dict(super().__getstate__())
        if "method_" in state and _device_of(self.method_).type != "cpu":
            state["method_"] = copy.deepcopy(self.method_).cpu()
        return state

    def _check_parameters(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise UserError("steps and minutes both say how long to train; give one of them.")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} must be positive, got {value}.")
        if self.steps is not None and self.steps != int(self.steps):
            raise UserError(f"steps must be a whole number, got {self.steps}.")
        for name, known in (("precision", ("auto", "float32", "bfloat16")), ("device", ("auto", "cpu", "cuda"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError('There is no GPU here; take device="auto" or "cpu".')

    def _checked(self, X: Any, reset: bool) -> np.ndarray:
        """An array of finite numbers, 2-D to 4-D, with as many numbers in a row as at `fit`; scikit-learn's messages
        for flat rows, ours for images.
        """
        X = X if hasattr(X, "columns") or hasattr(X, "dtype") else np.asarray(X)
        kind = None if getattr(X, "dtype", None) in OWN_RANGE else "numeric"
        if np.ndim(X) <= 2:
            return validate_data(self, X, dtype=kind, reset=reset)
        X = check_array(X, dtype=kind, ensure_2d=False, allow_nd=True)
        if reset:
            self.n_features_in_ = int(np.prod(X.shape[1:]))
            if hasattr(self, "feature_names_in_"):  # of a former fit on flat rows
                del self.feature_names_in_
        return X

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))


@dataclass(frozen=True)
class Layout:
    """How rows become packed images: found from the training images, applied the same ever after.

    row         shape of a row of X, and the shape it is read in: (H, W), (H, W, c) or (c, H, W)
    read_as     the latter
    low, high   what becomes 0 and 255; for a table (features,) arrays
    table       rows are no pictures
    shape       (C, H, W) of the packed images
    """

    row: tuple[int, ...]
    read_as: tuple[int, ...]
    low: Any
    high: Any
    table: bool
    shape: tuple[int, ...] = ()

    def pack(self, X: np.ndarray) -> ImageSet:
        """Rows as an ImageSet without labels. Raises UserError for another shape or another scale."""
        if X.shape[1:] != self.row:
            raise UserError(f"X holds images of shape {X.shape[1:]}, but those at fit had {self.row}: make them alike.")
        if X.ndim == 2:
            X = self._eight_bits(X)
        elif X.dtype not in OWN_RANGE:
            self._check_scale(X)
            X = self._eight_bits(X)
        if self.table:
            room = np.zeros((len(X), math.prod(self.read_as)), np.uint8)
            room[:, : X.shape[1]] = X
            X = room
        images = open_images(X.reshape(len(X), *self.read_as)).train
        if self.shape and images.images.shape[1:] != self.shape:
            raise UserError(f"X holds images of {images.images.shape[1:]}, but those at fit were {self.shape}.")
        return images

    def plan(self, flip: bool | None) -> Plan:
        channels, height, width = self.shape
        plan = plan_for(height, width, channels, flip)
        if not self.table:
            return plan
        # turning or moving a table would put one feature in another's place
        return replace(plan, policies={"plain": Plain(), "weak": Noise(std=4), "strong": Noise(std=24)})

    def _eight_bits(self, X: np.ndarray) -> np.ndarray:
        packed = np.empty(X.shape, np.uint8)
        span = np.where(self.high > self.low, self.high - self.low, 1)  # a constant becomes black
        for start in range(0, len(X), 1024):  # in blocks, because the quotients need eight bytes a pixel
            share = (X[start : start + 1024] - self.low) / span
            packed[start : start + 1024] = np.round(np.clip(share, 0, 1) * 255)
        return packed

    def _check_scale(self, X: np.ndarray) -> None:
        low, high = X.min(), X.max()
        if low < 0 or high > self.high:
            raise UserError(
                f"The images reach from {low:g} to {high:g}, but those at fit lay in [0, {self.high:g}]: "
                "give them on the same scale."
            )
        if X.dtype.kind == "f" and 0 < high <= 1 < self.high:
            raise UserError(
                f"The images reach from {low:g} to {high:g}, but those at fit lay in [0, {self.high:g}], where that is "
                "black: give them on the same scale."
            )


def layout_of(X: np.ndarray, image_shape: tuple[int, ...] | None) -> Layout:
    """The layout for training images. Raises UserError."""
    row = X.shape[1:]
    if X.ndim > 2:
        if image_shape is not None and tuple(image_shape) != row:
            raise UserError(f"image_shape is {tuple(image_shape)}, but X holds images of shape {row}: leave it out.")
        layout = Layout(row, row, 0, _largest(X), table=False)
    else:
        read_as = _picture_shape(row[0], image_shape)
        table = read_as is None
        if read_as is None:
            side = max(2, math.ceil(math.sqrt(row[0])))
            layout = Layout(row, (side, side), X.min(axis=0).astype(float), X.max(axis=0).astype(float), table)
        elif X.dtype in OWN_RANGE:
            layout = Layout(row, read_as, 0.0, float(OWN_RANGE[X.dtype]), table)
        else:
            layout = Layout(row, read_as, float(X.min()), float(X.max()), table)
    return replace(layout, shape=layout.pack(X[:1]).images.shape[1:])


def _picture_shape(features: int, image_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """What flat rows are read as; None: a table."""
    if image_shape is not None:
        shape = tuple(image_shape)
        if math.prod(shape) != features or len(shape) not in (2, 3):
            raise UserError(
                f"image_shape {shape} doesn't hold the {features} features of a row: give (H, W), (H, W, c)."
            )
        return shape
    side = math.isqrt(features)
    if side * side == features and side >= SMALLEST_PICTURE:
        return side, side
    side = math.isqrt(features // 3)
    if 3 * side * side == features and side >= SMALLEST_PICTURE:
        warnings.warn(
            f"{features} features are learned as a table; if a row is a picture of {side} x {side} in color, say "
            f"image_shape=({side}, {side}, 3) or (3, {side}, {side}).",
            stacklevel=4,
        )
    return None


def _largest(images: np.ndarray) -> float:
    """The top of the scale that images are on. Raises UserError where it is neither 1 nor 255."""
    if images.dtype in OWN_RANGE:
        return float(OWN_RANGE[images.dtype])
    low, high = images.min(), images.max()
    if low < 0 or high > 255:
        raise UserError(
            f"Images must be uint8, or numbers in [0, 1] or [0, 255]; these reach from {low:g} to {high:g}: "
            "subtract the least value possible and divide by the span."
        )
    return 1.0 if high <= 1 else 255.0


def read_labels(y: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) positions in classes, int64, -1 where unlabeled; and the classes, sorted. Raises UserError."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = column_or_1d(y, warn=True)
    if len(y) != count:
        raise UserError(f"There are {count} images but {len(y)} labels: give one for each, -1 where there is none.")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise UserError("Input y contains NaN or infinity: give -1 where there is no label.")
    unknown = _unlabeled(y)
    known = y[~unknown]
    if y.dtype.kind == "O":
        known = _all_names_or_all_numbers(known)
    elif y.dtype.kind in "US" and np.isin(known.astype(str), ["", "-1"]).any():
        raise UserError(
            "y is an array of strings: mark unlabeled images with the number -1 in an array of dtype=object."
        )
    if len(known):
        check_classification_targets(known)
    classes, positions = np.unique(known, return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"y has labels of {len(classes)} class{'es' * (len(classes) != 1)}, but learning needs at least 2 "
            "(-1 means unlabeled)."
        )
    codes = np.full(count, -1, np.int64)
    codes[~unknown] = positions
    return codes, classes


def _unlabeled(y: np.ndarray) -> np.ndarray:
    """(n,) bool: -1, or None among objects."""
    if y.dtype.kind == "O":
        return np.array([value is None or (not isinstance(value, str) and value == -1) for value in y.tolist()], bool)
    return np.equal(y, -1) if y.dtype.kind in "if" else np.zeros(len(y), bool)


def _all_names_or_all_numbers(known: np.ndarray) -> np.ndarray:
    names = [isinstance(value, str) for value in known.tolist()]
    if not any(names):
        return np.array(known.tolist())
    if not all(names):
        other = known[names.index(False)]
        raise UserError(f"y mixes names with {other!r}: labels are all names or all numbers, and -1 where unlabeled.")
    if any(value in ("", "-1") for value in known.tolist()):
        raise UserError('y has "" or "-1" among its names: mark unlabeled images with the number -1.')
    return known


def _device_of(method: Method) -> torch.device:
    """Where its weights are, or what a head has learned."""
    return next(itertools.chain(method.parameters(), method.buffers())).device


def _untouched_generators(device: torch.device) -> Any:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
