"""Rendezvous through Redis: a store for `init_process_group`, for networks in which no rank has a port that all others can reach.

Ranks find each other through the store; gradients never pass through it. Every operation is atomic on the server: a job's keys are the
fields of one Redis hash, written together with their expiry in one transaction.

    <prefix>:<job>:<generation>:keys     what torch stores
    <prefix>:<job>:<generation>:ranks    world_size, a field for each rank that joined, and how many have left

Each rank of a job can join once. A second job of the same name is refused, rank by rank, until every rank of the first has called
`close`, which removes both hashes. A job that was killed never calls it, so its restart uses the next generation: values of dead ranks,
such as their ports, are never read again.
"""

import os
import re
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from torch.distributed import DistStoreError, Store  # type: ignore[attr-defined]

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed

_URL = re.compile(r"rediss?://([^@/?#]*@)?(\[[^\]]+\]|[^@/?#:\[\]]+)?(:\d+)?(/\d*)?(\?[^#]*)?")
_JOIN = """
local began = redis.call('HGET', KEYS[1], 'world_size') or ARGV[1]
local holder = redis.call('HGET', KEYS[1], ARGV[2])
if began == ARGV[1] and not holder then
  redis.call('HSET', KEYS[1], 'world_size', ARGV[1], ARGV[2], ARGV[3])
end
return {began, holder or ''}
"""
_COMPARE_SET = """
local now = redis.call('HGET', KEYS[1], ARGV[1])
if now == ARGV[2] or (not now and ARGV[2] == '') then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  return ARGV[3]
end
return now or ARGV[2]
"""
_APPEND = "return redis.call('HSET', KEYS[1], ARGV[1], (redis.call('HGET', KEYS[1], ARGV[1]) or '') .. ARGV[2])"
_OPEN: "set[RedisStore]" = set()  # torch references only the C++ object: the Python object must be kept alive here


class RedisStore(Store):
    """A `torch.distributed` store on a Redis server; see the module's docstring for jobs, generations and keys.

    Methods behave as in torch's own stores. Waiting polls after 1 ms, then 2, 4, ... up to every 50 ms. Nothing is retried, since an `add`
    whose reply was lost would count twice. Thread-safe.

    Args:
        url: `redis://[[user]:password@]host[:port][/database]`, or `rediss://` for TLS, whose settings may follow as a query:
            `?ssl_ca_certs=ca.pem`. Special characters of the password are percent-encoded.
        job: Name of the job, unique on the server.
        rank: Rank of this process.
        world_size: Number of ranks.
        generation: Number of earlier starts of the job; the same on all ranks.
        prefix: Prefix of all Redis keys.
        password: Password, if the URL has none.
        timeout: Longest wait of `get`, `wait` and `multi_get` for a key; zero polls once.
        reply_timeout_s: Time-out of a connection, and of one reply of the server.
        expire_s: Seconds after the last write when keys expire; more than the longest time between two new process groups.

    Raises:
        UserError: If the package or the server is missing, the URL is malformed, the password is refused, or the rank is taken. Methods
            raise it if the server fails.
        torch.distributed.DistStoreError: By methods that time out waiting for a key.
    """

    timeout: timedelta  # torch's own property, which its type stub lacks

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        *,
        job: str,
        rank: int,
        world_size: int,
        generation: int = 0,
        prefix: str = "bigbatch",
        password: str | None = None,
        timeout: timedelta = timedelta(seconds=300),
        reply_timeout_s: float = 10.0,
        expire_s: float = 86_400.0,
    ) -> None:
        super().__init__()
        check_positive("expire_s", expire_s)
        check_positive("reply_timeout_s", reply_timeout_s)
        if not 0 <= rank < world_size:
            raise UserError(f"rank = {rank}: must lie from 0 to world_size - 1 = {world_size - 1}; number the ranks from 0")
        self.set_timeout(timeout)
        self._job, self._rank, self._world_size = f"job {job!r}, generation {generation}", rank, world_size
        self._keys, self._ranks = (f"{prefix}:{job}:{generation}:{kind}" for kind in ("keys", "ranks"))
        self._expire_ms = round(1000 * expire_s)
        self._redis = _client(url, password, reply_timeout_s)
        where = self._redis.connection_pool.connection_kwargs
        self._address = f"{where['host']}:{where['port']}, database {where['db']}"
        self._join()
        _OPEN.add(self)

    def set(self, key: str, value: str | bytes) -> None:
        """Set the value of a key."""
        self._write("HSET", self._keys, key, value)

    def get(self, key: str) -> bytes:
        """Wait for a key and return its value."""
        return self.multi_get([key])[0]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys exist."""
        self._values(keys, self.timeout if timeout is None else timeout)

    def add(self, key: str, value: int) -> int:
        """Add to a counter, initially 0; returns its new value."""
        return int(self._write("HINCRBY", self._keys, key, value))

    def check(self, keys: list[str]) -> bool:
        """Whether all keys exist."""
        return None not in self._read(keys)

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Set the desired value if the key has the expected value, or if it is missing and the expected value is empty.

        Returns:
            The value of the key afterwards; the expected value if the key is still missing.
        """
        return bytes(self._write("EVAL", _COMPARE_SET, 1, self._keys, key, expected_value, desired_value))

    def delete_key(self, key: str) -> bool:
        """Delete a key; returns whether it existed."""
        return bool(self._write("HDEL", self._keys, key))

    def num_keys(self) -> int:
        """Number of keys."""
        return int(self._execute(("HLEN", self._keys))[0])

    def append(self, key: str, value: str | bytes) -> None:
        """Append to a value, initially empty."""
        self._write("EVAL", _APPEND, 1, self._keys, key, value)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Wait for keys and return their values."""
        return self._values(keys, self.timeout)

    def multi_set(self, keys: list[str], values: list[str] | list[bytes]) -> None:
        """Set the values of several keys atomically."""
        if len(keys) != len(values):
            raise UserError(f"{len(keys)} keys and {len(values)} values: multi_set needs one value per key")
        if keys:
            self._write("HSET", self._keys, *chain.from_iterable(zip(keys, values, strict=True)))

    def has_extended_api(self) -> bool:
        """Whether append, multi_get and multi_set are supported: yes."""
        return True

    def clone(self) -> "RedisStore":
        """This store, which is thread-safe."""
        return self

    def close(self) -> None:
        """Leave the job, after `destroy_process_group`; the last rank to leave deletes the keys. If the server is gone, they expire."""
        if self not in _OPEN:
            return
        _OPEN.remove(self)
        with suppress(UserError):
            if self._write("HINCRBY", self._ranks, "left", 1) == self._world_size:
                self._execute(("DEL", self._keys, self._ranks))
        self._redis.close()

    deleteKey, getNumKeys = delete_key, num_keys  # noqa: N815 the names that torch's C++ code calls

    def _join(self) -> None:
        """Join the job; each rank of a generation can join once."""
        me = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        began, holder = self._write("EVAL", _JOIN, 1, self._ranks, self._world_size, self._rank, me)
        remedy = "rename this job, or use the next generation if the other run is dead"
        if int(began) != self._world_size:
            raise UserError(f"world_size = {self._world_size}: {self._job}, started with {int(began)}; use that, {remedy}")
        if holder:
            raise UserError(f"rank = {self._rank}: taken in {self._job}, by {holder.decode()}; {remedy}")

    def _values(self, keys: list[str], timeout: timedelta) -> list[bytes]:
        end, pause_s = time.monotonic() + timeout.total_seconds(), 0.001
        while None in (values := self._read(keys)):
            if time.monotonic() >= end:
                missing, waited_s = keys[values.index(None)], f"{timeout.total_seconds():g} s"
                raise DistStoreError(f"key {missing!r}: not stored after {waited_s} in {self._job}; {self._missing_ranks()}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)
        return values

    def _missing_ranks(self) -> str:
        joined = {int(field) for field in self._execute(("HKEYS", self._ranks))[0] if field.isdigit()}
        missing = [rank for rank in range(self._world_size) if rank not in joined]
        if not missing:
            return "all ranks have joined; see the logs of the others"
        return f"{len(missing)} of {self._world_size} ranks never joined, such as rank {missing[0]}; start them, or raise the time-out"

    def _read(self, keys: list[str]) -> list[Any]:
        return list(self._execute(("HMGET", self._keys, *keys))[0]) if keys else []

    def _write(self, *command: Any) -> Any:
        return self._execute(command, *(("PEXPIRE", key, self._expire_ms) for key in (self._keys, self._ranks)))[0]

    def _execute(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one transaction; returns the server's replies."""
        import redis

        transaction = self._redis.pipeline(transaction=True)
        for command in commands:
            transaction.execute_command(*command)
        try:
            return list(transaction.execute())
        except redis.AuthenticationError as error:
            raise UserError(f"Redis at {self._address}: the password was refused ({error}); give the right one") from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise UserError(f"Redis at {self._address}: the server does not respond ({error}); start it, or correct the address") from error
        except redis.RedisError as error:
            raise UserError(f"Redis at {self._address}: the server refused a command ({error}); see its log") from error


def _client(url: str, password: str | None, reply_timeout_s: float) -> Any:
    with needed("a Redis store", extra="redis"):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    address = "the address of Redis (not shown: it may hold a password)"
    if not _URL.fullmatch(url):
        rule = "must be redis://[[user]:password@]host[:port][/database], or rediss:// for TLS"
        raise UserError(f"{address}: {rule}; percent-encode special characters of the password")
    loopback = {"host": "127.0.0.1", "port": 6379, "db": 0}
    limits = {"socket_timeout": reply_timeout_s, "socket_connect_timeout": reply_timeout_s, "retry": Retry(NoBackoff(), 0)}
    try:
        client = redis.Redis.from_url(url, password=password, **loopback, **limits)
        client.connection_pool.make_connection()  # checks the settings; does not connect yet
    except (TypeError, ValueError) as error:
        raise UserError(f"{address}: {error}; correct its port or the settings after its ?") from error
    return client
