import dataclasses

import pytest

from wazuka.app.catalog import entries
from wazuka.app.listing import print_method, print_methods
from wazuka.errors import UserError


def test_the_list_names_every_method_and_where_it_is_used_from(capsys):
    print_methods()
    lines = capsys.readouterr().out.splitlines()
    for name, item in entries().items():
        (row,) = [line for line in lines if line.split()[:2] == [name, item.setting]]
        assert ("wazuka fit" in row) == item.fits


@pytest.mark.parametrize("name", list(entries()))
def test_a_method_tells_its_source_and_every_setting_with_its_default(name, capsys):
    print_method(name)
    said = capsys.readouterr().out
    item = entries()[name]
    assert item.summary in said
    if item.settings is None:
        assert "no settings" in said
        return
    for field in dataclasses.fields(item.settings):
        assert field.name in said
        value = getattr(item.settings(), field.name)
        if isinstance(value, (bool, int, str)):
            assert any(line.split()[:2] == [field.name, str(value)] for line in said.splitlines())
    assert ("--set NAME=VALUE" in said) == item.fits


def test_inner_settings_and_the_comments_of_the_source_are_shown(capsys):
    print_method("fixmatch")
    said = capsys.readouterr().out
    assert "arXiv:2001.07685" in said
    assert "optimizer.lr" in said
    assert "cosine_7_16" in said
    (row,) = [line for line in said.splitlines() if line.startswith("threshold")]
    assert row.strip().split(maxsplit=2)[1:] == ["0.95", "tau, Sec. 2.2"]


def test_an_unknown_method_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"no method 'zzz'; there are .*fixmatch"):
        print_method("zzz")
