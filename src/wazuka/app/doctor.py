"""`wazuka doctor`: what this machine offers, and what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

from wazuka import __version__
from wazuka.app.console import table


def print_checkup() -> None:
    """One table; the last column says how to mend what is missing."""
    import torch

    from wazuka.training.processes import fast_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [["Wazuka", __version__, ""], ["Python", platform.python_version(), ""]]
    for package in ("torch", "numpy", "pillow", "pyarrow", "scikit-learn", "safetensors", "lightning-fabric"):
        rows.append([package, importlib.metadata.version(package), ""])
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else f"CPU, {platform.machine()}"
    rows.append(["device", name, "" if device.type == "cuda" else "no GPU: photos up to 64 pixels train well without"])
    rows.append(["threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors", ""])
    rows.append(["precision", str(fast_precision(device)).removeprefix("torch."), "weights stay float32"])
    rows += [_cache_row(), _data_row()]
    hub = importlib.util.find_spec("datasets") is not None
    rows.append(["datasets (extra hub)", "there" if hub else "missing", "" if hub else 'pip install "wazuka[hub]"'])
    table("This machine", ["what", "found", "note"], rows, numbers=False)


def _cache_row() -> list[str]:
    from wazuka.data.cache import cache_folder

    folder = cache_folder(None)
    there = folder
    while not there.exists():
        there = there.parent
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    note = "" if writable else "can't be written: set WAZUKA_CACHE to a folder that can"
    return ["cache", f"{folder}: {used / 2**20:,.0f} MiB used, {free / 2**30:,.0f} GiB free", note]


def _data_row() -> list[str]:
    folder = os.environ.get("WAZUKA_DATA")
    if not folder:
        return ["public sets", "digits", "more: set WAZUKA_DATA to a folder of Parquet sets"]
    if not Path(folder).is_dir():
        return ["public sets", "digits", f"WAZUKA_DATA names {folder}, which is not there"]
    from wazuka.data import known_names

    return ["public sets", ", ".join(known_names()), ""]
