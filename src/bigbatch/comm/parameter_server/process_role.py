"""What this process is in a run with a parameter server: the server, a further one, or a worker; from its environment.

`bigbatch train ... --workers 4` starts all of them on this machine (see `supervisor`). By hand, on one machine or several, each is started
by the same command with

    BIGBATCH_ROLE=server:0                       or server:1 ... for further servers, worker:0, worker:1 ...
    BIGBATCH_SERVERS=10.0.0.1:7000               addresses of all servers, separated by commas
    BIGBATCH_TOKEN=...                           any secret, the same for all
    BIGBATCH_NUM_WORKERS=4                       for servers

Tokens and tensors are not encrypted: between machines, use a network that you trust, or a tunnel.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from bigbatch.core.checks import UserError

MAX_TOKEN_BYTES = 256  # as in `messages`, which brings torch

ROLE, SERVERS, TOKEN, NUM_WORKERS = "BIGBATCH_ROLE", "BIGBATCH_SERVERS", "BIGBATCH_TOKEN", "BIGBATCH_NUM_WORKERS"


class ProcessRole(NamedTuple):
    """What a process is.

    Attributes:
        serves: Whether it is a server.
        number: Among the servers, or among the workers.
        servers: Addresses of all servers, the first first.
        token: The secret that all share.
        num_workers: Workers of the run.
    """

    serves: bool
    number: int
    servers: tuple[str, ...]
    token: str
    num_workers: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Role | None":
        """None for a process that has no part in such a run.

        Raises:
            UserError: If the environment says something impossible.

        >>> ProcessRole.from_environment({"BIGBATCH_ROLE": "worker:2", "BIGBATCH_SERVERS": "127.0.0.1:7000", "BIGBATCH_TOKEN": "secret"})
        Role(serves=False, number=2, servers=('tcp://127.0.0.1:7000',), token='secret', num_workers=1)
        """
        text = environment.get(ROLE)
        if text is None:
            return None
        kind, _, number = text.partition(":")
        if kind not in ("server", "worker") or not number.isdecimal():
            raise UserError(f"{ROLE}={text}: must be server:0, server:1 ... or worker:0, worker:1 ...; correct it")
        servers = tuple(environment.get(SERVERS, "").split(","))
        wrong = [server for server in servers if not re.fullmatch(r"[^:\s]+:\d{1,5}|\[[0-9a-f:]+\]:\d{1,5}", server)]
        if wrong:
            raise UserError(f"{SERVERS}={','.join(servers)}: {wrong[0] or 'nothing'!r} is not HOST:PORT; give the addresses of all servers")
        if kind == "server" and int(number) >= len(servers):
            raise UserError(f"{ROLE}={text}: {SERVERS} names {len(servers)} servers; count from 0, or name more")
        token, workers = environment.get(TOKEN, ""), environment.get(NUM_WORKERS, "1")
        if not 1 <= len(token.encode()) <= MAX_TOKEN_BYTES:
            raise UserError(f"{TOKEN}: must be a secret of 1 to 256 bytes, the same for all; set it")
        if not workers.isdecimal() or int(workers) < 1:
            raise UserError(f"{NUM_WORKERS}={workers}: must be a number above zero; correct it")
        return cls(kind == "server", int(number), tuple(f"tcp://{server}" for server in servers), token, int(workers))
