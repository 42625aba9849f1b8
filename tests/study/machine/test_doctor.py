import json
import time

import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.hardware.arithmetic import arithmetic
from bigbatch.core.hardware.machine import usable_cores
from bigbatch.simulate.alpha_beta import AlphaBeta
from bigbatch.study.machine import doctor
from bigbatch.study.machine.doctor import examine
from bigbatch.study.machine.measurements import Data
from bigbatch.tasks.data.fashion_mnist import SHA256, SYSTEM


def test_one_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "SYSTEM", tmp_path / "absent")
    report = examine(out=tmp_path)
    assert (report.workers, report.threads_per_worker) == (1, usable_cores())
    assert list(report.machine.versions)[:4] == ["bigbatch", "python", "torch", "numpy"]
    assert next(iter(report.gflops)) == "1 thread"
    assert all(speed > 0 for speed in report.gflops.values())
    assert report.disk.folder == str(tmp_path)
    assert report.data.folder is None
    assert report.data.tried[1] == str(tmp_path / "absent")
    assert report.settings["OMP_NUM_THREADS"] == "1"
    assert (report.exchange, report.all_reduce, report.link) == (None, None, None)
    assert report.repeats is True
    assert report.arithmetic == arithmetic()
    assert report.ready
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_what_fails_is_a_problem_and_the_rest_is_still_told(tmp_path, monkeypatch):
    def fail(workers, *, threads, backend, timeout_s):
        raise UserError(f"worker of rank 1 of {workers} failed")

    monkeypatch.setattr(doctor, "measure_workers", fail)
    (tmp_path / "file").write_text("")
    report = examine(2, data=tmp_path / "nowhere", out=tmp_path / "file")
    assert not report.ready
    disk, data, worker = report.failures
    assert disk.startswith(f"output folder {tmp_path / 'file'}")
    assert "train-images-idx3-ubyte.gz not found; tried" in data
    assert worker == "worker of rank 1 of 2 failed"
    assert [f.text for f in report.findings if f.severity == "problem"][:3] == [disk, data, worker]
    assert report.gflops


def test_a_named_folder_is_the_only_one(tmp_path, monkeypatch):
    for file in SHA256:
        (tmp_path / file).write_bytes(b"no gzip")
    monkeypatch.setenv("BIGBATCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="is truncated or damaged"):
        doctor._load_fashion_mnist(None)


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="Fashion-MNIST is not installed")
def test_data_is_found_and_loaded_anew(monkeypatch):
    for _ in range(2):
        found = doctor._load_fashion_mnist(None)
        assert (found.folder, found.tried) == (str(SYSTEM), ())
        assert found.seconds > 0.01  # reading and verifying 60,000 images; a cached copy takes none
    assert isinstance(found, Data)


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(doctor, "RESOLVE_S", 0.05)
    asked = []

    def slow(*_):
        asked.append(1)
        time.sleep(1)
        return [1]

    monkeypatch.setattr(doctor.socket, "getaddrinfo", slow)
    assert not doctor._host_resolves()
    assert asked == [1]
    monkeypatch.setattr(doctor.socket, "getaddrinfo", lambda *_: [1])
    monkeypatch.setattr(doctor, "RESOLVE_S", 60)
    assert doctor._host_resolves()


def test_a_model_in_json_has_its_bandwidth():
    assert doctor._model(AlphaBeta(1.0, 0.25, 0.5)) == {"alpha_s": 1, "beta_s_per_byte": 0.25, "residual": 0.5, "bandwidth_bytes_per_s": 4}
    assert doctor._model(AlphaBeta(1.0, 0.0))["bandwidth_bytes_per_s"] is None


def test_refuses():
    with pytest.raises(UserError, match="workers = 0: must be a finite number above zero"):
        examine(0)
    with pytest.raises(UserError, match=r"workers = 100000: at most \d+ are started on \d+ cores; give fewer"):
        examine(100_000)
