"""What commands print: data that others wrote, made harmless for a terminal; tables; JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, links, clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def clean(text: object) -> str:
    """Without terminal escapes, control characters and marks that turn the direction of text; newlines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", str(text).replace("\r\n", "\n")))


def one_line(text: object, most: int = 200) -> str:
    """Clean, in one line, and cut to `most` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def plain(value: object) -> Any:
    """A value as JSON knows it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID():
            return str(value)
        case Mapping():
            return {str(key): plain(inner) for key, inner in cast("Mapping[object, object]", value).items()}
        case list() | tuple() | set() | frozenset():
            return [plain(inner) for inner in cast("Iterable[object]", value)]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return plain(asdict(value))
        case _:
            return str(value)


def print_json(value: object) -> None:
    """One JSON document; everything but printable ASCII is escaped, so that it is data and no terminal's command."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=True).replace("\x7f", "\\u007f"))


def compact(value: object, most: int = 200) -> str:
    """A payload in one line."""
    return one_line(json.dumps(plain(value), ensure_ascii=False, separators=(", ", ": ")), most)


def span(seconds: float | None) -> str:
    """A time in the unit that fits: 12 ms, 3.4 s, 5 min, 2.0 h, 3.1 d."""
    if seconds is None:
        return "-"
    for limit, unit, factor in ((1, "ms", 1000.0), (120, "s", 1.0), (7200, "min", 1 / 60), (172_800, "h", 1 / 3600)):
        if seconds < limit:
            return f"{seconds * factor:.{0 if unit in ('ms', 'min') else 1}f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def ago(at: datetime | None) -> str:
    """How long ago, or in how long."""
    if at is None:
        return "-"
    seconds = (datetime.now(UTC) - at).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def is_terminal() -> bool:
    """Is stdout a terminal, and rich there to draw on it?"""
    return sys.stdout.isatty() and has_rich()


def has_rich() -> bool:
    try:
        import rich  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


def say(text: object = "") -> None:
    """A line of the command's own words, with whatever they quote made harmless."""
    print(clean(text), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Rows under headings; numbers to the right. Drawn by rich on a terminal, else plain text, one line a row."""
    cells = [[one_line("-" if cell is None else cell, 120) for cell in row] for row in rows]
    right = [bool(cells) and all(re.fullmatch(r"[\d,.]+|-", row[number]) for row in cells) for number in range(len(columns))]
    if is_terminal():
        _rich_table(columns, cells, right, title)
    else:
        _plain_table(columns, cells, right, title)


def _rich_table(columns: Sequence[str], cells: list[list[str]], right: list[bool], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for number, (column, to_the_right) in enumerate(zip(columns, right, strict=True)):
        drawn.add_column(column, justify="right" if to_the_right else "left", overflow="fold", no_wrap=number == 0)
    for row in cells:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(drawn)


_STYLES = {"failed": "red", "lost": "red", "gone": "red", "running": "cyan", "completed": "green", "blocked": "yellow"}


def _plain_table(columns: Sequence[str], cells: list[list[str]], right: list[bool], title: str) -> None:
    if title:
        print(title)
    lines = [list(columns), *cells]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        padded = [cell.rjust(width) if at else cell.ljust(width) for cell, width, at in zip(line, widths, right, strict=True)]
        print("  ".join(padded).rstrip())
    print()


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; what is None is left out."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        print(f"{name.ljust(width)}  {one_line(value, 1000)}")
