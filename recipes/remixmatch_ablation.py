"""ReMixMatch without one of its parts at a time: what each is worth (Berthelot et al. 2020, Sec. 4.3), in minutes.

The paper takes its parts away on CIFAR-10 with 250 labels and 2^20 steps; here the same switches are turned on
Fashion-MNIST (or MNIST, digits) with 40 labels, the network and the short clocks of `wazuka fit`, five seeds, two
strong views for each unlabeled image where the paper has eight. Test accuracy after the last step, averaged weights;
nothing is chosen by it. Each row's difference from the whole method is paired over seeds.

    python recipes/remixmatch_ablation.py fashion_mnist --out results/remixmatch_ablation.json
"""

import argparse
from pathlib import Path

from _results import record

from wazuka.app.compare import compare
from wazuka.evaluation import paired_t

WHOLE = "ReMixMatch"
ROWS = {
    WHOLE: "remixmatch",
    "one strong view": "remixmatch:copies=1",
    "four strong views": "remixmatch:copies=4",
    "no rotation loss": "remixmatch:rotation_weight=0",
    "no pre-mixup loss": "remixmatch:premix_weight=0",
    "no pre-mixup and no rotation loss": "remixmatch:premix_weight=0:rotation_weight=0",
    "no distribution alignment": "remixmatch:alignment=no",
    "squared error on unlabeled images": "remixmatch:unlabeled_loss=squared:unlabeled_weight=75",
    "no sharpening": "remixmatch:temperature=1",
    "weak views instead of anchoring": "remixmatch:anchoring=no",
    "MixMatch": "mixmatch",
    "labels alone": "supervised",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist", "fashion_mnist"])
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.runs / f"remixmatch-{given.data}-{given.labels}-{given.steps}"
    results = compare(given.data, list(ROWS.values()), given.labels, given.seeds, given.steps, folder,
                      {spec: name for name, spec in ROWS.items()})  # fmt: skip
    rows = {name: results["summary"][spec] for name, spec in ROWS.items()}
    for row in rows.values():
        if given.seeds > 1:
            row["over the whole method"] = paired_t(row["values"], rows[WHOLE]["values"]).to_dict()
    if given.out:
        record(given.out, data=given.data, labels=given.labels, rows=rows, methods=ROWS,
               settings={"steps": given.steps, "seeds": given.seeds},
               protocol="test accuracy of the averaged weights after the last step")  # fmt: skip


if __name__ == "__main__":
    main()
