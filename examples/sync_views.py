"""engine.sync: a web application without an event loop (Flask, Django, any WSGI) starts sequences in the transaction of a view.

Prints:
    POST /orders/1 -> 202 Accepted: order 1 will be shipped
    POST /orders/1 -> 409 Conflict: order 1 exists already
    1 orders, 1 sequences
    GET /orders/1 -> 200 OK: pending
    worker: parcel-1
    GET /orders/1 -> 200 OK: completed
"""

import os
from collections.abc import Iterable
from typing import Any

import psycopg
from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine()


class Order(BaseModel):
    id: int


class Parcel(BaseModel):
    label: str


@engine.job_type
async def ship(job: Job[Order]) -> Parcel:
    return Parcel(label=f"parcel-{job.input.id}")


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """What a WSGI server calls, in any of its threads."""
    order = Order(id=int(environ["PATH_INFO"].removeprefix("/orders/")))
    if environ["REQUEST_METHOD"] == "GET":
        (found,) = engine.sync.list_sequences(key=f"order-{order.id}")
        start_response("200 OK", [])
        return [found.status.encode()]
    try:
        with psycopg.connect(os.environ["QUEUERT_DSN"]) as connection:  # one transaction: the order and its shipping, or neither
            engine.sync.start_sequence(ship, order, key=f"order-{order.id}", tx=connection)
            connection.execute("insert into orders values (%s)", [order.id])
    except psycopg.errors.UniqueViolation:
        start_response("409 Conflict", [])
        return [f"order {order.id} exists already".encode()]
    start_response("202 Accepted", [])
    return [f"order {order.id} will be shipped".encode()]


def request(method: str, path: str) -> None:
    statuses: list[str] = []

    def start_response(status: str, headers: object) -> None:
        statuses.append(status)

    body = b"".join(app({"REQUEST_METHOD": method, "PATH_INFO": path}, start_response))
    print(f"{method} {path} -> {statuses[0]}: {body.decode()}")


def main() -> None:
    with psycopg.connect(os.environ["QUEUERT_DSN"], autocommit=True) as connection:
        connection.execute("create table orders (id int primary key)")
        request("POST", "/orders/1")
        request("POST", "/orders/1")
        row = connection.execute("select count(*) from orders").fetchone()
        assert row is not None
    sequences = engine.sync.list_sequences()
    print(f"{row[0]} orders, {len(sequences)} sequences")
    request("GET", "/orders/1")
    engine.sync.run_once()  # elsewhere: `queuert worker app:engine`
    print(f"worker: {engine.sync.result(engine.sequence(ship, sequences[0].id)).label}")
    request("GET", "/orders/1")


if __name__ == "__main__":
    main()
