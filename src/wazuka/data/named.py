"""Public data sets by name: the embedded digits, a local folder ($WAZUKA_DATA), or the Hugging Face hub."""

import difflib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wazuka.data.cache import Pack, Source, cache_folder, find_pack, open_pack
from wazuka.data.decode import Shape
from wazuka.data.folder import open_folder, split_off
from wazuka.data.imageset import Dataset, ImageSet, Skipped
from wazuka.data.listing import list_folder
from wazuka.data.pack import Progress
from wazuka.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# name -> (repository on the Hugging Face hub, configuration, label column)
HUB: dict[str, tuple[str, str | None, str | None]] = {
    "mnist": ("ylecun/mnist", None, "label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None, "label"),
    "cifar10": ("uoft-cs/cifar10", None, "label"),
    "cifar100": ("uoft-cs/cifar100", None, "fine_label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "label"),
    "usps": ("flwrlabs/usps", None, "label"),
    "pacs": ("flwrlabs/pacs", None, "label"),
    "tiny_imagenet": ("zh-plus/tiny-imagenet", None, "label"),
}
_DIGITS_TEST = 500
# name -> (package that holds it as a folder of photos, the folder in it, the extra that installs the package)
PACKAGED = {"textiles": ("conformal_clip_data", "data/textile_images/simulated", "examples")}


def digits() -> Dataset:
    """scikit-learn's digits: 1,797 real 8x8 scans; a fixed draw of 500 is the test set, the other 1,297 train.

    The scans have 17 gray levels, 0...16, here spread over 0...255.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.RandomState(0).permutation(len(images))  # frozen by numpy: the same split for ever
    test, train = np.sort(order[:_DIGITS_TEST]), np.sort(order[_DIGITS_TEST:])
    everything = ImageSet(
        images=images,
        labels=bunch.target.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
        names=tuple(f"digit-{i:04d}" for i in range(len(images))),
        fingerprint="scikit-learn-digits",
    )
    return Dataset("digits", "scikit-learn", everything.subset(train), everything.subset(test))


def data_folder() -> Path | None:
    """The folder of public data sets that $WAZUKA_DATA names, if it is there."""
    named = os.environ.get("WAZUKA_DATA")
    folder = Path(named).expanduser() if named else None
    return folder if folder is not None and folder.is_dir() else None


def known_names() -> list[str]:
    """Every name that `open_named` may take on this machine, sorted."""
    folder = data_folder()
    local = [path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.parquet"))] if folder else []
    return sorted({"digits", *PACKAGED, *HUB, *local})


def is_named(source: str) -> bool:
    """Whether `source` is a known set's name, alone or with a split: "mnist", "pacs/photo"."""
    return _parted(source)[0] in known_names()


def open_named(
    source: str, shape: Shape, cache: str | Path | bool | None = None, progress: Progress | None = None
) -> Dataset:
    """Open a public set by name; "NAME/SPLIT" takes one split of it (a domain of pacs, say) as the training images."""
    name, split = _parted(source)
    if name == "digits" and split is None:
        return reshaped(digits(), shape)
    folder = data_folder()
    if folder is not None and (folder / name).is_dir():
        return open_parquet(folder / name, shape, cache, progress, split=split, name=source)
    if name in PACKAGED and split is None:
        return _open_packaged(name, shape, cache, progress)
    if name not in HUB:
        raise _unknown(source)
    return _open_hub(name, split, shape, cache, progress)


def _open_packaged(name: str, shape: Shape, cache: str | Path | bool | None, progress: Progress | None) -> Dataset:
    """A folder of photos inside an installed package, whose code is not run."""
    package, inside, extra = PACKAGED[name]
    found = importlib.util.find_spec(package)
    places = [Path(place) / inside for place in (found.submodule_search_locations or ())] if found else []
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise UserError(f"{name} is not on this machine: pip install 'wazuka[{extra}]'")
    data = open_folder(folder, list_folder(folder), None, shape, cache, progress, True)
    return replace(data, name=name)


def open_parquet(
    path: Path,
    shape: Shape,
    cache: str | Path | bool | None = None,
    progress: Progress | None = None,
    *,
    split: str | None = None,
    label: str | None = None,
    name: str | None = None,
) -> Dataset:
    """Open a Parquet file or folder; with `split`, only that one."""
    from wazuka.data.parquet import find_shards, parquet_source

    shards = find_shards(path)
    if not shards:
        raise UserError(f"{path} holds no Parquet file")
    title = name or path.stem
    shards, notes = _chosen(shards, split, title)
    source = parquet_source(shards, f"parquet {path.resolve()} {sorted(shards)}", label)
    return _dataset(open_pack(source, shape, cache, progress), title, str(path), notes)


def reshaped(data: Dataset, shape: Shape) -> Dataset:
    """Arrays brought to `shape`: the rule for files, applied to pictures that never were any."""
    from dataclasses import replace

    from wazuka.data.decode import resize

    def fit(images: ImageSet) -> ImageSet:
        if shape.size is not None and images.size != shape.size:
            images = replace(
                images,
                images=np.stack([resize(pixels, shape) for pixels in images.images]),
                fingerprint=f"{images.fingerprint} at {shape.size} {shape.fit}",
            )
        return images if shape.channels is None else images.with_channels(shape.channels)

    return replace(data, train=fit(data.train), test=fit(data.test) if data.test is not None else None)


def _dataset(pack: Pack | list[Skipped], name: str, source: str, notes: tuple[str, ...] = ()) -> Dataset:
    """A pack whose rows lie split after split -> Dataset."""
    if isinstance(pack, list):
        if not pack:
            raise UserError(f"{source} holds no image")
        raise UserError(f"none of the {len(pack)} images of {name} could be read; {pack[0].name}: {pack[0].reason}")
    facts, columns = pack.table.facts, pack.table.columns
    everything = ImageSet(
        images=pack.images,
        labels=columns.get("label", np.full(len(pack.images), -1)),
        classes=tuple(facts["classes"]),
        names=pack.names,
        skipped=pack.skipped,
        notes=pack.notes + notes,
        fingerprint=pack.fingerprint,
        extras={key.removeprefix("extra:"): values for key, values in columns.items() if key != "label"},
    )
    if list(facts["splits"]) == ["train", "test"]:
        return split_off(everything, np.arange(len(everything)) >= facts["splits"]["train"], name, source)
    return Dataset(name, source, everything)


def _chosen(splits: dict[str, Any], wanted: str | None, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The splits to open, in order, and notes: the wanted one; or train and test (else val); or, without train, all."""
    if wanted is not None:
        if wanted not in splits:
            raise UserError(f"{name} has no split {wanted}; it has {', '.join(sorted(splits))}")
        return {wanted: splits[wanted]}, ()
    if "train" not in splits:
        return dict(sorted(splits.items())), ()
    test = next((split for split in ("test", "val") if split in splits), None)
    rest = sorted(splits.keys() - {"train", test})
    notes = tuple(f"the split {split} was left out: it is neither train nor test" for split in rest)
    return {"train": splits["train"]} | ({"test": splits[test]} if test is not None else {}), notes


def _open_hub(
    name: str, split: str | None, shape: Shape, cache: str | Path | bool | None, progress: Progress | None
) -> Dataset:
    """Through the `datasets` library, which downloads once; afterwards our own cache answers without it."""
    repository, configuration, label = HUB[name]
    place, stamp = f"hub {repository} {configuration} split={split} labels={label}", "hub"
    title = f"{name}/{split}" if split else name
    if cache is not False:
        found = find_pack(place, stamp, shape, cache_folder(cache))
        if found is not None:
            return _dataset(found, title, f"hub {repository}")
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"{name} is not on this machine: set WAZUKA_DATA to a folder that holds {name}/*.parquet, "
            "or install the extra that downloads it with pip install 'wazuka[hub]'"
        )
    import datasets

    from wazuka.data.parquet import split_name

    try:
        loaded = datasets.load_dataset(repository, configuration)
    except Exception as error:  # no network, a proxy, a gone repository: the library raises all sorts
        raise UserError(
            f"{name} could not be fetched from the Hugging Face hub ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): set WAZUKA_DATA to a folder that holds {name}/*.parquet"
        ) from None
    splits, _ = _chosen({split_name(str(key)): rows for key, rows in loaded.items()}, split, name)
    source = hub_source(splits, place, stamp, label)
    return _dataset(open_pack(source, shape, cache, progress), title, f"hub {repository}")


def hub_source(splits: dict[str, Any], place: str, stamp: str, label: str | None) -> Source:
    """Splits of the `datasets` library -> a source; pictures are taken encoded, as they are stored."""
    import json
    from dataclasses import replace

    from wazuka.data.parquet import Shard, shards_source

    def shard(split: str, rows: Any) -> Shard:
        arrow = rows.with_format("arrow")
        metadata = rows.features.arrow_schema.metadata[b"huggingface"]

        def batches(columns: list[str]) -> "Iterator[pa.Table]":
            yield from arrow.select_columns(columns).iter(batch_size=256)

        def heads(columns: list[str]) -> "Iterator[pa.Table]":
            for row in range(0, len(rows), max(1, len(rows) // 64)):
                yield arrow.select_columns(columns)[row : row + 1]

        return Shard(
            split, len(rows), json.loads(metadata)["info"]["features"], rows.features.arrow_schema, batches, heads
        )

    shards = [shard(split, rows) for split, rows in splits.items()]
    return replace(shards_source(shards, place, stamp, label), place=place)


def _parted(source: str) -> tuple[str, str | None]:
    name, _, split = source.replace("-", "_").lower().partition("/")
    return name, split or None


def _unknown(source: str) -> UserError:
    close = difflib.get_close_matches(source.lower(), known_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names are {', '.join(known_names())}"
    return UserError(f"there is no folder, file or data set named {source}: {hint}")
