"""The role of this process in a run with a parameter server, server or worker, read from its environment.

`bigbatch train ... --workers 4` starts all processes on this machine (see `supervisor`). To start them yourself, on one machine or several,
run the same command for each, with these environment variables:

    BIGBATCH_ROLE=server:0                       server:0, server:1, ... or worker:0, worker:1, ...
    BIGBATCH_SERVERS=10.0.0.1:7000               addresses of all servers, separated by commas
    BIGBATCH_TOKEN=...                           a secret, the same for all processes
    BIGBATCH_NUM_WORKERS=4                       number of workers; needed by servers

Tokens and tensors are not encrypted: between machines, use a trusted network or a tunnel.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from bigbatch.core.checks import UserError

MAX_TOKEN_BYTES = 256  # as in `messages`, which brings torch

ROLE, SERVERS, TOKEN, NUM_WORKERS = "BIGBATCH_ROLE", "BIGBATCH_SERVERS", "BIGBATCH_TOKEN", "BIGBATCH_NUM_WORKERS"


class ProcessRole(NamedTuple):
    """The role of a process.

    Attributes:
        is_server: Whether it is a server; otherwise it is a worker.
        rank: Among the servers, or among the workers.
        server_addresses: Addresses of all servers, ordered by rank.
        token: The shared secret.
        num_workers: Number of workers of the run.
    """

    is_server: bool
    rank: int
    server_addresses: tuple[str, ...]
    token: str
    num_workers: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ProcessRole | None":
        """Read the role; None if BIGBATCH_ROLE is not set.

        Raises:
            UserError: If a variable is invalid.

        >>> ProcessRole.from_environment({"BIGBATCH_ROLE": "worker:2", "BIGBATCH_SERVERS": "127.0.0.1:7000", "BIGBATCH_TOKEN": "secret"})
        ProcessRole(is_server=False, rank=2, server_addresses=('tcp://127.0.0.1:7000',), token='secret', num_workers=1)
        """
        text = environment.get(ROLE)
        if text is None:
            return None
        kind, _, number = text.partition(":")
        if kind not in ("server", "worker") or not number.isdecimal():
            raise UserError(f"{ROLE}={text}: must be server:0, server:1, ... or worker:0, worker:1, ...; correct it")
        servers = tuple(environment.get(SERVERS, "").split(","))
        wrong = [server for server in servers if not re.fullmatch(r"[^:\s]+:\d{1,5}|\[[0-9a-f:]+\]:\d{1,5}", server)]
        if wrong:
            raise UserError(f"{SERVERS}={','.join(servers)}: {wrong[0] or 'nothing'!r} is not HOST:PORT; list the addresses of all servers")
        if kind == "server" and int(number) >= len(servers):
            raise UserError(f"{ROLE}={text}: {SERVERS} lists {len(servers)} servers; count from 0, or list more")
        token, workers = environment.get(TOKEN, ""), environment.get(NUM_WORKERS, "1")
        if not 1 <= len(token.encode()) <= MAX_TOKEN_BYTES:
            raise UserError(f"{TOKEN}: must be a secret of 1 to 256 bytes, the same for all processes; set it")
        if not workers.isdecimal() or int(workers) < 1:
            raise UserError(f"{NUM_WORKERS}={workers}: must be a number above zero; correct it")
        return cls(kind == "server", int(number), tuple(f"tcp://{server}" for server in servers), token, int(workers))
