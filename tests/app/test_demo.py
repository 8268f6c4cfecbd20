import dataclasses

import numpy as np
import pytest

from tests.app.stripes import striped_file, striped_job
from wazuka.app import contender
from wazuka.app.demo import baselines, demo
from wazuka.app.job import Job
from wazuka.app.learn import Interrupted, Watch
from wazuka.app.runs import Run


@pytest.fixture
def brief(monkeypatch):
    """Two steps of training in place of a minute."""
    plan_for = contender.plan_for
    monkeypatch.setattr(contender, "plan_for", lambda *size: dataclasses.replace(plan_for(*size), steps=2))


def test_it_ends_with_a_table_and_the_path_of_the_report(brief, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo(None, 0)
    out = capsys.readouterr().out
    assert "40 labels" in out
    table = [line for line in out.splitlines() if "%" in line and "interval" not in line]
    assert len(table) == 5
    assert table[0].startswith("logistic regression: 40 labels")
    assert table[-1].startswith("Wazuka (fixmatch)")
    assert out.splitlines()[-1] == "Report: runs/demo/report.html"
    assert (tmp_path / "runs" / "demo" / "report.html").exists()
    metrics = Run(tmp_path / "runs" / "demo").read("metrics.json")
    assert (metrics["n_labeled"], metrics["n_unlabeled"], metrics["n_test"]) == (40, 1257, 500)
    rows = metrics["baselines"]
    assert [row["n"] for row in rows] == [500] * 4
    assert len({row["name"] for row in rows}) == 4
    # what scikit-learn's own two give with 40 labels: about 82 % and 92 %
    assert 350 < rows[0]["correct"] < 450
    assert 420 < rows[1]["correct"] < 490


def test_hidden_labels_reach_no_baseline(tmp_path, monkeypatch):
    data = striped_file(tmp_path, train=40, test=10)
    one = striped_job(tmp_path / "run", data, labels_per_class=3)
    seen = {}

    def spy(name):
        def fit(self, X, y):
            seen[name] = np.asarray(y)
            raise Interrupted(name)

        return fit

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression.fit", spy("regression"))
    with pytest.raises(Interrupted):
        baselines(one)
    assert len(seen["regression"]) == 6
    monkeypatch.undo()
    monkeypatch.setattr("sklearn.semi_supervised.LabelSpreading.fit", spy("spreading"))
    with pytest.raises(Interrupted):
        baselines(one)
    assert (seen["spreading"] >= 0).sum() == 6


def test_the_last_baseline_is_the_same_network_on_the_labels_alone(tmp_path, monkeypatch):
    asked = []

    def rival(self, method, settings):
        asked.append((method, dict(settings)))
        return self.prepared.test.labels, 1.0

    monkeypatch.setattr(Job, "rival", rival)
    rows = baselines(striped_job(tmp_path / "run", striped_file(tmp_path, test=10), labels_per_class=3))
    assert asked == [("supervised", {"view": "weak"})]  # with strong views it is the floor of every run
    assert "weak" in rows[2]["name"]
    assert rows[2]["correct"] == rows[2]["n"] == 10


def test_interrupted_beside_the_baselines_it_still_says_how_to_go_on(tmp_path):
    stages = ["final"]
    watch = Watch(lambda stage, step, total: stages.append(stage), lambda: stages[-1] != "final")
    one = striped_job(tmp_path / "run", striped_file(tmp_path), watch, labels_per_class=3)
    with pytest.raises(Interrupted, match=r"^wazuka fit .*--resume"):
        one.work(None, baselines)
