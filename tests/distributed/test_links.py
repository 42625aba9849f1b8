"""The links that benchmarks run over: as slow as asked for, and gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import links
from tests.limits import LIMIT_S


@pytest.fixture(scope="module", autouse=True)
def links_can_be_made():
    can, why_not = links.available()
    if not can:
        pytest.skip(f"no shaped links here: {why_not}")


@pytest.fixture(autouse=True)
def no_device_left_behind():
    """Of the names that links.py gives: other processes may make theirs meanwhile."""

    def devices():
        names = {line.split()[0] for line in links.command("ip", "-brief", "link").splitlines()}
        return {name for name in names if name.startswith(("port", "bridge", "veth", "eth0@"))}

    before = devices()
    yield
    assert devices() <= before


def namespaces(prefix):
    return [line for line in links.command("ip", "netns", "list").splitlines() if line.startswith(prefix)]


def test_an_all_reduce_takes_what_the_rate_allows():
    with links.shaped_hosts(2, rate_mbit=100) as hosts:
        assert len(namespaces(hosts.prefix)) == 3
        outputs = hosts.run(Path(__file__).with_name("links_rank.py"), timeout_s=LIMIT_S)
    assert namespaces(hosts.prefix) == []
    for total, seconds in (output.split() for output in outputs):
        assert float(total) == 3.0
        assert float(seconds) > 0.9 * 2 * (2 - 1) / 2 * 5 * 8 / 100


def test_a_failed_rank_takes_the_others_with_it_and_says_why(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text("import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('out of paper')\ntime.sleep(600)\n")
    with links.shaped_hosts(2) as hosts, pytest.raises(links.LinksError, match="out of paper"):
        hosts.run(script, timeout_s=LIMIT_S)
    assert namespaces(hosts.prefix) == []


def test_sigterm_removes_the_hosts_and_what_runs_in_them(tmp_path):
    rank, main = tmp_path / "rank.py", tmp_path / "main.py"
    rank.write_text("import os, pathlib, sys, time\npathlib.Path(sys.argv[1] + os.environ['RANK']).touch()\ntime.sleep(600)\n")
    main.write_text(
        "import sys\nfrom benchmarks.links import shaped_hosts\n"
        "with shaped_hosts(2, rate_mbit=10, delay_ms=1) as hosts:\n"
        "    print(hosts.prefix, flush=True)\n    hosts.run(sys.argv[1], sys.argv[2], timeout_s=60)\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(links.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(main), str(rank), str(tmp_path / "started-")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as process:
        prefix = process.stdout.readline().strip()
        while process.poll() is None and len(list(tmp_path.glob("started-*"))) < 2:
            time.sleep(0.02)
        pids = [int(pid) for line in namespaces(prefix) for pid in links.command("ip", "netns", "pids", line.split()[0]).split()]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LIMIT_S) == 128 + signal.SIGTERM
    assert len(pids) == 3, "two ranks and the switch"
    assert namespaces(prefix) == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
