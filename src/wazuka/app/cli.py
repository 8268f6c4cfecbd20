"""The command line. Each command imports what it needs when it runs, so that `wazuka --help` is there at once.

Exit codes: 0 done; 2 the input is wrong, said in one sentence; 130 interrupted, with the command that resumes it.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Group, Parameter

from wazuka import __version__
from wazuka.errors import UserError

app = App(
    name="wazuka",
    version=__version__,
    help="""Image recognition from a few labels.

    Put your photos into a folder, a few of each class into subfolders named after the classes, and run:

        wazuka fit photos
        wazuka predict runs/photos more-photos

    `wazuka demo` shows it in a minute on pictures that come with it.""",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # it is told below
)
data_group = Group("The images", sort_key=1)
training_group = Group("The training", sort_key=2)
output_group = Group("The result", sort_key=3)

Out = Annotated[Path | None, Parameter(group=output_group)]


@app.command
def fit(
    photos: Annotated[str, Parameter(group=data_group)],
    /,
    *,
    labels: Annotated[str | None, Parameter(group=data_group)] = None,
    labels_per_class: Annotated[int | None, Parameter(group=data_group)] = None,
    size: Annotated[int | None, Parameter(group=data_group)] = None,
    fit: Annotated[Literal["auto", "crop", "pad", "squash"], Parameter(group=data_group)] = "auto",
    flip: Annotated[bool | None, Parameter(group=data_group)] = None,
    method: Annotated[str, Parameter(group=training_group)] = "auto",
    backbone: Annotated[str, Parameter(group=training_group)] = "auto",
    teacher: Annotated[str | None, Parameter(group=training_group)] = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", group=training_group, negative="")] = (),
    steps: Annotated[int | None, Parameter(group=training_group)] = None,
    minutes: Annotated[float | None, Parameter(group=training_group)] = None,
    seed: Annotated[int, Parameter(group=training_group)] = 0,
    folds: Annotated[int, Parameter(group=training_group)] = 4,
    floor: Annotated[bool, Parameter(group=training_group)] = True,
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Parameter(group=training_group)] = "auto",
    out: Out = None,
    resume: Annotated[bool, Parameter(group=output_group, negative="")] = False,
) -> None:
    """Learn from a few labels: photos in; a classifier, its accuracy and a report out.

    Examples:

        wazuka fit photos                          subfolders are classes; loose files and unlabeled/ have no label
        wazuka fit photos --labels labels.csv      labels in a table of file,label
        wazuka fit mnist --labels-per-class 4      a public data set, as if it had 4 labels a class

    Interrupt it with Ctrl-C whenever you like: it saves its state and prints the command that goes on.

    Parameters
    ----------
    photos
        A folder, a Parquet file, a .npz file, or the name of a public data set (digits, mnist, cifar10, ...).
    labels
        A CSV file with the columns file,label.
    labels_per_class
        Keep this many labels of each class and hide the others, to see what so few would do.
    size
        Bring images to this many pixels a side. Default: small images keep their size, larger ones become 224, or 64
        to learn from scratch.
    fit
        How another aspect ratio is met: crop the center, pad with black, or squash. Default: squash for a pre-trained
        network, crop to learn from scratch.
    flip
        Whether a mirrored image still is of its class. Default: yes for color photos, no for gray images.
    method
        How to learn; `wazuka methods` lists them. Default: photos by their features in a pre-trained network
        (consensus), small gray images from scratch (fixmatch).
    backbone
        The pre-trained network: efficientnet-lite0, a folder with config.json and model.safetensors, or a name on the
        Hugging Face hub such as facebook/dinov2-small; none to learn from scratch. Default: the best that is present.
    teacher
        The folder of a finished run on the same classes, from which --method distillation learns.
    set_
        Change a setting of the method, e.g. --set threshold=0.9; `wazuka methods NAME` lists them.
    steps
        Length of the training. Default: what suits the images' size.
    minutes
        Length of the training by the clock, measuring its accuracy included.
    seed
        Decides which labels are kept and every random draw; the same seed gives the same run.
    folds
        Without test images the accuracy is measured by cross-validation on the labels, in so many parts; 0: not at all.
    floor
        Learn from the labels alone as well, to see whether the unlabeled photos helped; a quarter more time.
    precision
        auto takes bfloat16 where the processor multiplies in it natively.
    out
        Folder for the result. Default: runs/ and the photos' name.
    resume
        Go on with an interrupted run; needs --out.
    """
    import wazuka.app.job as job
    from wazuka.app.console import clock, share, showing_progress, span
    from wazuka.app.floor import sentence
    from wazuka.app.learn import Watch, stopping_on_signals

    if resume and out is None:
        raise UserError("--resume needs --out with the folder of the run to go on with.")
    with showing_progress() as console, stopping_on_signals() as stop:
        model = job.fit(
            photos, labels, labels_per_class=labels_per_class, seed=seed, method=method, backbone=backbone,
            teacher=teacher, settings=_settings(set_), steps=steps, minutes=minutes, size=size, fit=fit, flip=flip,
            folds=folds, floor=floor, precision=precision, out=out, resume=resume, watch=Watch(console.step, stop),
            opening=console.opening,
        )  # fmt: skip
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        return
    metrics, folder = model.metrics, model.folder
    print(f"Learned {len(model.classes)} classes from {metrics['n_labeled']:,} labels and {metrics['n_unlabeled']:,} "
          f"images without, in {clock(metrics['seconds'])} of training.")  # fmt: skip
    if metrics["test_accuracy"] is None:
        print(f"Its accuracy was measured {metrics['protocol']}.")
    else:
        print(f"Accuracy {share(metrics['test_accuracy'])} (95 % interval {span(*metrics['test_accuracy_interval'])}), "
              f"measured {metrics['protocol']}.")  # fmt: skip
    others = metrics.get("others", {})
    if others.get("at_least", 0) > 0:
        print(f"{others['told']} {others['done']}")
    if "estimate" in metrics:
        told = metrics["estimate"]
        which = "the other" if others.get("done") else f"your {metrics['n_unlabeled']:,}"
        print(f"Expected on {which} unlabeled images: {share(told['value'])} right "
              f"({100 * told['level']:.0f} % interval {span(told['low'], told['high'])}), as far as the labels tell.")
    network = _network(folder, backbone)
    if network:
        print(network)
    if "unlabeled" in metrics:
        print(sentence(metrics["unlabeled"], metrics.get("n_learned_from", metrics["n_unlabeled"])))
    skipped = _count_skipped(folder)
    if skipped:
        print(f"{skipped} files could not be read; the report names them.")
    print(f"Report: {folder / 'report.html'}")
    print(f"Use it: wazuka predict {folder} PHOTOS")


@app.command
def predict(
    run: Path,
    /,
    *photos: Annotated[str, Parameter(allow_leading_hyphen=True)],  # of "-"
    out: Out = None,
    format_: Annotated[Literal["csv", "jsonl"] | None, Parameter(name="--format", group=output_group)] = None,
    max_error: Annotated[str | None, Parameter(group=output_group)] = None,
) -> None:
    """Name photos with a trained classifier: a table of file,label,probability,runner_up,runner_up_probability,note.

    A file that can't be read keeps its row: no label, and the reason in the column `note`.

    Examples:

        wazuka predict runs/leaves more-photos --out named.csv
        wazuka predict runs/leaves monday "2024/**/*.png" --out named.parquet
        find . -name "*.jpg" -print0 | wazuka predict runs/leaves - --format jsonl

    Parameters
    ----------
    run
        The folder that `wazuka fit` made.
    photos
        A folder, or anything else that fit takes; or several folders, files and patterns in quotes. - reads file names
        from standard input, one a line or each with a NUL after it.
    out
        A file that ends in .csv, .jsonl, .ndjson or .parquet. Default: standard output.
    format_
        What standard output gets: csv (the default) or jsonl, an object a line.
    max_error
        The share of wrong answers you can live with, e.g. 5%: answers less sure than that allows are `abstained`.
    """
    from wazuka.app.console import showing_progress
    from wazuka.app.model import load
    from wazuka.app.tables import LINES, format_of, write_predictions
    from wazuka.data.gather import names_in

    if not photos:
        raise UserError("predict needs photos after the run: a folder, or image files.")
    for word in photos:
        if word.startswith("-") and word != "-" and not os.path.lexists(word):
            raise UserError(f"predict has no option {word}; `wazuka predict --help` lists them.")
    if out is not None:
        format_of(out)  # before the work
        if format_ is not None:
            raise UserError("--format is for standard output; of a file, the ending of --out says the format.")
    allowed = None if max_error is None else _share(max_error)
    model, listed = load(run), []
    if "-" in photos:
        listed = names_in(sys.stdin.buffer.read() if sys.stdin else b"")
        if not listed:
            raise UserError("standard input holds no file name: give one a line.")
    given = tuple(word for word in photos if word != "-")
    with showing_progress() as console:
        images = model.open(given[0] if len(given) == 1 else given, listed, progress=console.opening)
        answers = model.named(images, lambda done, total: console.step("naming images", done, total), allowed)
        if out is None:
            for line in LINES[format_ or "csv"](answers, images.skipped):
                # Bytes, for a Windows console's own encoding lacks most of the letters that file names have.
                sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()  # here, where a reader that has gone is met, and not when Python ends
            return
        write_predictions(answers, images.skipped, out)
    left_out = f", {len(images.skipped)} unreadable" if images.skipped else ""
    print(f"{len(images):,} photos named{left_out}: {out}", file=sys.stderr)


@app.command
def demo(
    name: Literal["digits", "textiles"] = "digits",
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for the run. Default: runs/demo, or runs/demo-2, ...")] = None,
    seed: Annotated[int, Parameter(help="Decides which labels are kept.")] = 0,
) -> None:
    """See it work in a minute: 1,797 scanned digits, 40 labels, 500 held out for testing.

    `wazuka demo textiles`: 2,000 photos of cloth with and without faults, 30 labels (pip install "wazuka[examples]").
    """
    from wazuka.app.demo import demo as run_demo

    run_demo(out, seed, name)


@app.command
def compare(
    data: str,
    /,
    *,
    methods: Annotated[str | None, Parameter(help="Names, with commas between; `wazuka methods` lists them.")] = None,
    labels: Annotated[int, Parameter(help="Labels in all, the same number for each class.")] = 40,
    seeds: Annotated[int, Parameter(help="How many seeds: each draws its own labels.")] = 5,
    steps: Annotated[int | None, Parameter(help="Of each training. Default: what suits the images' size.")] = None,
    backbone: Annotated[str, Parameter(help="The pre-trained network of methods that learn on features.")] = "auto",
    odd: Annotated[str | None, Parameter(help="Images of something else: compare detectors, not methods.")] = None,
    detectors: Annotated[str, Parameter(help="With --odd: names, with commas between. Default: all that fit.")] = "",
    fitted_on: Annotated[
        Literal["labeled", "pool"], Parameter(help="With --odd: which images detectors learn from.")
    ] = "labeled",
    out: Annotated[Path | None, Parameter(help="Folder of the results. Default: runs/compare-DATA.")] = None,
) -> None:
    """Compare methods on the same images, labels, network and budget: a table with intervals, and a plot.

    Or, with --odd, compare what tells images of DATA from images of something else, by the same trained network:

        wazuka compare fashion_mnist --odd mnist --methods supervised --labels 1000

    Finished trainings are kept: the same command goes on where it was interrupted.
    """
    named = tuple(name.strip() for name in (methods or "").split(",") if name.strip())
    if odd is not None:
        from wazuka.app.compare_detectors import compare_detectors

        if len(named) > 1:
            raise UserError(f"Detectors are compared on one method's network, got {len(named)} --methods.")
        asked = tuple(name.strip() for name in detectors.split(",") if name.strip())
        method = named[0] if named else "auto"
        compare_detectors(data, odd, asked, labels, seeds, steps, out, method, backbone, fitted_on)
        return
    if detectors:
        raise UserError("--detectors are compared by images of something else; say where they are with --odd.")
    from wazuka.app.compare import compare as run_compare

    run_compare(data, named, labels, seeds, steps, out, backbone=backbone)


@app.command
def export(
    run: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(group=output_group)] = None,
    images: Annotated[int, Parameter(group=output_group)] = 1000,
) -> None:
    """Write a trained classifier as one ONNX file that other programs run, checked against PyTorch first.

    It takes `images`, uint8 (N, channels, height, width) in the run's size, and gives `probabilities`, float32
    (N, classes): dividing by 255, resizing to the network's own size and normalizing are inside. Its metadata hold the
    class names, the size, the channels, and how photos are brought to that size. It computes in float32, where
    `wazuka predict` may compute in bfloat16. Needs: pip install "wazuka[export]".

    Parameters
    ----------
    run
        The folder that `wazuka fit` made.
    out
        A file that ends in .onnx. Default: model.onnx in the run.
    images
        How many to compare ONNX Runtime with PyTorch on: the run's gallery, then mixtures of it and noise.
    """
    from wazuka.app.console import showing_progress
    from wazuka.app.export import export as write

    out = out if out is not None else run / "model.onnx"
    with showing_progress() as console:
        found = write(run, out, images, lambda done, total: console.step("comparing with PyTorch", done, total))
    print(f"Of {found.images:,} images ONNX Runtime names {found.same:,} as PyTorch does in float32; probabilities "
          f"differ by {found.difference:.1g} at most.")  # fmt: skip
    print(f"Exported: {out} ({out.stat().st_size / 2**20:.1f} MiB)")


@app.command
def report(run: Path, /) -> None:
    """Write a run's report again, from the files of the run alone, and print its path."""
    from wazuka.app.reporting import write_report
    from wazuka.app.runs import open_run

    opened = open_run(run)
    try:
        path = write_report(opened)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"The files of {run} lack what a report needs ({type(error).__name__}: {error}); "
                        "fit it again.") from error  # fmt: skip
    print(path)


@app.command
def methods(name: str | None = None, /) -> None:
    """List the methods, or one method's settings with their defaults."""
    from wazuka.app.listing import print_method, print_methods

    print_methods() if name is None else print_method(name)


@app.command
def doctor() -> None:
    """Say what this machine offers: versions, device, threads, precision, caches, data, and what is missing."""
    from wazuka.app.doctor import print_checkup

    print_checkup()


def _settings(given: tuple[str, ...]) -> dict[str, Any]:
    settings = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes NAME=VALUE, got {item!r}.")
        settings[name] = value
    return settings


def _share(typed: str) -> float:
    """5%, 5 % or 0.05 as a number."""
    words = typed.strip()
    try:
        return float(words.removesuffix("%")) / 100 if words.endswith("%") else float(words)
    except ValueError:
        raise UserError(f"--max-error takes a share such as 5% or 0.05, got {typed!r}.") from None


def _network(folder: Path, asked: str) -> str:
    """Which pre-trained network was taken, and what a better one would bring; "" where the user named it."""
    from wazuka.app.hub import advice
    from wazuka.app.runs import Run

    taken = Run(folder).read("run.json").get("backbone") if asked == "auto" else None
    if taken is None:
        return ""
    import torch

    return f"Network: {taken}. {advice(taken, torch.cuda.is_available())}".rstrip()


def _count_skipped(folder: Path) -> int:
    from wazuka.app.runs import Run

    return len(Run(folder).read("run.json")["skipped"])


def main(arguments: list[str] | None = None) -> None:
    """The `wazuka` command."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except UserError as error:
        _fail(str(error))
    except cyclopts.CycloptsError as error:
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt as stop:
        hint = f" at once. Go on from what was saved last with:\n  {stop}" if str(stop) else "."
        print(f"Interrupted{hint}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `wazuka predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of the rest at its end
        sys.exit(0)
    except Exception as error:
        if type(error).__name__ != "Interrupted":  # its class would cost the import of torch
            raise
        print(f"Interrupted; the state is saved. Go on with:\n  {error}", file=sys.stderr)
        sys.exit(130)


def _fail(sentence: str) -> None:
    print(f"wazuka: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
