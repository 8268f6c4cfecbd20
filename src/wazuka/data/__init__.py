"""Pictures in -> one packed ImageSet -> few-label draws -> batches.

Importing this loads numpy and Pillow, but no torch: batches of tensors are made in `wazuka.data.streams`.
"""

from wazuka.data.draws import Draw, draw_from_json, draw_labels, draw_to_json, folds, holdout, make_draw
from wazuka.data.duplicates import Duplicate, describe_duplicates, find_duplicates
from wazuka.data.imageset import UNLABELED, Dataset, ImageSet, Skipped, require_labels
from wazuka.data.named import known_names
from wazuka.data.opening import open_images

__all__ = [
    "UNLABELED",
    "Dataset",
    "Draw",
    "Duplicate",
    "ImageSet",
    "Skipped",
    "describe_duplicates",
    "draw_from_json",
    "draw_labels",
    "draw_to_json",
    "find_duplicates",
    "folds",
    "holdout",
    "known_names",
    "make_draw",
    "open_images",
    "require_labels",
]
