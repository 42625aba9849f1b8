"""One rank of test_heartbeat.py: it waits for a GPU that will never answer, as far as its main thread can tell."""

import os
import signal
import sys
import time

import torch.distributed as dist
from tests.distributed.ranks import leave

from bigbatch.comm.rendezvous.heartbeat import heartbeats
from bigbatch.core.checks import UserError

TIMEOUT_S = {"silent": 20.0}


def main(what):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    with heartbeats(rank, world, TIMEOUT_S.get(what, 500.0)):
        dist.barrier()
        print("together", flush=True)
        if what == "done":
            time.sleep(0.3 * rank)
        elif rank == 1 and what == "dies":
            os._exit(9)
        elif rank == 1 and what == "silent":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif rank == 1 and what == "raises":
            raise ZeroDivisionError
        elif rank == 1 and what == "refuses":
            raise UserError("of this rank alone")
        elif what == "all refuse":
            time.sleep(0.3 * rank)
            raise UserError("of all ranks")
        else:
            time.sleep(1000)
    print("left", flush=True)
    leave()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UserError:
        print("left", flush=True)
        leave()
