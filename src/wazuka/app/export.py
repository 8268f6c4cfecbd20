"""`wazuka export`: a trained classifier as one ONNX file with its preprocessing inside, checked in ONNX Runtime.

The file takes `images`, uint8 (N, C, H, W) in the run's size and channels, any N, and gives `probabilities`, float32
(N, classes), calibrated where the run's are. Inside are the division by 255, gray to RGB, the resizing to what a
pre-trained network looks at, its normalization, the network and the head on its features, all in float32. (A run that
computes in bfloat16 differs from that by some hundredths where it is unsure, in `wazuka predict` too.)

Outside is left what makes a file an array of that size: decode, turn upright, gray or RGB, and resize with a bicubic
filter that antialiases, as Pillow's does; `fit` of the metadata says how another aspect ratio is met ("squash"
stretches, "crop" cuts the center out, "pad" fills with black). The metadata also hold `classes` (a JSON list, in the
order of the probabilities), `size` (a JSON list, height and width), `channels`, `run` and the version of `wazuka`.
Sets of classes, oddness and abstention stay with `wazuka predict`.

Three things of PyTorch are rewritten, for ONNX has no operator that does the same: antialiased resizing as two matrix
products, Cholesky's factor and triangular systems row by row.
"""

import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wazuka import __version__
from wazuka.app.backbones import Extractor, Pretrained
from wazuka.app.gallery import load_gallery
from wazuka.app.learn import predict
from wazuka.app.model import Model, load
from wazuka.app.runs import Run
from wazuka.app.transfer import FrozenClassifier
from wazuka.atomic import replacing
from wazuka.contract import Head, Method
from wazuka.errors import UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18         # the first with ReduceMean's axes as an input; ONNX Runtime 1.14 of 2023 reads it
TOLERANCE = 1e-3   # of a probability
IMAGES = 1000      # to compare on, at most
BLOCK = 16         # images a pass of the comparison
LONGEST = 4096     # images at once for which the tracer must see one path through the code; the file takes any number
CPU = torch.device("cpu")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Agreement:
    """What ONNX Runtime and PyTorch said of the same images.

    images      how many
    same        of how many they named the same class
    difference  the largest between two probabilities of a class
    """

    images: int
    same: int
    difference: float


def export(
    folder: str | Path, out: str | Path, images: int = IMAGES, progress: Progress = lambda done, total: None
) -> Agreement:
    """Write a finished run as ONNX. Where it does not answer as PyTorch does, `out` stays as it was.

    folder    of the run
    out       a file that ends in .onnx
    images    to compare on: the run's gallery, then mixtures of it and noise
    progress  called with the images compared so far, and all
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'export needs {" and ".join(missing)}: pip install "wazuka[export]"')
    path = Path(out).expanduser()
    if path.suffix != ".onnx" or path.is_dir():
        raise UserError(f"{out} can't be the exported file: give --out a name that ends in .onnx.")
    if images < 1:
        raise UserError(f"It must be compared on one image at least, got {images}.")
    model = load(folder)
    shape = (model.channels, *model.size)
    known = [picture.image for group in load_gallery(model.folder / "gallery.parquet").values() for picture in group]
    known = [pixels for pixels in known if pixels.shape == shape]
    try:
        with replacing(path) as temporary:
            try:
                _write(model, temporary)
                session = _session(temporary)
            except OSError:
                raise
            except Exception as error:  # of the tracer, the translator or the runtime: each has its own
                name = Run(model.folder).read("run.json")["method"]
                raise UserError(
                    f"{name} can't be written in ONNX's operators ({_told(error)}); fit with another --method, such as "
                    "consensus or fixmatch."
                ) from error
            found = compare(session, as_pytorch(model.method), blocks(known, shape, images), images, progress)
            if not found.difference <= TOLERANCE:  # also where it is no number
                raise UserError(
                    f"ONNX Runtime answers otherwise than PyTorch (probabilities differ by {found.difference:.2g}), so "
                    "that no file was written: try other versions of torch and onnxruntime."
                )
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror or error}); give another --out.") from error
    return found


def _write(model: Model, path: Path) -> None:
    graph, sample = graph_of(model), torch.zeros(2, model.channels, *model.size, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("N", min=1, max=LONGEST)}}
    with _quietly(), torch.no_grad():
        try:
            traced = torch.export.export(graph, (sample,), dynamic_shapes=shapes, strict=False)
        except Exception:  # slower, but it understands len(images), as FlowGMM has it
            traced = torch.export.export(graph, (sample,), dynamic_shapes=shapes, strict=True)
        program = torch.onnx.export(
            traced.run_decompositions(WITHOUT_LAPACK), dynamic_shapes=shapes, input_names=["images"],
            output_names=["probabilities"], opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    made = program.model.graph
    for part in (made, *made, *made.inputs, *made.outputs, *made.initializers.values()):
        part.metadata_props.clear()  # notes of the tracer, among them paths of this machine
    program.model.metadata_props.update(
        classes=json.dumps(model.classes, ensure_ascii=False), size=json.dumps(model.size),
        channels=str(model.channels), fit=model.fit, run=model.folder.resolve().name, wazuka=__version__,
    )  # fmt: skip
    program.save(path, external_data=False)


class Graph(nn.Module):
    """uint8 images in, probabilities out: what the file holds."""

    def forward(self, images: Tensor) -> Tensor:
        return self.answers(images.float() / 255).float()

    def answers(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, classes) probabilities."""
        raise NotImplementedError


class TrainedGraph(Graph):
    """Of a method that was trained on images."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def answers(self, images: Tensor) -> Tensor:
        return self.method.predict(images)


class FrozenGraph(Graph):
    """Of a head on the features of a frozen network, at one view of the image or several.

    temperature  that probabilities are calibrated with: p^(1/T), normalized; None: as the head says them
    """

    def __init__(
        self, backbones: list[Pretrained], head: Head, size: tuple[int, int], temperature: float | None = None
    ):
        super().__init__()
        self.views = nn.ModuleList(View(backbone, size) for backbone in backbones)
        self.head, self.temperature = head, temperature

    def answers(self, images: Tensor) -> Tensor:
        probs = self.head.predict(torch.cat([view(images) for view in self.views], dim=1))
        return probs if self.temperature is None else (probs.log() / self.temperature).softmax(dim=1)


class View(nn.Module):
    """A pre-trained network on images of `size`, (height, width): (N, 1 or 3, H, W) float in [0, 1] -> (N, D)."""

    rows: Tensor     # (S, H)
    columns: Tensor  # (W, S)

    def __init__(self, backbone: Pretrained, size: tuple[int, int]):
        super().__init__()
        self.net = copy.deepcopy(backbone.net).to(CPU, torch.float32).eval()
        self.backbone = replace(backbone, net=self.net)
        self.resizes = size != (backbone.size, backbone.size)
        self.register_buffer("rows", resizing(size[0], backbone.size))
        self.register_buffer("columns", resizing(size[1], backbone.size).T.contiguous())

    def forward(self, images: Tensor) -> Tensor:
        if self.resizes:
            images = (self.rows @ images @ self.columns).clamp(0, 1)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return self.backbone.features(images).float()


def resizing(length: int, size: int) -> Tensor:
    """The matrix that brings `length` pixels to `size` as an `Extractor` does: (size, length), rows with sum 1.

    Bicubic resizing with antialiasing is linear, and the same for all rows and for all columns; so its answer to an
    identity matrix is all of it.
    """
    identity = torch.eye(length)[None, None]
    return F.interpolate(identity, (size, length), mode="bicubic", antialias=True)[0, 0]


def graph_of(model: Model) -> Graph:
    """A float32 copy on the CPU of what the model computes, in eval mode."""
    method = model.method
    if not isinstance(method, FrozenClassifier):
        return TrainedGraph(copy.deepcopy(method).to(CPU)).eval()
    temperature = None if method.trust is None else method.trust.temperature
    backbones = [extractor.backbone for extractor in method.extractors]
    return FrozenGraph(backbones, copy.deepcopy(method.head).to(CPU), model.size, temperature).eval()


def as_pytorch(method: Method) -> Method:
    """What a run answers with, in float32 on the CPU: the file is compared with this."""
    if not isinstance(method, FrozenClassifier):
        return copy.deepcopy(method).to(CPU).eval()
    extractors = tuple(Extractor(extractor.backbone, CPU, "float32") for extractor in method.extractors)
    twin = FrozenClassifier(extractors, copy.deepcopy(method.head).to(CPU))
    twin.trust = method.trust
    return twin.eval()


def compare(session: Any, method: Method, images: Iterator[np.ndarray], total: int, progress: Progress) -> Agreement:
    """What an ONNX Runtime session and a method on the CPU say of blocks of images, (n, C, H, W) uint8 each."""
    done, same, difference = 0, 0, 0.0
    for block in images:
        there = session.run(["probabilities"], {"images": block})[0]
        here = predict(method, block, CPU)
        done, same = done + len(block), same + int((there.argmax(axis=1) == here.argmax(axis=1)).sum())
        difference = float(np.maximum(difference, np.abs(there - here).max()))  # which keeps a NaN, unlike max()
        progress(done, total)
    return Agreement(done, same, difference)


def blocks(known: list[np.ndarray], shape: tuple[int, int, int], count: int) -> Iterator[np.ndarray]:
    """`count` images, (C, H, W) uint8, to compare on: one alone first, for the file must take any number of them.

    Those that are known come first. The others are noise of several grains, laid over a known one where there is any.
    """
    generator = np.random.default_rng(0)
    at = 0
    while at < count:
        size = min(BLOCK, count - at) if at else 1
        rows = [known[i] if i < len(known) else _noisy(known, shape, generator) for i in range(at, at + size)]
        yield np.stack(rows)
        at += size


def _noisy(known: list[np.ndarray], shape: tuple[int, int, int], generator: np.random.Generator) -> np.ndarray:
    channels, height, width = shape
    grain = 2 ** int(generator.integers(0, 6))
    noise = generator.integers(0, 256, (channels, -(-height // grain), -(-width // grain)), dtype=np.uint8)
    noise = noise.repeat(grain, axis=1).repeat(grain, axis=2)[:, :height, :width]
    if not known:
        return noise
    share = generator.random()
    return (share * noise + (1 - share) * known[int(generator.integers(len(known)))]).astype(np.uint8)


def cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """`torch.linalg.cholesky` (lower) in products and roots: column by column, for small matrices. (..., D, D)"""
    if upper:
        return NotImplemented
    columns = []
    for k in range(matrix.shape[-1]):
        column = matrix[..., k] / matrix[..., k, k, None].sqrt()
        columns.append(column)
        matrix = matrix - column[..., :, None] * column[..., None, :]  # whose row and column k are 0 but for rounding
    return torch.stack(columns, dim=-1).tril()


def solve_triangular(
    matrix: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """`torch.linalg.solve_triangular` (lower, from the left) in products: (..., D, D), (..., D, K) -> (..., D, K).

    The inverse by forward substitution, row by row, times the right side, which is often far wider.
    """
    if upper or not left or unitriangular:
        return NotImplemented
    rest, rows = torch.eye(matrix.shape[-1], dtype=matrix.dtype).expand_as(matrix), []
    for k in range(matrix.shape[-1]):
        row = rest[..., k, :] / matrix[..., k, k, None]
        rows.append(row)
        rest = rest - matrix[..., :, k, None] * row[..., None, :]
    return torch.stack(rows, dim=-2) @ right


WITHOUT_LAPACK: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.linalg_cholesky.default: cholesky,
    torch.ops.aten.linalg_solve_triangular.default: solve_triangular,
}


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the notes to developers that the tracer and the translator log, warn of and print."""
    before, unread = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(unread), redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:100]}" if lines else type(error).__name__
