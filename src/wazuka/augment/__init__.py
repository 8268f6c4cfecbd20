"""Batched augmentation that runs where the images are, one set of random parameters for each image."""

from wazuka.augment.ctaugment import CTAugment
from wazuka.augment.mixing import cutmix, cutmix_boxes, mixing_weights, mixup
from wazuka.augment.policy import (
    AffineStrong,
    Chain,
    ColorJitter,
    Noise,
    Plain,
    Policy,
    RandomResizedCrop,
    Weak,
)
from wazuka.augment.randaugment import RandAugment

__all__ = [
    "AffineStrong",
    "CTAugment",
    "Chain",
    "ColorJitter",
    "Noise",
    "Plain",
    "Policy",
    "RandAugment",
    "RandomResizedCrop",
    "Weak",
    "cutmix",
    "cutmix_boxes",
    "mixing_weights",
    "mixup",
]
