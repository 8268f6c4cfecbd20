"""Grad-CAM: where in an image the evidence for a class lies.

Selvaraju et al. 2017, arXiv:1610.02391. Equation numbers are the paper's. On a network whose last maps are averaged
and then classified linearly it equals CAM (Zhou et al. 2016, arXiv:1512.04150) up to a factor.
Differs from it: each map is divided by its own maximum, for display. `look` is given probabilities, which tell logits
up to a constant only; the score is the logit minus the mean of all logits, which they do tell, and which unlike
log p doesn't lose its gradient where the classifier is sure. Where the weights sum to 0 over the classes, as those of
a logistic regression with weight decay do, it is the logit itself.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka.contract import Head
from wazuka.nets import Backbone

BATCH = 32          # images in one pass
STRENGTH = 0.60     # how far the color covers the photo where the evidence is strongest
DARKEST = 0.30      # where on the color map the least evidence starts: below, inferno is black and hides the photo
BRIGHTEST = 0.85    # and where it ends: above, it is nearly white
DIM = 0.60          # how bright the gray photo stays where there is no evidence


def grad_cam(maps: Tensor, score: Tensor) -> Tensor:
    """How much each place of the maps speaks for the score (Eq. 1 and 2), over the image's maximum.

    maps     (N, K, h, w)  a layer's output, which the scores were computed from; requires grad
    score    (N,)          what speaks for the class, before any softmax; score n depends on maps n alone
    returns  (N, h, w)     in [0, 1]: 1 at the strongest place; all 0 where nothing speaks for the class
    """
    (gradient,) = torch.autograd.grad(score.sum(), maps)
    weights = gradient.float().mean(dim=(2, 3))                                   # Eq. 1, alpha
    evidence = torch.einsum("nk,nkhw->nhw", weights, maps.detach().float()).relu()  # Eq. 2
    most = evidence.amax(dim=(1, 2), keepdim=True)
    return evidence / torch.where(most > 0, most, torch.ones_like(most))


def centered_logit(probs: Tensor, classes: Tensor) -> Tensor:
    """The logit of each image's class minus the mean of its logits, as far as probabilities tell it.

    probs    (N, C)  a classifier's probabilities; one that is 0 counts as the least float32 and has no gradient
    classes  (N,)    int64 in [0, C)
    returns  (N,)    nats
    """
    logs = probs.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    return logs.gather(1, classes[:, None])[:, 0] - logs.mean(dim=1)


def look(
    net: nn.Module,
    classify: Head | Callable[[Tensor], Tensor],
    images: Tensor,
    classes: Tensor,
    layer: str | None = None,
) -> Tensor:
    """Where a network finds each image's class.

    net       a Backbone whose features are the mean of its `maps(images)`; with `layer`, any module
    classify  a Head, or any differentiable function of the features (N, D) -> (N, C) probabilities. For a module that
              is no Backbone the features are whatever it returns
    images    (N, C, H, W), uint8, or float in [0, 1]. Larger images give finer maps: EfficientNet-Lite0 has a place for
              every 32 x 32 pixels, which at 128 pixels makes 4 x 4 and is coarse
    classes   (N,)  positions of the classes to look for, one an image
    layer     name of the submodule whose output (N, K, h, w) is looked at; it must run once
    returns   (N, h, w)  in [0, 1], float32 on the host; see `grad_cam`

    The network is in eval mode meanwhile. Its modes are restored and its hooks are gone when it returns, also after an
    error; gradients of its parameters are neither made nor touched.
    """
    if layer is None and not hasattr(net, "maps"):
        raise ValueError(f"{type(net).__name__} has no maps(): name the layer to look at")
    if layer is not None and layer not in dict(net.named_modules()):
        raise ValueError(f"{type(net).__name__} has no layer {layer!r}")
    if len(images) != len(classes):
        raise ValueError(f"there must be one class an image, got {len(classes)} classes for {len(images)} images")
    answer = classify.predict if isinstance(classify, Head) else classify
    example = next(net.parameters(), torch.zeros(()))
    modes = {module: module.training for module in net.modules()}
    seen = [torch.zeros(0, 1, 1)]
    try:
        net.eval()
        with torch.inference_mode(False), torch.enable_grad():
            for some, wanted in zip(images.split(BATCH), classes.split(BATCH), strict=True):
                pixels = some.to(example.device, example.dtype, copy=True)  # a copy: inference tensors take no gradient
                pixels = pixels / 255 if some.dtype == torch.uint8 else pixels
                maps, features = _pooled(net, pixels) if layer is None else _hooked(net, pixels, layer)
                score = centered_logit(answer(features), wanted.to(example.device, torch.int64, copy=True))
                if not score.requires_grad:
                    raise ValueError("classify gives probabilities without gradient: Grad-CAM can't look through it")
                seen.append(grad_cam(maps, score).cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.cat(seen[1:] or seen)


def _pooled(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        maps = net.maps(images).float()  # type: ignore[operator]
    maps.requires_grad_()
    return maps, maps.mean(dim=(2, 3))


def _hooked(net: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    taken: list[Tensor] = []

    def take(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[-1].clone()  # a later in-place layer may write on the copy, never on the maps

    hook = net.get_submodule(layer).register_forward_hook(take)
    try:
        features = net.features(images) if isinstance(net, Backbone) else net(images)
    finally:
        hook.remove()
    if len(taken) != 1:
        raise ValueError(f"layer {layer!r} ran {len(taken)} times in one pass: Grad-CAM needs one that runs once")
    if taken[0].ndim != 4:
        raise ValueError(f"layer {layer!r} gives {tuple(taken[0].shape)}, not maps (N, K, h, w)")
    return taken[0], features.float()


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """The photo with the evidence laid over it: gray and dim where there is none, warm where there is.

    image    (3, H, W)  uint8; or (1, H, W), gray
    heat     (h, w)     in [0, 1], from `grad_cam`
    returns  (3, H, W)  uint8
    """
    from matplotlib import colormaps  # here: it takes long to import, and only reports need it

    photo = image.expand(3, -1, -1).float() / 255
    gray = (photo * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0).expand(3, -1, -1)
    weight = F.interpolate(heat[None, None].float(), size=photo.shape[1:], mode="bilinear", align_corners=False)[0]
    warm = colormaps["inferno"](DARKEST + (BRIGHTEST - DARKEST) * weight[0].numpy())[..., :3]
    color = torch.from_numpy(warm).float().permute(2, 0, 1)
    lit = torch.lerp(DIM * gray, photo, weight)
    return (torch.lerp(lit, color, STRENGTH * weight) * 255).round().clamp(0, 255).to(torch.uint8)
