"""What is printed cannot command a terminal, and reads well."""

from __future__ import annotations

import json

import pytest

from queuert_py.cli import output


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain äöü 漢字 🙂", "plain äöü 漢字 🙂"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP+q544e\x1b\\dcs", "dcs"),
        ("\x9b31mcsi", "csi"),
        ("\x1b[", ""),
        ("\x1bcreset", "reset"),
        ("a\x00b\x08c\x7fd\x85e", "abcde"),
        ("abc\rxyz", "abcxyz"),
        ("win\r\ndows\ttab", "win\ndows\ttab"),
        ("\u202eevil\u2066", "evil"),
        ("lone \ud800", "lone "),
    ],
)
def test_escapes_and_controls_are_stripped(given: str, shown: str) -> None:
    assert output.clean(given) == shown


def test_json_is_ascii_and_comes_back_equal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "\x1b[31m\x7f\x9b ü 🙂"}
    output.print_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert not {"\x1b", "\x7f"} & set(printed)
    assert json.loads(printed) == value


def test_a_table_is_aligned_and_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "jobs"), [("a\nb", 5), ("long name", 1234), (None, "-")])
    assert capsys.readouterr().out.splitlines() == ["name       jobs", "a b           5", "long name  1234", "-             -", ""]


def test_on_a_terminal_rich_draws_and_markup_in_data_stays_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    output.table(("says",), [("[red]not red[/red] \x1b[31m!",)], title="T")
    printed = capsys.readouterr().out
    assert "[red]not red[/red] !" in printed
    assert "─" in printed


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "-"), (0.0123, "12 ms"), (3.44, "3.4 s"), (300, "5 min"), (10_800, "3.0 h"), (864_000, "10.0 d")]
)
def test_spans_have_the_unit_that_fits(seconds: float | None, shown: str) -> None:
    assert output.span(seconds) == shown
