"""Progress is a bar on a terminal and lines elsewhere, and quick work shows none."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from rich.progress import MofNCompleteColumn

from launcher.console import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(report: Callable[[str], None] | None = None, *, seconds: float) -> None:
    line = "{:,} of 2,000, {:.0f} s left".format
    with Reporter(2000, line, report, seconds=seconds, columns=[MofNCompleteColumn()]) as reporter:
        reporter.seconds = min(reporter.seconds, seconds)
        for done in (1000, 2000):
            reporter.update(done)


def test_lines_are_due_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    work(lines.append, seconds=60)
    assert lines == []
    work(lines.append, seconds=0)
    assert lines == ["1,000 of 2,000, 0 s left", "2,000 of 2,000, 0 s left"]
    work(seconds=0)
    assert capsys.readouterr() == ("", "1,000 of 2,000, 0 s left\n2,000 of 2,000, 0 s left\n")


def test_a_terminal_gets_a_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    work(pytest.fail, seconds=0)
    assert "2000/2000" in terminal.getvalue()
