import json

import numpy as np
import pytest

import wazuka
from tests.app.stripes import striped_file
from wazuka.app.floor import guessed_shares, judge, sentence, uneven
from wazuka.app.learn import Interrupted, Learner, Watch

QUICK = {"settings": {"labeled_batch": 4, "unlabeled_ratio": 1}, "precision": "float32"}


def answers(right: list[int]) -> np.ndarray:
    """Probabilities of two classes; the truth is 0, and `right` says who sees it."""
    named = np.asarray(right, np.float32)
    return np.stack([named, 1 - named], axis=1)


TRUTH = np.zeros(8, np.int64)
MOST, HALF = answers([1, 1, 1, 1, 1, 1, 1, 0]), answers([1, 1, 1, 1, 0, 0, 0, 1])


def test_the_better_one_stays_and_a_tie_is_no_reason() -> None:
    assert judge(HALF, MOST, TRUTH, chooses=True).floor_stays
    assert not judge(MOST, HALF, TRUTH, chooses=True).floor_stays
    assert not judge(MOST, answers([0, 1, 1, 1, 1, 1, 1, 1]), TRUTH, chooses=True).floor_stays


def test_test_images_never_choose() -> None:
    assert not judge(HALF, MOST, TRUTH, chooses=False).floor_stays


def test_it_counts_who_is_right_where_the_other_is_not() -> None:
    told = judge(MOST, HALF, TRUTH, chooses=True).to_dict()
    assert (told["n"], told["correct"], told["floor_correct"]) == (8, 7, 5)
    assert (told["only_method"], told["only_floor"], told["stays"]) == (3, 1, "method")


def test_the_sentence_claims_no_more_than_the_numbers() -> None:
    def said(mine: int, floor: int, n: int = 100, chooses: bool = False) -> str:
        truth = np.zeros(n, np.int64)
        one, other = answers([1] * mine + [0] * (n - mine)), answers([1] * floor + [0] * (n - floor))
        return sentence(judge(one, other, truth, chooses).to_dict(), 1234)

    assert said(97, 80).startswith("The 1,234 unlabeled photos helped: with them 97 of 100")
    assert "can't be told" in said(97, 96)
    assert "can't be told" in said(96, 97)
    assert "did harm" in said(80, 97)
    assert "labels alone" in said(80, 97, chooses=True)
    assert "found not to help" in said(96, 97, chooses=True)


def test_shares_unlike_those_of_the_labels_are_told() -> None:
    assert guessed_shares(answers([1, 1, 1, 0])) == [0.75, 0.25]
    assert uneven([0.5, 0.5], [4, 4], ["cat", "dog"]) is None
    assert uneven([0.7, 0.3], [4, 4], ["cat", "dog"]) is None
    assert "cat: 90 % against 50 %" in (uneven([0.9, 0.1], [4, 4], ["cat", "dog"]) or "")
    assert uneven([0.9, 0.1], [9, 1], ["cat", "dog"]) is None


def test_test_images_show_what_the_labels_alone_give(tmp_path) -> None:
    run = wazuka.fit(str(striped_file(tmp_path, per_class=3)), steps=3, out=tmp_path / "run", **QUICK)
    told = run.metrics["unlabeled"]
    assert told["n"] == run.metrics["n_test"] == 20
    assert told["chosen"] is False
    assert run.metrics["method"] == "fixmatch"
    assert [row["name"] for row in run.metrics["baselines"]] == ["the same network on the labels alone"]
    assert 'id="unlabeled"' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_no_floor_no_comparison(tmp_path) -> None:
    data = str(striped_file(tmp_path, per_class=3))
    run = wazuka.fit(data, steps=2, floor=False, out=tmp_path / "run", **QUICK)
    assert "unlabeled" not in run.metrics
    assert "--no-floor" in json.loads((tmp_path / "run" / "run.json").read_text())["command"]
    alone = wazuka.fit(data, steps=2, method="supervised", precision="float32", out=tmp_path / "alone")
    assert "unlabeled" not in alone.metrics


def test_cross_validation_keeps_the_labels_alone_where_they_do_better(tmp_path, monkeypatch) -> None:
    """FixMatch is made to answer the wrong way round: the run must hold the other network, and open with it."""
    honest = Learner.predict

    def turned(self: Learner, images: np.ndarray) -> np.ndarray:
        probs = honest(self, images)
        return probs[:, ::-1] if self.item.name == "fixmatch" else probs

    monkeypatch.setattr(Learner, "predict", turned)
    data = striped_file(tmp_path, test=0, per_class=4)
    folder = tmp_path / "run"
    kept = wazuka.fit(str(data), steps=60, folds=2, out=folder, **QUICK)
    told = kept.metrics["unlabeled"]
    assert told["stays"] == "labels alone", told
    assert kept.metrics["method"] == "supervised"
    assert kept.metrics["test_accuracy"] == told["floor_correct"] / told["n"]
    assert "learned from the labels alone" in (folder / "report.html").read_text(encoding="utf-8")
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["method"], facts["kept"]) == ("supervised", "labels alone")
    images = np.load(data)["x_train"][:, None]
    opened = wazuka.load(folder)
    assert np.array_equal(opened.predict_proba(images), kept.predict_proba(images))


def test_a_run_stopped_in_the_floors_training_goes_on_there(tmp_path) -> None:
    data, seen = str(striped_file(tmp_path, per_class=3)), []

    def on_step(stage: str, step: int, total: int) -> None:
        seen.append(stage)

    stopping = Watch(on_step, stop=lambda: seen[-1:] == ["floor-final"])
    with pytest.raises(Interrupted):
        wazuka.fit(data, steps=4, out=tmp_path / "cut", watch=stopping, **QUICK)
    cut = wazuka.fit(data, steps=4, out=tmp_path / "cut", resume=True, **QUICK)
    whole = wazuka.fit(data, steps=4, out=tmp_path / "whole", **QUICK)
    assert cut.metrics["unlabeled"] == whole.metrics["unlabeled"]
    assert cut.metrics["test_accuracy"] == whole.metrics["test_accuracy"]
