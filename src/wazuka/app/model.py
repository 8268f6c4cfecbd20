"""A trained classifier, opened from its run: images in, names and probabilities out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wazuka.app.catalog import build, entry, make_settings
from wazuka.app.learn import predict
from wazuka.app.runs import Run, open_run
from wazuka.atomic import save_atomic
from wazuka.contract import Method
from wazuka.data import ImageSet, Skipped, open_images
from wazuka.errors import UserError
from wazuka.nets import ConvNet


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image. probability: its own, in [0, 1], of `label`; runner_up: the second guess."""

    file: str
    label: str
    probability: float
    runner_up: str
    runner_up_probability: float


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

    def open(self, source: Any, **options: Any) -> ImageSet:
        """Any form of pictures (see `wazuka.images`) in this model's size and channels, all splits together."""
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
        """Name every picture of `source`; returns the answers and the files that could not be read."""
        images = self.open(source, **options)
        return self.name(images), images.skipped

    def name(self, images: ImageSet) -> list[Prediction]:
        """Predictions for an ImageSet of this model's size and channels, in its order."""
        probs = self.predict_proba(images.images)
        order = np.argsort(-probs, axis=1, kind="stable")[:, :2]
        return [
            Prediction(
                str(name), self.classes[first], float(row[first]), self.classes[second], float(row[second])
            )
            for name, row, (first, second) in zip(images.names, probs, order.tolist(), strict=True)
        ]


def save_model(run: Run, method: Method) -> None:
    """Write the weights, and nothing that could execute."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in method.state_dict().items()}
    save_atomic(run.model, lambda path: save_file(tensors, path))


def load(folder: str | Path) -> Model:
    """Open a finished run. Raises UserError for a folder that is none, or whose files are damaged."""
    run = open_run(folder)
    facts = run.read("run.json")
    if not run.model.exists():
        raise UserError(f"{folder} is not finished; go on with `{facts.get('resume', 'wazuka fit --resume')}`.")
    try:
        item = entry(facts["method"])
        classes, channels = tuple(facts["classes"]), int(facts["channels"])
        shape = facts["plan"]["net"]
        net = ConvNet(channels, len(classes), tuple(shape["widths"]), momentum=0.1, stride=shape.get("stride", 1))
        given = {} if facts.get("kept") == "labels alone" else facts["choices"]["settings"]
        settings = make_settings(item, given)  # those of the plan change no shape
        size = (int(facts["size"][0]), int(facts["size"][1]))
        pool = int(facts["n_labeled"]) + int(facts["n_unlabeled"])
        method = build(item, net, len(classes), settings, unlabeled=pool, shape=(channels, *size))
        fit = str(facts["fit"])
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/run.json lacks what a model needs ({error}); fit it again.") from error
    try:
        with safe_open(run.model, framework="pt") as file:
            method.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except Exception as error:  # safetensors raises its own SafetensorError, which derives from Exception alone
        raise UserError(f"{run.model} is damaged or from another version ({_short(error)}); fit it again.") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    metrics = run.read("metrics.json") if (run.folder / "metrics.json").exists() else {}
    return Model(method, classes, size, channels, fit, metrics, device, run.folder)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
