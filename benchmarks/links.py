"""Hosts with slow links on one machine, for benchmarks of what processes say to each other.

    with shaped_hosts(4, rate_mbit=100) as hosts:
        outputs = hosts.run("rank.py", timeout_s=60)

Each host is a Linux network namespace. Its eth0 leads to a port of a switch that lives in a namespace of its own:

    host 0: eth0 10.77.0.1 ---- port0 \
    host 1: eth0 10.77.0.2 ---- port1 - switch        a bridge; with a delay, delay_switch.py
    ...

so nothing appears in the machine's own network, and no address can clash with one of it. tc's token bucket (tbf) on eth0 limits what a
host sends, one on the port limits what it receives. All is removed at the end, also after an exception, Ctrl-C or SIGTERM; only SIGKILL
leaves namespaces behind (`ip netns list`, names that begin with "bigbatch-"; `ip netns del` removes them).

Needs Linux, root, ip and tc: `available()` says whether it can run here, and why not. Rates are those of the wire: TCP's headers take
4 to 5 % of it. Compare with runs on the same machine only: its processors are shared by all hosts.
"""

import contextlib
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SUBNET = "10.77.0"  # seen inside the namespaces only
QUEUE_MS = 100  # a link holds what it can send in this time and drops the rest


class LinksError(RuntimeError):
    """The links could not be made, or a rank failed or took too long."""


def available():
    """Whether shaped links can be made here: (True, "") or (False, why not)."""
    if platform.system() != "Linux":
        return False, f"network namespaces need Linux, this is {platform.system()}"
    if os.geteuid() != 0:
        return False, "network namespaces need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return False, f"no {program} here: install iproute2"
    try:
        with shaped_hosts(1, rate_mbit=100) as hosts:
            command("ip", "netns", "exec", hosts.names[0], "true")
    except LinksError as error:  # no right to make namespaces, a kernel without veth, bridge or tbf
        return False, str(error)
    return True, ""


@contextlib.contextmanager
def shaped_hosts(count, *, rate_mbit=None, delay_ms=0.0):
    """Hosts that reach each other over links of a given rate and delay; removed at the end.

    Args:
        count: How many hosts, 1 to 250.
        rate_mbit: 10^6 bits a second of each host's link, in each direction; one number, or one per host; None: no limit.
        delay_ms: From one host to another, one way: a reply takes twice as long. 0: only what the kernel takes.

    Yields:
        The `Hosts`.

    Raises:
        ValueError: If an argument is out of range.
        LinksError: If a link cannot be made; `available()` tells beforehand.
    """
    rates = list(rate_mbit) if isinstance(rate_mbit, list | tuple) else [rate_mbit] * count
    if not 1 <= count <= 250:
        raise ValueError(f"count={count}: 1 to 250 hosts have an address in {SUBNET}.0/24")
    if len(rates) != count or any(rate is not None and rate <= 0 for rate in rates):
        raise ValueError(f"rate_mbit={rate_mbit}: give one rate above 0, or one for each of {count} hosts; None is no limit")
    if delay_ms < 0:
        raise ValueError(f"delay_ms={delay_ms}: a frame cannot come before it was sent")
    hosts = Hosts(count)
    with sigterm_exits():
        try:
            hosts.connect(rates, delay_ms)
            yield hosts
        finally:
            with signals_wait():
                hosts.remove()


class Hosts:
    """What `shaped_hosts` yields: names of namespaces, addresses, and `run`."""

    def __init__(self, count):
        self.prefix = f"bigbatch-{secrets.token_hex(4)}"
        self.names = [f"{self.prefix}-{i}" for i in range(count)]
        self.addresses = [f"{SUBNET}.{i + 1}" for i in range(count)]
        self.switch = f"{self.prefix}-switch"
        self.runs = 0
        self.delay_switch = None

    def run(self, script, *arguments, env=None, timeout_s=120):
        """Run a Python script as one rank per host, within a bounded time. When one rank fails, the others have a second to end.

        The script finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment, for `init_process_group("gloo")`.

        Args:
            script: Path of the script.
            arguments: Its arguments.
            env: More variables for its environment.
            timeout_s: After this time, ranks are killed.

        Returns:
            What each rank printed.

        Raises:
            LinksError: With the errors of all ranks, if one failed or was killed.
        """
        self.runs += 1
        shared = {
            **os.environ,
            "WORLD_SIZE": str(len(self.names)),
            "MASTER_ADDR": self.addresses[0],
            "MASTER_PORT": str(29500 + self.runs),  # another one in each run: the last one's may linger
            "GLOO_SOCKET_IFNAME": "eth0",  # gloo would look the machine's name up, and find another address or none
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        ranks = []
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / f"rank-{rank}.out" for rank in range(len(self.names))]
            errors = [path.with_suffix(".err") for path in outputs]
            try:
                for rank, name in enumerate(self.names):
                    line = ["ip", "netns", "exec", name, sys.executable, str(script), *arguments]
                    with outputs[rank].open("w") as out, errors[rank].open("w") as err:
                        ranks.append(subprocess.Popen(line, env={**shared, "RANK": str(rank)}, stdout=out, stderr=err))
                wait(ranks, timeout_s)
                codes = [r.poll() for r in ranks]
            finally:
                for r in ranks:
                    r.kill()
                    r.wait()
                for name in self.names:
                    kill_all(name)  # what the ranks started
            if codes != [0] * len(codes):
                text = "".join(f"\n--- rank {rank}\n{path.read_text(errors='replace')[-3000:]}" for rank, path in enumerate(errors))
                raise LinksError(f"{script}: exit codes {codes} (None: killed after {timeout_s} s, or 1 s after another failed){text}")
            return [path.read_text() for path in outputs]

    def connect(self, rates, delay_ms):
        """Make the namespaces and the links."""
        ports = [f"port{i}" for i in range(len(self.names))]
        command("ip", "netns", "add", self.switch)
        for name, address, port, rate in zip(self.names, self.addresses, ports, rates, strict=True):
            command("ip", "netns", "add", name)
            command("ip", "link", "add", "name", port, "netns", self.switch, "type", "veth", "peer", "name", "eth0", "netns", name)
            for namespace, device in ((name, "lo"), (name, "eth0"), (self.switch, port)):
                command("ip", "-n", namespace, "link", "set", device, "up")
            command("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            if rate is not None:
                shape(name, "eth0", rate)
                shape(self.switch, port, rate)
        if delay_ms:
            self.delay_switch = start_delay_switch(self.switch, delay_ms, ports)
            return
        command("ip", "-n", self.switch, "link", "add", "name", "bridge", "up", "type", "bridge")
        for port in ports:
            command("ip", "-n", self.switch, "link", "set", port, "master", "bridge")

    def remove(self):
        """Kill what runs in the namespaces and remove those that exist; their devices go with them."""
        with contextlib.ExitStack() as last_to_first:  # goes on where one fails, and raises then
            for name in (*self.names, self.switch):
                last_to_first.callback(remove_namespace, name)
        if self.delay_switch is not None:
            self.delay_switch.wait()


def shape(namespace, device, rate_mbit):
    """Limit what leaves a device. A burst of 5 ms, at least 64 kB, passes at once: smaller ones cost processor time."""
    burst = max(64_000, round(rate_mbit * 1e6 / 8 * 0.005))
    limit = ("rate", f"{rate_mbit}mbit", "burst", str(burst), "latency", f"{QUEUE_MS}ms")
    command("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *limit)


def start_delay_switch(namespace, delay_ms, ports):
    """Start delay_switch.py in a namespace and wait until frames pass."""
    script = Path(__file__).with_name("delay_switch.py")
    line = ["ip", "netns", "exec", namespace, sys.executable, str(script), str(delay_ms), *ports]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    with process.stdout as output:
        if output.readline() != "ready\n":
            raise LinksError(f"{script.name} ended with {process.wait()} before it was ready")
    return process


def command(*words):
    """Run a command; its error in a `LinksError`."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinksError(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def wait(processes, timeout_s):
    """Until all have ended, one has failed and the others had a second more, or time is up."""
    end = time.monotonic() + timeout_s
    failed = False
    while any(p.poll() is None for p in processes) and time.monotonic() < end:
        if not failed and any(p.poll() not in (None, 0) for p in processes):
            failed, end = True, min(end, time.monotonic() + 1)
        time.sleep(0.02)


def kill_all(namespace):
    """Kill every process in a namespace, and wait up to 5 s until they are gone."""
    end = time.monotonic() + 5
    while (pids := command("ip", "netns", "pids", namespace).split()) and time.monotonic() < end:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)


def remove_namespace(namespace):
    """With what runs in it, if it was made."""
    if Path("/var/run/netns", namespace).exists():
        try:
            kill_all(namespace)
        finally:
            command("ip", "netns", "del", namespace)


@contextlib.contextmanager
def signals_wait():
    """Ctrl-C and SIGTERM that come within are heard at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def sigterm_exits():
    """Within, SIGTERM raises SystemExit, so that what stands in `finally` is done. Only the main thread may say so; others leave it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
