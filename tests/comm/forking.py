"""A launcher on a machine with two GPUs, as far as torch can tell, whose workers say what they were given; see test_launch.py."""

import os
import sys

import torch

from bigbatch.cli.process.workers import _check_device
from bigbatch.comm.launch.launcher import NVML, Workers, launch
from bigbatch.core.storage.saved import Saved


def initialise():
    raise AssertionError("CUDA was initialised before workers were forked")


torch._C._cuda_getDeviceCount = initialise  # what makes it a build with CUDA, and initialises it
torch.cuda._device_count_nvml = lambda: 2
torch.cuda._lazy_init = initialise


def work():
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", NVML)
    told = [os.environ.get(name) for name in names]
    os.write(1, f"{' '.join(told)} {torch.cuda.device_count()}\n".encode())  # one write: lines don't mix
    if told[0] == "1" and told[3] == "0" and sys.argv[1] != "2":
        os._exit(9)


if __name__ == "__main__":
    sys.exit(launch(work, Workers.parse(sys.argv[1]), Saved(None, ["bigbatch"]), prepare=_check_device))
