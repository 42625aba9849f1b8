import dataclasses

import pytest

from bigbatch.comm.launch.preflight import WorkerTimings
from bigbatch.core.hardware.machine import GPU, Disk, Machine
from bigbatch.simulate.alpha_beta import AlphaBeta
from bigbatch.study.machine.doctor import Report
from bigbatch.study.machine.measurements import Data

MACHINE = Machine({"torch": "2"}, cores=4, memory_bytes=8 * 10**9, available_bytes=6 * 10**9, gpus=(), backends=("gloo",))
EXCHANGE = WorkerTimings(2, "gloo", 2, alone_gflops=10.0, together_gflops=(9.0, 10.0), latency_s=1e-4, all_reduce=())
GOOD = Report(
    workers=2,
    threads_per_worker=2,
    machine=MACHINE,
    settings={},
    load=0.5,
    host_resolves=True,
    gflops={"1 thread": 50.0},
    disk=Disk("runs", write_bytes_per_s=200e6, read_bytes_per_s=1e9, free_bytes=10**11),
    data=Data("folder", 0.5, ()),
    exchange=EXCHANGE,
    all_reduce=AlphaBeta(alpha_s=0.001, beta_s_per_byte=1e-9),
    link=AlphaBeta(alpha_s=0.0005, beta_s_per_byte=1e-9),
    failures=(),
)
GPUS = (GPU("H", 80 * 10**9),) * 2


def but(**changes):
    """The good report with changes; those to its parts are named part__field."""
    for name in [name for name in changes if "__" in name]:
        part, _, field = name.partition("__")
        changes[part] = dataclasses.replace(changes.get(part, getattr(GOOD, part)), **{field: changes.pop(name)})
    return dataclasses.replace(GOOD, **changes)


def test_a_good_machine_has_nothing_to_note():
    assert GOOD.ready
    assert [(f.severity, f.text, f.remedy) for f in GOOD.findings] == [
        ("ok", "2 workers on 4 cores: 2 threads each", ""),
        ("ok", "2 workers at once multiply 1.9 times as fast as one, of 2 at best", ""),
        ("ok", "exchanging the gradients of 1,000,000 parameters (4 MB) takes 5.0 ms", ""),
        ("ok", "disk writes at 200 MB/s: a checkpoint of 100 MB takes 0.5 s", ""),
        ("ok", "Fashion-MNIST loads in 0.5 s from folder", ""),
    ]


def test_what_equal_bits_need():
    facts = {"num_threads": 2, "torch": "2.13.0", "processor": "a processor", "cpu_capability": "AVX2"}
    same = "2 threads, torch 2.13.0 and processor (a processor, AVX2)"
    last = but(repeats=True, arithmetic=facts).findings[-1]
    assert (last.severity, last.text) == ("ok", f"a gradient has the same bits each time: runs resume bit for bit with the same {same}")


PROBLEMS = {
    "cores": ({"workers": 5}, "more workers than cores: 5 workers on 4 cores; a step will not get faster", "use at most 4 workers"),
    "backends": ({"machine__backends": ()}, "this torch has neither gloo nor NCCL", "install a torch"),
    "failure": ({"failures": ("rank 1 died; mend it",)}, "rank 1 died; mend it", ""),
}
NOTES = {
    "bits": ({"repeats": False}, "the same gradient did not have the same bits each time", "on a CPU, set MKL_CBWR=COMPATIBLE"),
    "cores of GPUs": (
        {"workers": 2, "machine__cores": 1, "machine__gpus": GPUS},
        "more workers than cores: 2 workers on 1 core; loading",
        "use",
    ),
    "GPUs": ({"machine__gpus": GPUS[:1]}, "more workers than GPUs: 2 on 1; NCCL wants one for each", "use at most 1 worker to"),
    "threads": (
        {"settings": {"OMP_NUM_THREADS": "8"}},
        "OMP_NUM_THREADS is set to 8 with 2 workers on 4 cores",
        "unset it, or set it to 2",
    ),
    "host": ({"host_resolves": False}, "GLOO_SOCKET_IFNAME is not set and this host's name has no address", "set it to lo for one machine"),
    "load": ({"load": 2.1}, "the machine is busy: load 2.1 on 4 cores", "measure again"),
    "memory": ({"machine__available_bytes": 9 * 10**8}, "0.9 GB of memory for 2 workers: each takes about 0.5 GB", "end other programs"),
    "speed": (
        {"exchange__together_gflops": (6.0, 7.0)},
        "2 workers at once multiply 1.3 times as fast as one, of 2",
        "cores may be shared",
    ),
    "scatter": ({"all_reduce": AlphaBeta(0.001, 1e-9, 0.31)}, "takes 5.0 ms, but the times scatter by 31 %", "measure again"),
    "slow disk": ({"disk__write_bytes_per_s": 20e6}, "disk writes at 20 MB/s: a checkpoint of 100 MB takes 5.0 s", "choose a faster disk"),
    "full disk": ({"disk__free_bytes": 5 * 10**8}, "0.5 GB free below runs: checkpoints may not fit", "free some space"),
    "no data": ({"data": Data(None, None, ("a", "b"))}, "no Fashion-MNIST: looked in a, b; its first run will try", "on Debian or Ubuntu"),
}


@pytest.mark.parametrize(("changes", "text", "remedy"), PROBLEMS.values(), ids=PROBLEMS)
def test_problems(changes, text, remedy):
    report = but(**changes)
    assert not report.ready
    assert report.to_dict()["ready"] is False
    first, *others = report.findings
    assert (first.severity, [f.severity for f in others if f.severity == "problem"]) == ("problem", [])
    assert first.text.startswith(text)
    assert first.remedy.startswith(remedy)


@pytest.mark.parametrize(("changes", "text", "remedy"), NOTES.values(), ids=NOTES)
def test_notes(changes, text, remedy):
    report = but(**changes)
    assert report.ready
    (note,) = [f for f in report.findings if f.severity == "note"]
    assert text in note.text
    assert note.remedy.startswith(remedy)
    assert report.findings[0] == note


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 4},
        {"settings": {"OMP_NUM_THREADS": "2"}},
        {"settings": {"OMP_NUM_THREADS": "many"}},
        {"workers": 1, "exchange": None, "all_reduce": None, "link": None, "host_resolves": False},
        {"settings": {"GLOO_SOCKET_IFNAME": "lo"}, "host_resolves": False},
        {"machine__gpus": GPUS},
        {"machine__available_bytes": None},
        {"load": None},
        {"load": 2.0},
        {"disk": None},
        {"data": None},
    ],
    ids=str,
)
def test_no_false_alarms(changes):
    changes = {"exchange__together_gflops": (10.0,) * changes["workers"], **changes} if changes.get("workers", 2) > 2 else changes
    assert {f.severity for f in but(**changes).findings} == {"ok"}


def test_one_thread_a_worker_is_no_note_even_beyond_the_cores():
    """OMP_NUM_THREADS=1 is the least; the cores are the problem, and one finding says so."""
    found = but(workers=5, settings={"OMP_NUM_THREADS": "1"}, exchange=None).findings
    assert [f.severity for f in found if f.severity != "ok"] == ["problem"]
