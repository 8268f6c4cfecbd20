import platform

import numpy
import pytest
import torch

from wazuka.app.doctor import print_checkup


@pytest.fixture
def checkup(monkeypatch):
    """What the table says, before it is folded to the width of the terminal."""

    def run():
        rows = []
        monkeypatch.setattr("wazuka.app.doctor.table", lambda title, columns, more, numbers: rows.extend(more))
        print_checkup()
        return " ".join(" ".join(row) for row in rows)

    return run


def test_it_prints_a_table(capsys):
    print_checkup()
    assert "This machine" in capsys.readouterr().out


def test_it_names_versions_device_threads_and_precision(checkup):
    said = checkup()
    for expected in (platform.python_version(), torch.__version__, numpy.__version__, "scikit-learn", "float"):
        assert expected in said
    assert f"{torch.get_num_threads()} of" in said


def test_it_measures_the_cache_and_says_when_it_cannot_be_written(checkup, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "deep"
    monkeypatch.setenv("WAZUKA_CACHE", str(folder))
    said = checkup()
    assert "0 MiB used" in said
    assert not folder.exists()  # looking changes nothing
    folder.mkdir(parents=True)
    (folder / "pack").write_bytes(bytes(3 * 2**20))
    assert "3 MiB used" in checkup()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "set WAZUKA_CACHE to a folder that can" in checkup()


@pytest.mark.parametrize("there", [True, False])
def test_it_knows_the_public_sets(checkup, monkeypatch, tmp_path, there):
    monkeypatch.delenv("WAZUKA_DATA", raising=False)
    assert "set WAZUKA_DATA to a folder" in checkup()
    folder = tmp_path if there else tmp_path / "gone"
    monkeypatch.setenv("WAZUKA_DATA", str(folder))
    assert ("which is not there" in checkup()) == (not there)
