"""A trained classifier, opened from its run: images in, names and probabilities out."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wazuka.app.backbones import BUILT_IN, Extractor, Pretrained, backbone_named, is_path, opened, texture_of
from wazuka.app.catalog import build, entry, make_settings, planned_settings
from wazuka.app.hub import is_hub_name
from wazuka.app.learn import predict
from wazuka.app.runs import Run, open_run
from wazuka.app.transfer import FrozenClassifier, build_head
from wazuka.app.trust import trust_from
from wazuka.app.tuned import tuned_plan, under_head
from wazuka.atomic import save_atomic
from wazuka.contract import Method
from wazuka.data import ImageSet, Skipped, open_images
from wazuka.data.decode import Shape
from wazuka.data.gather import is_mixed, open_gathered
from wazuka.errors import UserError
from wazuka.nets import ConvNet

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image. The last three are None where the run has nothing that tells them.

    probability   its own, in [0, 1], of `label`
    runner_up     the second guess
    label_set     the classes that can't be ruled out
    oddness       p-value in [0, 1] of being one of the classes at all; low for a photo of something else
    abstained     whether the answer is too unsure to be used
    """

    file: str
    label: str
    probability: float
    runner_up: str
    runner_up_probability: float
    label_set: tuple[str, ...] | None = None
    oddness: float | None = None
    abstained: bool | None = None


@dataclass(frozen=True)
class Model:
    """A trained method, with what it needs to know about images.

    classes    names, in the order of the probabilities
    size       (height, width) that images are brought to
    channels   1 gray, 3 RGB
    fit        how another aspect ratio is met: "crop", "pad" or "squash"
    metrics    of the run, or {} where it has none
    folder     of the run
    """

    method: Method
    classes: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    fit: str
    metrics: dict[str, Any]
    device: torch.device
    folder: Path

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """(N, C, H, W) uint8 of this model's size and channels -> (N, classes) float32 probabilities."""
        expected = (self.channels, *self.size)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise UserError(
                f"The model takes uint8 images of shape {expected}, got {images.dtype} of {tuple(images.shape[1:])}; "
                "open them with model.open(...)."
            )
        return predict(self.method, images, self.device)

    def probabilities(self, images: ImageSet, progress: Any = None) -> np.ndarray:
        """As `predict_proba`, but features that were extracted before are taken from where they are kept."""
        if not isinstance(self.method, FrozenClassifier):
            return self.predict_proba(images.images)
        return self.method.probabilities(images, progress)

    def open(self, source: Any, listed: Sequence[str] = (), **options: Any) -> ImageSet:
        """Any form of pictures (see `wazuka.images`) in this model's size and channels, all splits together.

        source    also a pattern ("photos/**/*.jpg"), or a list of folders, files and patterns
        listed    more files and folders, out of a list: one that is not there stands in `skipped`
        """
        if listed or is_mixed(source):
            given = [source] if isinstance(source, (str, Path)) else source
            return open_gathered(given, listed, Shape(self.size, self.channels, self.fit), **options).train
        data = open_images(source, size=self.size, channels=self.channels, fit=self.fit, check=False, **options)
        if data.test is None or not len(data.test):
            return data.train
        parts = [part for part in (data.train, data.test) if len(part)]
        return replace(
            parts[0],
            images=np.concatenate([part.images for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            names=[name for part in parts for name in part.names],
            skipped=data.skipped,
            notes=data.notes,
            extras={},
        )

    def predict(self, source: Any, **options: Any) -> tuple[list[Prediction], tuple[Skipped, ...]]:
        """Name every picture of `source` (see `open`); returns the answers and the files that could not be read."""
        images = self.open(source, **options)
        return self.name(images), images.skipped

    def name(self, images: ImageSet, progress: Any = None, max_error: float | None = None) -> list[Prediction]:
        """Predictions for an ImageSet of this model's size and channels, in its order.

        max_error  answers are given up (`abstained`) until at most this share of the others is wrong, with 90 %
                   certainty; None: odd photos alone are given up, where there are labels enough to tell them

        Raises UserError where the labels can't promise that.
        """
        return list(self.named(images, progress, max_error))

    def named(
        self, images: ImageSet, progress: Any = None, max_error: float | None = None
    ) -> Iterator[Prediction]:
        """As `name`, one after another: a million photos need no more memory than ten thousand."""
        if max_error is not None and not 0 < max_error < 1:
            raise UserError(f"--max-error is a share of wrong answers, above 0 and below 100 %, got {max_error:g}.")
        if not isinstance(self.method, FrozenClassifier) or self.method.trust is None:
            if max_error is not None:
                raise UserError(f"{self.folder} was not learned on a frozen network's features, and nothing is known "
                                "of its errors; leave --max-error out.")  # fmt: skip
            yield from self._answers(images, self.probabilities(images, progress))
            return
        method, trust = self.method, self.method.trust
        for rows, features in method.features_of(images, progress):
            probs = method.answers(features)[0].float().cpu().numpy()
            p_values, odd = trust.oddness(features)
            given_up = odd if max_error is None else odd | ~trust.keeps(probs, max_error)[0]
            sets = trust.sets(features)
            some = self._answers(images, probs, rows.start)
            for row, one in enumerate(some):
                left = None if sets is None else tuple(self.classes[c] for c in np.flatnonzero(sets[row]))
                yield replace(one, label_set=left, oddness=float(p_values[row]), abstained=bool(given_up[row]))

    def _answers(self, images: ImageSet, probs: np.ndarray, start: int = 0) -> list[Prediction]:
        """Predictions for as many images as there are probabilities, from `start` on."""
        order = np.argsort(-probs, axis=1, kind="stable")[:, :2]
        names = [str(images.names[start + row]) for row in range(len(probs))]
        return [
            Prediction(name, self.classes[first], float(row[first]), self.classes[second], float(row[second]))
            for name, row, (first, second) in zip(names, probs, order.tolist(), strict=True)
        ]


def save_model(run: Run, method: Method) -> None:
    """Write the weights, and nothing that could execute."""
    state = method.state_dict()
    if isinstance(method, FrozenClassifier) and method.trust is not None:
        state = state | method.trust.state()
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_atomic(run.model, lambda path: save_file(tensors, path))


def load(folder: str | Path, backbone: "str | Path | nn.Module | Pretrained | None" = None) -> Model:
    """Open a finished run. Raises UserError for a folder that is none, or whose files are damaged.

    backbone  what the run learned on, where it can't be found by its name: a module of your own, or the folder that a
              network lies in now
    """
    run = open_run(folder)
    facts = run.read("run.json")
    if not run.model.exists():
        raise UserError(f"{folder} is not finished; go on with `{facts.get('resume', 'wazuka fit --resume')}`.")
    try:
        item = entry(facts["method"])
        classes, channels = tuple(facts["classes"]), int(facts["channels"])
        shape = facts["plan"]["net"]
        given = {} if facts.get("kept") == "labels alone" else facts["choices"]["settings"]
        settings = make_settings(item, given)  # those of the plan change no shape
        size = (int(facts["size"][0]), int(facts["size"][1]))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        method: Method
        if shape["kind"] == "pretrained":
            views = [_same_backbone(folder, shape, backbone)]
            if facts.get("texture") and (texture := texture_of(views[0])) is not None:
                views.append(texture)
            precision = str(facts["choices"]["precision"])
            extractors = tuple(Extractor(view, device, precision) for view in views)
            extra = sum(view.feature_size for view in views[1:])
            blank = build_head(item, len(classes), settings, extra)
            method = FrozenClassifier(extractors, copy.deepcopy(blank))
        elif shape["kind"] == "tuned":
            pool = int(facts["n_labeled"]) + int(facts["n_unlabeled"])
            plan = tuned_plan(_same_backbone(folder, shape, backbone), None, channels)
            planned = planned_settings(item, plan.settings_for(item.name), given)
            tuned_net, settings = under_head(item, plan.net(channels, len(classes)), len(classes), planned, None)
            method = build(
                item, tuned_net, len(classes), settings, unlabeled=pool, shape=(channels, *size),
                guesses=torch.full((pool, len(classes)), 1 / len(classes)),
            )  # fmt: skip
        else:
            net = ConvNet(channels, len(classes), tuple(shape["widths"]), momentum=0.1, stride=shape.get("stride", 1))
            pool = int(facts["n_labeled"]) + int(facts["n_unlabeled"])
            method = build(item, net, len(classes), settings, unlabeled=pool, shape=(channels, *size))
        fit = str(facts["fit"])
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/run.json lacks what a model needs ({error}); fit it again.") from error
    try:
        with safe_open(run.model, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
        if isinstance(method, FrozenClassifier):
            method.trust = trust_from(state, facts.get("trust", {}), lambda: copy.deepcopy(blank))
            state = {name: value for name, value in state.items() if name.startswith("head.")}
        method.load_state_dict(state)
    except Exception as error:  # safetensors raises its own SafetensorError, which derives from Exception alone
        raise UserError(f"{run.model} is damaged or from another version ({_short(error)}); fit it again.") from error
    method = method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    metrics = run.read("metrics.json") if (run.folder / "metrics.json").exists() else {}
    return Model(method, classes, size, channels, fit, metrics, device, run.folder)


def _same_backbone(folder: str | Path, shape: dict[str, Any], given: Any = None) -> Pretrained:
    """The network that the run learned on. Raises UserError where it is missing, or is another one now."""
    name, size = str(shape["backbone"]), int(shape["size"])
    if given is not None:
        backbone = replace(opened(given, size, name), size=size)  # it may have been tuned at fewer pixels
    elif name not in BUILT_IN and not is_path(name) and not is_hub_name(name):
        raise UserError(f"{folder} learned on {name}, a module of its maker's own: open it from Python with "
                        f"wazuka.load({str(folder)!r}, backbone=that module).")  # fmt: skip
    else:
        try:
            backbone = backbone_named(name, size)
        except UserError as error:
            raise UserError(f"{folder} can't be opened without the backbone it learned on: {error}") from error
    if backbone.key() != shape["key"]:
        there = "installed here: install the same" if given is None else "given: give the same"
        raise UserError(f"{folder} learned on other weights of {name} than those {there}, or fit it again.")
    return backbone


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
