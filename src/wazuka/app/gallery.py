"""The pictures that a report shows: the surest, the least sure, and the mistakes. Kept with the run as small PNGs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wazuka.atomic import save_atomic
from wazuka.data import ImageSet
from wazuka.errors import UserError

if TYPE_CHECKING:
    from wazuka.app.report import Picture

SHOWN = 24  # of each kind


def save_gallery(
    path: Path, train: ImageSet, guesses: np.ndarray, tested: ImageSet | None, test_probs: np.ndarray | None,
    looks: Sequence[tuple[int, np.ndarray]] = (), odd: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Choose and write the pictures.

    train      what it learned from, with `guesses` (N, C): images without a label are shown by how sure it is
    tested     what its number was measured on, with `test_probs`: its mistakes are shown, the surest first
    looks      positions in `tested` (in `train` without one) and their pictures with what was looked at marked
    odd        positions in `train` of photos that seem to show none of the classes, the oddest first
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    odd = np.zeros(0, np.int64) if odd is None else odd
    rows = np.setdiff1d(train.unlabeled, odd)  # pixels stay where they are: a large set is mapped from the disk
    order = rows[np.argsort(-guesses[rows].max(axis=1, initial=0), kind="stable")]
    chosen = [("surest", train, guesses, order[:SHOWN]), ("unsure", train, guesses, order[SHOWN:][::-1][:SHOWN])]
    if tested is not None and test_probs is not None:
        wrong = np.flatnonzero(test_probs.argmax(axis=1) != tested.labels)
        worst = wrong[np.argsort(-test_probs[wrong].max(axis=1), kind="stable")][:SHOWN]
        chosen.append(("mistakes", tested, test_probs, worst))
    chosen.append(("odd", train, guesses, odd[:SHOWN]))
    marked = dict(looks)
    seen, seen_probs = (tested, test_probs) if tested is not None and test_probs is not None else (train, guesses)
    chosen.append(("looks", seen, seen_probs, np.array(list(marked), np.int64)))
    pictures = []
    for group, images, probs, which in chosen:
        for i in which.tolist():
            guess, label = int(probs[i].argmax()), int(images.labels[i])
            pictures.append(
                {
                    "group": group,
                    "name": str(images.names[i]),
                    "predicted": images.classes[guess],
                    "probability": float(probs[i, guess]),
                    "label": images.classes[label] if label >= 0 else None,
                    "png": _png(marked[i] if group == "looks" else images.images[i]),
                }
            )
    schema = pa.schema(
        [("group", pa.string()), ("name", pa.string()), ("predicted", pa.string()), ("probability", pa.float32()),
         ("label", pa.string()), ("png", pa.binary())]
    )  # fmt: skip
    save_atomic(path, lambda temporary: pq.write_table(pa.Table.from_pylist(pictures, schema=schema), temporary))


def load_gallery(path: Path) -> dict[str, list["Picture"]]:
    """Group -> pictures; empty where the run has none. Raises UserError for a damaged file."""
    import pyarrow.parquet as pq

    from wazuka.app.report import Picture

    groups: dict[str, list[Picture]] = {"surest": [], "unsure": [], "mistakes": [], "looks": [], "odd": []}
    if not path.exists():
        return groups
    try:
        for row in pq.read_table(path).to_pylist():
            group = groups.setdefault(row["group"], [])
            group.append(
                Picture(_pixels(row["png"]), row["name"], row["predicted"], row["probability"], row["label"])
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} can't be read ({error}).") from error
    return groups


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
