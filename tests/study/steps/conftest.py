"""Data bases of these tests need not survive a power failure."""

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk():
    def connected(connection, _):
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)
