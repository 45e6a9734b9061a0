"""What the check of payloads lets through, jsonb gives back."""

from __future__ import annotations

import psycopg
from hypothesis import given, settings

from queuert_py import payload
from tests.unit.test_payload import TEXT, VALUES, Everything


def test_what_is_not_refused_comes_back_from_postgresql(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:

        @settings(max_examples=150, deadline=None)
        @given(VALUES)
        def holds(value: Everything) -> None:
            try:
                text = payload.dump(Everything, value, "input")
            except payload.Unstorable:
                return
            row = connection.execute("select %s::jsonb::text", [text]).fetchone()
            assert row is not None
            assert Everything.model_validate_json(row[0]) == value

        holds()


def test_every_error_text_can_be_stored(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:

        @settings(max_examples=100, deadline=None)
        @given(TEXT)
        def holds(text: str) -> None:
            for stored in (payload.error_json(ValueError(text)), payload.note_json("Lost", text)):
                assert connection.execute("select %s::jsonb::text", [stored]).fetchone() is not None

        holds()
