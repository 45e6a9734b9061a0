"""What the tutorial says of its programs holds for many at once, too."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import psycopg
import pytest

from tests.docs.test_blocks import BLOCK, ROOT


def program(page: str, name: str) -> str:
    """The text of one program of a page."""
    return "".join(
        text for language, text in BLOCK.findall((ROOT / page).read_text()) if text.startswith(f"# {name}\n") and language == "python"
    )


async def test_bills_paid_at_once_never_take_more_than_there_is(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUERT_DSN", dsn)
    file = tmp_path / "billing.py"
    file.write_text(program("docs/tutorial.md", "billing.py").replace("Engine.embedded()", "Engine()"))
    billing = ModuleType("billing")
    exec(compile(file.read_text(), file, "exec"), billing.__dict__)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection, billing.engine as engine:
        await connection.execute("drop table if exists account")
        await connection.execute("create table account (customer text primary key, cents int not null)")
        await connection.execute("insert into account values ('Ada', 250)")
        try:
            bills = await engine.start_sequences([billing.pay(billing.Bill(customer="Ada", cents=100)) for _ in range(8)])
            async with engine.worker(drain=True):
                pass
            statuses = [(await engine.get_sequence(each.id)).status for each in bills]
            left = await (await connection.execute("select cents from account")).fetchone()
        finally:
            await connection.execute("drop table account")
    assert (sorted(statuses), left) == (["completed"] * 2 + ["scheduled"] * 6, (50,))
