"""What a report tells of the inside: where the network looks, and what besides the object gives the label away."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wazuka.app.backbones import Extractor
from wazuka.app.hub import HubNet
from wazuka.app.transfer import FrozenClassifier
from wazuka.data import ImageSet
from wazuka.explain import look, overlay, shortcut_checks
from wazuka.nets import Backbone

LOOKS = 10        # photos
LOOK_SIDE = 256   # pixels: a map has a place for every 32
TELLING = 0.5     # share of the whole photos' lead over chance from which a shortcut is worth a sentence


def shortcuts(method: FrozenClassifier, train: ImageSet, source: str, seed: int) -> list[dict[str, Any]]:
    """The checks for shortcuts on the labeled photos, the most telling first (`Shortcut.to_dict`)."""
    labeled = train.subset(train.labeled).with_channels(3)
    folder = Path(source).expanduser()
    paths = [folder / str(name) for name in labeled.names] if folder.is_dir() else []
    files = paths if paths and all(path.is_file() for path in paths) else None
    found = shortcut_checks(
        method.extractors[0], np.asarray(labeled.images), labeled.labels, train.classes, files, seed
    )
    told = [one.to_dict() for one in found]
    return sorted(told, key=lambda one: -(one["share"] or 0.0))


def worth_telling(told: list[dict[str, Any]]) -> list[str]:
    """Sentences for the report: shortcuts that carry much of what the whole photos tell, or why none is known."""
    if not told:
        return []
    if all(one["p_value"] is None for one in told):
        return [told[0]["sentence"]]
    return [one["sentence"] for one in told if one["found"] and (one["share"] or 0.0) >= TELLING]


def looks(method: FrozenClassifier, images: ImageSet, probs: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(position, the photo with a warm overlay where the answer comes from, (3, H, W) uint8) of ten photos.

    Mistakes first, then the surest of each class in turn. None where `without_looks` says why.
    """
    net = method.extractors[0].backbone.net
    if without_looks(method.extractors) or not len(images):
        return []
    rows = chosen(probs, images.labels)
    pixels = torch.from_numpy(np.array(images.subset(rows).with_channels(3).images))
    side = max(LOOK_SIDE, *pixels.shape[2:])
    large = F.interpolate(pixels.float() / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    layer = net.layer if isinstance(net, HubNet) else None
    heat = look(net, method.head, large, torch.from_numpy(probs[rows].argmax(axis=1)), layer)
    return [
        (row, overlay((image * 255).round().to(torch.uint8), one).numpy())
        for row, image, one in zip(rows.tolist(), large, heat, strict=True)
    ]


def without_looks(extractors: Sequence[Extractor]) -> list[str]:
    """Why no photo shows where the network looks, in a sentence; none where they do."""
    if not extractors:
        return []
    backbone = extractors[0].backbone
    if len(extractors) > 1:
        return ["Where it looks is not shown: it looked at surfaces too, and no single map explains both."]
    net = backbone.net
    if net.layer if isinstance(net, HubNet) else isinstance(net, Backbone) and hasattr(net, "maps"):
        return []
    return [f"Where it looks is not shown: {backbone.name} has no maps whose places add up to its features."]


def chosen(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Positions of the photos to look at, at most LOOKS."""
    guess, sure = probs.argmax(axis=1), probs.max(axis=1)
    wrong = np.flatnonzero((labels >= 0) & (guess != labels))
    rows = wrong[np.argsort(-sure[wrong], kind="stable")][: LOOKS // 2].tolist()
    place = 0
    orders = [np.flatnonzero(guess == c)[np.argsort(-sure[guess == c], kind="stable")] for c in range(probs.shape[1])]
    while len(rows) < LOOKS and any(place < len(order) for order in orders):
        rows += [int(order[place]) for order in orders if place < len(order) and int(order[place]) not in rows]
        place += 1
    return np.array(rows[:LOOKS])
