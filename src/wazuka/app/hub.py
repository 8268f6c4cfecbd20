"""Networks of the Hugging Face hub as backbones: DINOv2, ViT, ConvNeXt, ResNet and others, through `transformers`.

A name is a folder that holds config.json and model.safetensors, or one on the hub, such as facebook/dinov2-small, which
is looked for in the local cache first and downloaded where it is not there. Weights are read from safetensors alone:
nothing is unpickled, and no code that comes with weights is run. `transformers` is an extra (hub) and is imported when
such a network is opened; its image processors want torchvision, so what they would do is read from
preprocessor_config.json here.

**What the features are.** Of DINOv2, ViT and DeiT the class token behind the last layer norm. DINOv2's k-NN figures
are the class token's; its linear probes try that of the last layer or of the last four, each with and without the mean
of the patch tokens beside it, and keep what is best on the validation set (Oquab et al. 2023, arXiv:2304.07193;
dinov2/eval/knn.py and linear.py). With a few labels nobody has such a set, half of the heads here compare distances as
k-NN does, and twice as many numbers are no gift to the others: the class token alone. Of all others what their own
classifier, or their text tower, is given: the pooled output. (A ViT's "pooled output" in `transformers` passes one more
layer, which published checkpoints lack: it would be random.)
"""

import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wazuka.errors import UserError
from wazuka.nets.normalize import Normalize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
USUAL_SIZE = 224  # pixels a side: DINOv2's authors evaluate it there, though it ends its training at 518
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
WANTED = ("config.json", "preprocessor_config.json", "processor_config.json", "model*.safetensors", WEIGHTS[1])


@dataclass(frozen=True)
class Family:
    """How networks of one kind are opened, and what of their answer is taken.

    model      their class in `transformers`
    token      features are the class token behind the last layer norm; else the pooled output
    norm       mean and standard deviation of their published weights, for a folder that doesn't say its own
    pooler     whether the class can be told to make no pooling layer, which nothing here reads
    layer      whose output (N, K, h, w) shows where the network looks; "" where no single map does
    """

    model: str
    token: bool
    norm: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    pooler: bool = False
    layer: str = ""


FAMILIES = {
    "dinov2": Family("Dinov2Model", token=True),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", token=True),
    "dinov3_vit": Family("DINOv3ViTModel", token=True),
    "vit": Family("ViTModel", token=True, norm=HALF, pooler=True),
    "deit": Family("DeiTModel", token=True, pooler=True),
    "beit": Family("BeitModel", token=False, norm=HALF),
    "swin": Family("SwinModel", token=False),
    "swinv2": Family("Swinv2Model", token=False),
    "convnext": Family("ConvNextModel", token=False, layer="net.encoder.stages.{last}"),
    "convnextv2": Family("ConvNextV2Model", token=False, layer="net.encoder.stages.{last}"),
    "resnet": Family("ResNetModel", token=False, layer="net.encoder.stages.{last}"),
    "clip": Family("CLIPVisionModel", token=False, norm=CLIP),
    "clip_vision_model": Family("CLIPVisionModel", token=False, norm=CLIP),
    "siglip": Family("SiglipVisionModel", token=False, norm=HALF),
    "siglip_vision_model": Family("SiglipVisionModel", token=False, norm=HALF),
}


class HubNet(nn.Module):
    """(N, 3, H, W) float in [0, 1] -> features (N, D), normalized inside.

    kind     of the network and its features, beside the weights
    size     pixels a side that it looks at
    layer    the submodule whose maps show where it looks, or ""
    """

    feature_size: int

    def __init__(self, net: nn.Module, normalize: Normalize, family: Family, size: int, kind: str):
        super().__init__()
        self.net, self.normalize = net, normalize
        self.token, self.size, self.kind = family.token, size, kind
        config: Any = net.config
        self.layer = family.layer.format(last=len(getattr(config, "depths", ())) - 1)
        self.trained = config.image_size if isinstance(getattr(config, "image_size", None), int) else None
        self.asks = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters

    def forward(self, images: Tensor) -> Tensor:
        other = self.asks and images.shape[2] != self.trained  # DINOv2 never asks, and always interpolates
        options = {"interpolate_pos_encoding": True} if other else {}
        said = self.net(pixel_values=self.normalize(images), **options)
        return (said.last_hidden_state[:, 0] if self.token else said.pooler_output).flatten(1)

    def fold(self) -> None:
        """Fold the batch norms of a ResNet into the convolutions before them, in place."""
        for module in self.net.modules():
            before, norm = getattr(module, "convolution", None), getattr(module, "normalization", None)
            if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module.convolution = torch.nn.utils.fusion.fuse_conv_bn_eval(before.eval(), norm.eval())
                module.normalization = nn.Identity()


# Opening ---------------------------------------------------------------------------------------------------------


def is_installed() -> bool:
    """Whether `transformers` is there; it is not imported for the answer."""
    return importlib.util.find_spec("transformers") is not None


def open_hub(name: str, size: int | None = None) -> HubNet:
    """The network of a folder, or of that name on the hub, in eval mode and float32. Raises UserError.

    size   pixels a side in place of what its preprocessor says
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _downloaded(name)
    config = _read(folder / "config.json")
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UserError(
            f"{name} holds a network of type {config.get('model_type')!r}, whose image features are not known here; "
            f"there are {', '.join(FAMILIES)}."
        )
    _require_weights(folder, name)
    library = _transformers(name)
    if not hasattr(library, family.model):
        raise UserError(
            f"{name} needs a newer transformers than {library.__version__}: pip install --upgrade transformers"
        )
    normalize, told = _preprocessing(folder, family)
    net = _weighed(library, family, folder, name)
    settings: Any = net.config
    if getattr(settings, "num_channels", 3) != 3:
        raise UserError(f"{name} takes images of {settings.num_channels} channels; a backbone must take red, green and "
                        "blue.")  # fmt: skip
    if size is None and told is None:
        trained = getattr(settings, "image_size", None)
        told = min(trained, USUAL_SIZE) if isinstance(trained, int) else USUAL_SIZE
    size = size or told
    assert size is not None
    kind = f"{settings.model_type} {'token' if family.token else 'pooled'}"
    opened = HubNet(net, normalize, family, size, kind).eval().requires_grad_(False)
    try:
        with torch.no_grad():
            opened.feature_size = opened(torch.zeros(1, 3, size, size)).shape[1]
    except Exception as error:
        raise UserError(f"{name} can't look at images of {size} x {size} pixels ({_short(error)}).") from error
    return opened


def _transformers(name: str) -> Any:
    if not is_installed():
        raise UserError(f'{name} is opened through transformers, which is missing: pip install "wazuka[hub]"')
    return importlib.import_module("transformers")


def _weighed(library: Any, family: Family, folder: Path, name: str) -> nn.Module:
    """The network with all of its weights."""
    options = {"add_pooling_layer": False} if family.pooler else {}
    try:
        with _quietly(library):
            net, told = getattr(library, family.model).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
                output_loading_info=True, **options,
            )  # fmt: skip
    except Exception as error:  # safetensors, the config and the library each have their own
        raise UserError(f"The weights of {name} are damaged, or don't fit its config.json ({_short(error)}): get them "
                        "again.") from error  # fmt: skip
    lost = sorted(key for key in told["missing_keys"] if not key.endswith("mask_token"))  # the library makes them up
    if lost:
        raise UserError(f"The weights of {name} lack {lost[0]}{' and others' if len(lost) > 1 else ''}, which its "
                        "config.json promises: get them again.")  # fmt: skip
    assert isinstance(net, nn.Module)
    return net


def _require_weights(folder: Path, name: str) -> None:
    if any((folder / file).exists() for file in WEIGHTS):
        return
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickled:
        raise UserError(f"{name} holds its weights as {pickled[0]}, which could run code when it is opened; save them "
                        "as model.safetensors (save_pretrained does).")  # fmt: skip
    raise UserError(f"{name} holds no model.safetensors: save the network there with save_pretrained.")


def _preprocessing(folder: Path, family: Family) -> tuple[Normalize, int | None]:
    """What is done to images in [0, 1] before the network, and the pixels a side it is shown; None: not said."""
    told: Mapping[str, Any] = {}
    if (folder / "preprocessor_config.json").exists():
        told = _read(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").exists():
        told = _read(folder / "processor_config.json").get("image_processor", {})
    mean, std = family.norm
    if told.get("image_mean") is not None and told.get("image_std") is not None:
        mean, std = told["image_mean"], told["image_std"]
    if told.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # of bytes: the factor is 1/255 nearly everywhere, and then bytes become what we have already
    scale = 255 * float(told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 255.0
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    cropped = told.get("do_center_crop", "crop_size" in told) and told.get("crop_size")
    try:
        normalize = Normalize(tuple(m / scale for m in mean), tuple(s / scale for s in std))
        return normalize, _side(cropped or told.get("size"))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"{folder}/preprocessor_config.json can't be understood ({_short(error)}).") from error


def _side(said: Any) -> int | None:
    """Pixels a side: 224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(said, Mapping):
        said = said.get("shortest_edge") or [said["height"], said["width"]] if said else None
    if isinstance(said, (list, tuple)):
        if len(set(said)) != 1:
            raise ValueError(f"images of {said} pixels are not square")
        said = said[0]
    return None if said is None else int(said)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}: save the network there with save_pretrained.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({_short(error)}).") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} can't be read: it holds no settings.")
    return read


# The hub and its cache ---------------------------------------------------------------------------------------------


def is_hub_name(name: str) -> bool:
    """Whether it could be a network on the hub: facebook/dinov2-small."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def _downloaded(name: str) -> Path:
    """The folder of the cache that holds the network; downloaded if it was not there. Raises UserError."""
    _transformers(name)
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        there = Path(hub.snapshot_download(name, allow_patterns=WANTED, local_files_only=True))
        if (there / "config.json").exists() and any((there / file).exists() for file in WEIGHTS):
            return there
    except Exception:  # not in the cache, or not whole
        pass
    try:
        return Path(hub.snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:
        kind = type(error).__name__
        if kind == "RepositoryNotFoundError":
            raise UserError(f"There is no network {name} on the hub, or it wants a login (hf auth login).") from error
        if kind == "GatedRepoError":
            raise UserError(f"{name} wants its terms accepted on the hub, and a login (hf auth login).") from error
        raise UserError(
            f"{name} is not in the local cache and can't be had from the hub ({_short(error)}): connect, or give a "
            "folder with its config.json and model.safetensors."
        ) from error


def in_cache(name: str) -> bool:
    """Whether the hub's local cache holds the network. Looks at files alone, so that nothing is imported or asked."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    place = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    return all((place / "snapshots" / commit / file).exists() for file in ("config.json", WEIGHTS[0]))


# Which one ---------------------------------------------------------------------------------------------------------

BUILT_IN = "efficientnet-lite0"
# ImageNet's validation photos that a linear classifier on frozen features names right, %, the best first: DINOv2's
# README (ViT-S/14 and ViT-B/14, distilled); EfficientNet-Lite's README, whose network learned with its classifier
LINEAR = {"facebook/dinov2-base": 84.5, "facebook/dinov2-small": 81.1, BUILT_IN: 75.1}
# times as long as EfficientNet-Lite0 for a photo of 224 pixels on a CPU (one core, bfloat16, torch 2.13)
SLOWER = {"facebook/dinov2-base": 35, "facebook/dinov2-small": 10, BUILT_IN: 1}


def best_present(gpu: bool) -> str:
    """What `auto` takes: with a GPU the best network that is in the cache, else the one that comes with Wazuka.

    It downloads nothing. Without a GPU a better network costs ten times the wait or more: that is for the user to say.
    """
    if gpu and is_installed():
        for name in LINEAR:
            if name != BUILT_IN and in_cache(name):
                return name
    return BUILT_IN


def advice(taken: str, gpu: bool) -> str:
    """One line on what a better network would bring and what to type; "" where none is known."""
    better = [name for name, share in LINEAR.items() if share > LINEAR.get(taken, 100)]
    if not better:
        return ""
    name = better[0] if gpu else better[-1]
    install = "" if is_installed() else 'pip install "wazuka[hub]", then '
    cost = "" if gpu else f"; without a GPU it takes about {SLOWER[name] / SLOWER[taken]:.0f} times as long a photo"
    return (f"A better network may be {name}: {LINEAR[name]:.1f} against {LINEAR[taken]:.1f} % top-1 on ImageNet{cost} "
            f"({install}--backbone {name}).")  # fmt: skip


@contextmanager
def _quietly(library: Any) -> Iterator[None]:
    """Without the library's bars and tables about weights that nothing here reads."""
    told = library.utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(logging.CRITICAL)
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _short(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:120].rstrip('.')}" if line else type(error).__name__
