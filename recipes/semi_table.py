"""All semi-supervised methods beside each other: MNIST and Fashion-MNIST with 40, 100 and 250 labels, five seeds.

One network (what `wazuka fit` takes for images of that size), one budget (as many steps with as many labeled and
unlabeled images each), one optimizer; everything else is each method's own, its clocks shortened with the run as the
plan says. So small a budget is no contest of what each method can do with the papers' million steps; it shows what a
minute buys. Test accuracy after the last step, averaged weights; nothing is chosen by it. Each set and number of labels
is one `wazuka compare`, in --runs, so an interrupted table goes on where it stopped, and has its plot there.

    python recipes/semi_table.py mnist --out results/semi_mnist.json
    python recipes/semi_table.py fashion_mnist --out results/semi_fashion_mnist.json

The rows `+ NS3L` add negative sampling to the method above them. MixMatch and ReMixMatch send each unlabeled image
through the network in two views (two strong ones beside the weak), not in the paper's eight.
"""

import argparse
from pathlib import Path
from typing import Any

from _results import record

from wazuka.app.compare import compare
from wazuka.evaluation import paired_t

METHODS = {
    "supervised, weak views": "supervised:view=weak",
    "supervised, strong views": "supervised",
    "Pseudo-Label": "pseudo_label",
    "Pseudo-Label + NS3L": "pseudo_label:negative_weight=1",
    "Pi-model": "pi_model",
    "Mean Teacher": "mean_teacher",
    "VAT + entropy": "vat",
    "VAT + NS3L": "vat:negative_weight=1:entropy_weight=0",
    "NS3L, strong views": "ns3l:learn_view=strong",
    "MixUp": "mixup",
    "MixMatch": "mixmatch",
    "MixMatch + NS3L": "mixmatch:negative_weight=1",
    "ReMixMatch": "remixmatch",
    "FixMatch, the paper's guesses": "fixmatch:threshold=0.95:temperature=0:guesser=live:alignment=no",
    "FixMatch, as fit plans it": "fixmatch",
    "FlexMatch": "flexmatch",
    "FreeMatch": "freematch",
    "SoftMatch": "softmatch",
}
FLOOR = "supervised, strong views"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist", "fashion_mnist"])
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100, 250])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--ratio", type=int, default=3, help="unlabeled images for each labeled one")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    specs = {
        name: spec if spec.startswith("supervised") else f"{spec}:unlabeled_ratio={given.ratio}"
        for name, spec in METHODS.items()
    }
    found: dict[str, Any] = {}
    for labels in given.labels:
        folder = given.runs / f"semi-{given.data}-{labels}-{given.steps}-{given.ratio}"
        results = compare(given.data, list(specs.values()), labels, given.seeds, given.steps, folder,
                          {spec: name for name, spec in specs.items()})  # fmt: skip
        rows = {name: results["summary"][spec] for name, spec in specs.items()}
        for row in rows.values():
            if given.seeds > 1:
                row["over the floor"] = paired_t(row["values"], rows[FLOOR]["values"]).to_dict()
        seconds = {
            name: sum(run["seconds"] for run in results["runs"] if run["method"] == spec) / given.seeds
            for name, spec in specs.items()
        }
        found[str(labels)] = {name: {**row, "seconds": round(seconds[name], 1)} for name, row in rows.items()}
        if given.out:
            record(given.out, data=given.data, found=found, methods=specs,
                   settings={"steps": given.steps, "unlabeled_ratio": given.ratio, "seeds": given.seeds},
                   protocol="test accuracy of the averaged weights after the last step")  # fmt: skip


if __name__ == "__main__":
    main()
