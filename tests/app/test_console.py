import sys

import pytest

from wazuka.app import console
from wazuka.app.console import Console, clock, share, showing_progress, span, table


@pytest.fixture
def watch(monkeypatch):
    """A clock that a test winds by hand."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_times_and_shares_read_well():
    assert [clock(s) for s in (0, 0.4, 1.6, 59.4, 59.6, 75, 3599.4, 3600, 7290)] == [
        "1 s", "1 s", "2 s", "59 s", "1 min 0 s", "1 min 15 s", "59 min 59 s", "1 h 0 min", "2 h 1 min",
    ]  # fmt: skip
    assert share(0.97345) == "97.3 %"
    assert span(0.951, 0.9823) == "95.1 - 98.2 %"


def test_a_log_gets_a_line_now_and_then_with_the_time_left(watch, capsys):
    shown = Console()
    for second in range(31):
        watch[0] = 100.0 + second
        shown.step("final", second * 10, 300)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "training: 10 of 300, about 29 s left"
    assert lines[1] == "training: 110 of 300, about 19 s left"
    assert lines[-1] == "training: 300 of 300, done"
    assert len(lines) <= 5


def test_what_is_soon_done_says_nothing(watch, capsys):
    shown = Console()
    shown.opening(0, 10)
    watch[0] += 0.9
    shown.opening(10, 10)
    assert capsys.readouterr().err == ""


def test_a_resumed_stage_is_timed_from_where_it_resumed(watch, capsys):
    shown = Console()
    shown.step("final", 900, 1000)
    watch[0] += 10
    shown.step("final", 950, 1000)
    assert "about 10 s left" in capsys.readouterr().err


def test_a_terminal_gets_bars_that_are_taken_down(watch, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with showing_progress() as shown:
        shown.step("final", 0, 100)
        watch[0] += 2
        shown.step("final", 50, 100)
        bars = shown._progress
        assert bars.tasks[0].completed == 50
        assert bars.live.is_started
    assert not bars.live.is_started


def test_a_table_shows_every_cell_as_it_is(capsys):
    odd = ["[bold]x[/bold]", "C:\\data\\[red]", "a:smile:b", "back\\", "[/]"]
    table("photos [dim]2[/dim]", ["[i]name", "value"], [[cell, "1.5"] for cell in odd])
    out = capsys.readouterr().out
    for text in (*odd, "photos [dim]2[/dim]", "[i]name"):
        assert text in out
    assert "\x1b" not in out


def test_numbers_stand_right_and_words_left(capsys):
    table("t", ["name", "value"], [["a", "1"], ["bbb", "22222"]])
    assert "a          1" in capsys.readouterr().out
    table("t", ["name", "value"], [["a", "x"], ["bbb", "yyyyy"]], numbers=False)
    assert "a      x" in capsys.readouterr().out
