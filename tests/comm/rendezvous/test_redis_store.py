"""Against a real redis-server with a password, on a free port of loopback; started and stopped here."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import redis
import torch.distributed as dist
from tests.distributed.ranks import run_ranks

from bigbatch.comm.rendezvous.redis_store import RedisStore
from bigbatch.core.checks import UserError

PASSWORD = "p@ss/w:rd#1"
RANKS = Path(__file__).with_name("redis_ranks.py")
BRIEF = timedelta(seconds=0.3)
jobs = (f"job-{n}" for n in count())


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as s:
        return s.getsockname()[1]


def run_server(folder, port, settings):
    """A redis-server that answers, or None if another process took its port first."""
    lines = ["bind 127.0.0.1", f'requirepass "{PASSWORD}"', 'save ""', "appendonly no", f"dir {folder}", *settings]
    (folder / "redis.conf").write_text("\n".join(lines))
    with (folder / "redis.log").open("w") as log:
        process = subprocess.Popen(["redis-server", str(folder / "redis.conf")], stdout=log, stderr=log)
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        with closing(socket.socket()) as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.02)
    process.kill()
    process.wait()
    return None


@contextmanager
def redis_server(folder, settings="port {port}", scheme="redis"):
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    for port in (free_port() for _ in range(5)):
        if process := run_server(folder, port, settings.format(port=port).splitlines()):
            break
    else:
        raise AssertionError((folder / "redis.log").read_text())
    url = f"{scheme}://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0"
    try:
        yield SimpleNamespace(port=port, url=url, pid=process.pid)
    finally:
        process.kill()
        process.wait()
        with closing(socket.socket()) as s:
            assert s.connect_ex(("127.0.0.1", port)) != 0, "the server is still there"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path):
    """A server that the test may kill."""
    with redis_server(tmp_path) as running:
        yield running


@pytest.fixture
def client(server):
    with closing(redis.Redis.from_url(server.url)) as client:
        yield client


@pytest.fixture
def open_store():
    """RedisStore, for one rank of one unless said otherwise; closed after the test."""
    opened = []

    def open(url, **settings):
        opened.append(RedisStore(url, **{"job": next(jobs), "rank": 0, "world_size": 1, "timeout": BRIEF, **settings}))
        return opened[-1]

    yield open
    for store in opened:
        store.close()


@pytest.fixture
def store(server, open_store):
    return open_store(server.url)


@pytest.fixture(params=["HashStore", "TCPStore", "RedisStore", "PrefixStore over RedisStore"])
def any_store(request):
    """The stores that must not differ; the last one reaches ours through torch's C++."""
    if request.param == "HashStore":
        store = dist.HashStore()
    elif request.param == "TCPStore":
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    else:
        store = request.getfixturevalue("store")
    if request.param.startswith("PrefixStore"):
        store = dist.PrefixStore("some/group", store)
    store.set_timeout(BRIEF)
    return store


CALLS = [
    ("set", ("a", "1"), None),
    ("get", ("a",), b"1"),
    ("set", ("a", "one"), None),
    ("get", ("a",), b"one"),
    ("set", ("empty", ""), None),
    ("get", ("empty",), b""),
    ("set", ("bytes", b"\x00\xff\r\n"), None),
    ("get", ("bytes",), b"\x00\xff\r\n"),
    ("set", ("schlüssel/ \n", "grün"), None),
    ("get", ("schlüssel/ \n",), "grün".encode()),
    ("wait", (["a", "empty"],), None),
    ("wait", (["a"], BRIEF), None),
    ("wait", ([],), None),
    ("check", (["a", "empty"],), True),
    ("check", (["a", "missing"],), False),
    ("check", ([],), True),
    ("add", ("counter", 2), 2),
    ("add", ("counter", 2**40), 2**40 + 2),
    ("add", ("counter", -(2**40) - 5), -3),
    ("add", ("counter", 0), -3),
    ("get", ("counter",), b"-3"),
    ("set", ("digits", "5"), None),
    ("add", ("digits", 2), 7),
    ("compare_set", ("cas", "x", "y"), b"x"),
    ("check", (["cas"],), False),
    ("compare_set", ("cas", "", "y"), b"y"),
    ("compare_set", ("cas", "", "z"), b"y"),
    ("compare_set", ("cas", "x", "z"), b"y"),
    ("get", ("cas",), b"y"),
    ("compare_set", ("cas", "y", "z"), b"z"),
    ("get", ("cas",), b"z"),
    ("compare_set", ("empty", "", "full"), b"full"),
    ("append", ("tail", "po"), None),
    ("append", ("tail", "tato"), None),
    ("get", ("tail",), b"potato"),
    ("multi_set", (["m", "n"], ["1", "2"]), None),
    ("multi_get", (["n", "m", "n"],), [b"2", b"1", b"2"]),
    ("multi_set", ([], []), None),
    ("multi_get", ([],), []),
    ("num_keys", (), 10),
    ("delete_key", ("m",), True),
    ("delete_key", ("m",), False),
    ("check", (["m"],), False),
    ("num_keys", (), 9),
    ("has_extended_api", (), True),
    ("barrier", ("everyone", 1), None),
]


def test_it_answers_like_torchs_own_stores(any_store):
    before = any_store.num_keys()  # TCPStore begins with a key of its own
    for method, arguments, answer in CALLS:
        got = getattr(any_store, method)(*arguments)
        assert (got - before if method == "num_keys" else got) == answer, (method, arguments)


@pytest.mark.parametrize("call", ["get", "multi_get", "wait"])
def test_a_key_that_never_comes_is_a_time_out(any_store, call):
    start = time.monotonic()
    with pytest.raises(dist.DistStoreError):
        getattr(any_store, call)("never" if call == "get" else ["never"])
    assert 0.3 <= time.monotonic() - start < 10


def test_a_clone_sees_the_same_keys_and_the_time_out_is_kept(any_store):
    twin = any_store.clone()
    twin.set("from the clone", "1")
    assert any_store.get("from the clone") == b"1"
    any_store.set_timeout(timedelta(seconds=7))
    assert any_store.timeout == timedelta(seconds=7)


def test_the_time_out_names_the_key_the_job_and_who_is_absent(server, open_store):
    stores = [open_store(server.url, job="trio", rank=rank, world_size=3) for rank in (0, 2)]
    assert stores[0].timeout == BRIEF
    stores[0].set("there", "")
    with pytest.raises(dist.DistStoreError, match=r"key 'x/y': not stored after 0\.1 s in job 'trio', .* 1 of 3 .* such as rank 1"):
        stores[0].wait(["there", "x/y"], timedelta(seconds=0.1))
    open_store(server.url, job="trio", rank=1, world_size=3)
    with pytest.raises(dist.DistStoreError, match="all ranks have joined"):
        stores[0].wait(["x/y"], timedelta(0))


def test_waiting_ends_when_the_key_comes_and_asks_at_most_every_50_ms(store, client):
    def asked():
        return client.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"]

    before = asked()
    timer = threading.Timer(2.0, lambda: store.set("late", "here"))
    start = time.monotonic()
    timer.start()
    store.set_timeout(timedelta(seconds=60))
    assert store.get("late") == b"here"
    waited_s = time.monotonic() - start
    timer.join()
    assert 2.0 <= waited_s < 20
    assert 7 <= asked() - before <= 8 + waited_s / 0.05  # at 0, 1, 3, 7, 15, 31 and 63 ms, then every 50


def in_threads(act, number=8):
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(act(n))) for n in range(number)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(results) == number
    return results


def test_add_append_and_compare_set_are_atomic(store):
    in_threads(lambda n: [store.add("sum", 1) for _ in range(50)])
    assert store.add("sum", 0) == 400
    in_threads(lambda n: [store.append("text", str(n)) for _ in range(50)])
    assert sorted(store.get("text")) == sorted("".join(str(n) * 50 for n in range(8)).encode())
    winners = in_threads(lambda n: store.compare_set("winner", "", str(n)))
    assert set(winners) == {store.get("winner")}


def test_torch_may_hold_the_only_reference(server):
    prefixed = dist.PrefixStore("group", RedisStore(server.url, job=next(jobs), rank=0, world_size=1))
    gc.collect()
    prefixed.set("key", "value")
    assert prefixed.get("key") == b"value"


@pytest.mark.parametrize(
    "write",
    [
        lambda s: s.set("k", "v"),
        lambda s: s.add("n", 1),
        lambda s: s.append("k", "v"),
        lambda s: s.compare_set("c", "", "v"),
        lambda s: s.multi_set(["k"], ["v"]),
        lambda s: s.delete_key("first"),
    ],
    ids=["set", "add", "append", "compare_set", "multi_set", "delete_key"],
)
def test_every_write_gives_every_key_its_expiry(server, open_store, client, write):
    store = open_store(server.url, job="mortal", prefix="team", expire_s=100)
    assert [key for key in client.keys("team:*") if not 0 < client.pttl(key) <= 100_000] == []
    store.multi_set(["first", "second"], ["", ""])
    keys = client.keys("team:mortal:0:*")
    assert len(keys) == 2
    for key in keys:
        client.persist(key)
    write(store)
    assert all(90_000 < client.pttl(key) <= 100_000 for key in keys)


def test_keys_expire(server, open_store, client):
    open_store(server.url, job="brief", expire_s=0.2).set("k", "v")
    time.sleep(0.4)
    assert client.keys("*brief*") == []


def test_jobs_generations_and_prefixes_do_not_meet(server, open_store):
    settings = [{"job": "a"}, {"job": "b"}, {"job": "a", "generation": 1}, {"job": "a", "prefix": "other"}]
    stores = [open_store(server.url, **s) for s in settings]
    for n, store in enumerate(stores):
        store.set("key", str(n))
    assert [s.get("key") for s in stores] == [b"0", b"1", b"2", b"3"]


def test_a_second_job_of_the_same_name_is_refused_until_the_first_has_left(server, open_store, client, monkeypatch):
    first = [open_store(server.url, job="mnist", rank=rank, world_size=2) for rank in range(2)]
    first[0].set("port", "1234")
    taken = client.hgetall("bigbatch:mnist:0:ranks")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    for rank in range(2):
        with pytest.raises(
            UserError, match=rf"rank = {rank}: taken in job 'mnist', generation 0, by process {os.getpid()} on .* UTC; rename"
        ):
            open_store(server.url, job="mnist", rank=rank, world_size=2)
    with pytest.raises(UserError, match=r"world_size = 4: job 'mnist', generation 0, started with 2; .* next generation"):
        open_store(server.url, job="mnist", rank=3, world_size=4)
    assert client.hgetall("bigbatch:mnist:0:ranks") == taken
    second = open_store(server.url, job="mnist", rank=0, world_size=2, generation=1)
    assert not second.check(["port"])
    first[0].close()
    first[0].close()
    with pytest.raises(UserError, match="taken"):
        open_store(server.url, job="mnist", rank=0, world_size=2)
    first[1].close()
    assert client.keys("bigbatch:mnist:0:*") == []
    assert not open_store(server.url, job="mnist", rank=0, world_size=2).check(["port"])


def with_password(url, password):
    return url.replace(quote(PASSWORD, safe=""), password)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: with_password(s.url, "wrong-secret"), r"Redis at 127\.0\.0\.1:\d+, database 0: the password was refused \(invalid"),
        (lambda s: s.url.replace(f":{quote(PASSWORD, safe='')}@", ""), "the password was refused"),
        (lambda s: with_password(s.url, "wrong/secret"), r"not shown.* must be redis://.*percent-encode"),
        (lambda s: s.url.replace("redis:", "http:"), r"must be redis://.* or rediss://"),
        (lambda s: s.url.replace(str(s.port), "99999999"), "not shown.*[Pp]ort"),
        (lambda s: s.url + "?ssl_ca_cert=typo", "not shown.*ssl_ca_cert.*after its"),
        (lambda s: s.url.replace(str(s.port), str(free_port())), r"the server does not respond \(.*refused.*\); start it"),
        (lambda s: s.url.replace("redis:", "rediss:"), "the server does not respond"),
    ],
)
def test_a_bad_address_is_one_readable_error_without_the_password(server, change, message):
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        RedisStore(change(server), job=next(jobs), rank=0, world_size=1, reply_timeout_s=2)
    assert time.monotonic() - start < 20
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert quote(PASSWORD, safe="") not in str(caught.value)


def test_the_password_may_come_apart_and_the_default_address_is_loopback(server, open_store, monkeypatch):
    store = open_store(f"redis://:{server.port}", password=PASSWORD)
    store.set("k", "v")
    assert store.get("k") == b"v"
    with pytest.raises(UserError, match=r"Redis at 127\.0\.0\.1:6379, database 0"):
        RedisStore(job=next(jobs), rank=0, world_size=1, password="no server of ours has this one", reply_timeout_s=2)


@pytest.mark.parametrize("callers_before", [0, 2], ids=["it takes the call and says nothing", "its queue of callers is full"])
def test_a_server_that_never_answers_is_given_up(callers_before):
    with ExitStack() as stack:
        silent = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0), backlog=0)))
        for _ in range(callers_before):
            caller = stack.enter_context(closing(socket.socket()))
            caller.setblocking(False)
            caller.connect_ex(silent.getsockname())
        start = time.monotonic()
        with pytest.raises(UserError, match=r"the server does not respond \(Timeout"):
            RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}", job="j", rank=0, world_size=1, reply_timeout_s=0.5)
        assert 0.5 <= time.monotonic() - start < 4


def test_a_server_that_stalls_is_given_up_at_once_and_serves_again_later(own_server, open_store):
    """Nothing is sent twice: an addition whose answer is lost must not count twice."""
    store = open_store(own_server.url, reply_timeout_s=0.5)
    with closing(redis.Redis.from_url(own_server.url)) as client:
        before = client.info("stats")["total_connections_received"]
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UserError, match=r"the server does not respond \(Timeout"):
                store.add("n", 1)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        client.ping()  # one turn of its loop, in which it takes all that called
        assert client.info("stats")["total_connections_received"] == before
    store._redis.connection_pool.connection_kwargs["socket_timeout"] = 20  # a busy machine may be slow to wake it
    assert store.add("n", 0) <= 1


def test_close_does_not_mind_that_the_server_is_gone(own_server, open_store):
    store = open_store(own_server.url)
    os.kill(own_server.pid, signal.SIGKILL)
    store.close()


def test_wrong_use_is_refused(server, store):
    store.set("word", "abc")
    with pytest.raises(UserError, match="not an integer"):
        store.add("word", 1)
    with pytest.raises(UserError, match="2 keys and 1 values"):
        store.multi_set(["a", "b"], ["1"])
    for rank in (-1, 2):
        with pytest.raises(UserError, match=f"rank = {rank}: must lie from 0 to world_size - 1 = 1"):
            RedisStore(server.url, job="j", rank=rank, world_size=2)
    with pytest.raises(UserError, match="expire_s = 0"):
        RedisStore(server.url, job="j", rank=0, world_size=1, expire_s=0)
    with pytest.raises(UserError, match="reply_timeout_s = 0"):
        RedisStore(server.url, job="j", rank=0, world_size=1, reply_timeout_s=0)


def test_a_missing_package_is_one_readable_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UserError, match=r"a Redis store needs redis, which is not installed: pip install 'bigbatch\[redis\]'"):
        RedisStore(job="j", rank=0, world_size=1)


def test_tls_trusts_only_the_authority_that_was_named(tmp_path, open_store):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine: apt-get install openssl")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(request, check=True, capture_output=True, timeout=60)
    settings = f"port 0\ntls-port {{port}}\ntls-cert-file {cert}\ntls-key-file {key}\ntls-auth-clients no"
    with redis_server(tmp_path, settings, "rediss") as secure:
        store = open_store(f"{secure.url}?ssl_ca_certs={quote(str(cert))}")
        store.set("k", "v")
        assert store.get("k") == b"v"
        with pytest.raises(UserError, match=r"does not respond \(.*certificate verify failed"):
            open_store(secure.url)


def test_four_processes_meet_and_go_on_without_the_server(own_server, tmp_path):
    """All-reduce, barrier and new_group; then the server is killed: only new_group fails, and soon."""
    output = run_ranks(RANKS, 4, tmp_path, "meet", own_server.url, str(own_server.pid))
    assert [text.splitlines()[-1] for text in output] == ["done"] * 4


def test_a_server_that_dies_before_the_rendezvous_is_named_by_every_rank(own_server, tmp_path):
    output = run_ranks(RANKS, 2, tmp_path, "server_dies_first", own_server.url, str(own_server.pid))
    assert all("refused: Redis at 127.0.0.1" in text for text in output)


def test_a_missing_rank_is_a_time_out_that_names_the_key(server, tmp_path):
    output = run_ranks(RANKS, 2, tmp_path, "rank_is_missing", server.url, "0")
    assert "refused: key" in output[0]
