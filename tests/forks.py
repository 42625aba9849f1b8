"""Python programs in processes that are forked from one which has torch and the package imported: a start in hundredths of a second.

For tests of what a program does, not of how it starts: an interpreter of its own takes as long to import torch as most of these tests take
for all the rest. What is different: the hash seed is the same for all of them, and modules are there that the program did not import.
"""

import io
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import types
import warnings
import weakref
from importlib.util import find_spec
from multiprocessing import forkserver, popen_forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ForkServer
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
"""How to run a file of tests where pytest and hypothesis are imported already."""
LIBRARIES = (
    "OMP_",
    "KMP_",
    "OPENBLAS_",
    "MKL_",
    "ATEN_",
    "ONEDNN_",
    "DNNL_",
    "TORCH",
    "PYTORCH",
    "CUDA_",
    "TRITON_",
    "LD_",
    "PYTHON",
    "MALLOC",
)
"""Beginnings of variables that are read when an interpreter starts or a library is imported."""
OF_THE_START = {"PYTHONPATH", "PYTORCH_NVML_BASED_CUDA_CHECK"}
"""All the same, these may differ: the first is followed below, the second by torch whenever it looks for GPUs."""


class Server(ForkServer):
    """Started by the first program, with the environment of then, and ended with this process."""

    def __init__(self, *modules):
        super().__init__()
        self.settings = None
        self.set_forkserver_preload(list(modules))

    def ensure_running(self):
        """Each program needs one thread, and a process that forks may have no more."""
        no_cuda = {
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1"
        }  # whoever only asks whether there are GPUs does not initialise CUDA: see comm/launch.py
        with patch.dict(os.environ, {**ONE_THREAD, **no_cuda, "PYTHONPATH": python_path(os.environ)}):
            self.settings = self.settings or settings(os.environ)
            super().ensure_running()

    def suits(self, environment):
        """Whether a program that starts with this environment would not find other settings."""
        if self.settings is None:
            self.ensure_running()
        if any(self._is_another_package(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path):
            return False
        return settings({**ONE_THREAD, **environment}) == self.settings

    @staticmethod
    def _is_another_package(path):
        """Whether there is a copy of the package, which the server has not imported."""
        return Path(path, "bigbatch").is_dir() and Path(path).resolve() != Path(find_spec("bigbatch").origin).resolve().parents[1]


SERVER = Server("tests.preloaded")
BARE = Server("torch", "torch.distributed.tensor", "scipy.optimize", "scipy.stats", "pydantic", "pytest", "hypothesis")
"""Of files of tests that import triton, and the package, in their own way."""


def settings(environment):
    return {name: value for name, value in environment.items() if name.startswith(LIBRARIES) and name not in OF_THE_START}


def python_path(environment):
    return os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))


class _Popen(popen_forkserver.Popen):
    def _launch(self, process_obj):
        with patch.object(popen_forkserver.forkserver, "connect_to_new_process", process_obj.server.connect_to_new_process):
            super()._launch(process_obj)


class _Process(ForkServerProcess):
    server = SERVER

    @staticmethod
    def _Popen(process_obj):  # noqa: N802 multiprocessing calls it
        return _Popen(process_obj)


class _BareProcess(_Process):
    server = BARE


class Program:
    """`python *arguments` as subprocess.Popen would start it, with its methods; what is printed goes to files.

    Args:
        arguments: A script, or -m and a module, or -c and a text, and what follows.
        environment: All of it.
        folder: To run in.
        log: File of what it prints and says; if left out, `communicate` returns both apart.
        warnings: What becomes of them, as for -W.
        bare: Whether the package is not imported yet.
    """

    def __init__(self, arguments, *, environment, folder=None, log=None, warnings="default", bare=False):
        place = tempfile.mkdtemp(prefix="bigbatch-program-")
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self._printed, self._said = (Path(log or Path(place, name)) for name in ("printed", "said"))
        self.args = list(map(str, arguments))
        where = (str(folder or Path.cwd()), str(self._printed), str(self._said))
        self._process = (_BareProcess if bare else _Process)(
            target=_run, args=(self.args, dict(environment), *where, warnings), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.printed(), self.said()

    def printed(self):
        return self._printed.read_text() if self._printed.exists() else ""

    def said(self):
        return self._said.read_text() if self._said.exists() else ""

    @property
    def stderr(self):
        return io.StringIO(self.said())

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _run(arguments, environment, folder, printed, said, action):
    os.setsid()  # those that it starts are found by this
    multiprocessing.current_process()._config["daemon"] = False  # it may start others; it ends with those who started it all the same
    for number, path in ((1, printed), (2, said)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    forkserver._forkserver.__init__()  # processes of its own would come from this server, with the environment of that
    multiprocessing.set_start_method(None, force=True)  # the platform's own: a DataLoader's processes would be the fork server's
    if action != "default":
        warnings.simplefilter(action)
    kind = arguments[0]
    first = folder if kind in ("-m", "-c") else str(Path(kind).parent)
    sys.path[:0] = [first, *(path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path)]
    if kind == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *arguments[2:]]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), module.__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
