"""One rank of test_links.py: prints the sum over ranks of 1, 2, ... and the seconds of an all-reduce of 5 MB."""

import os
import time

import torch
import torch.distributed as dist

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    buffer = torch.full((1_250_000,), 1.0 + int(os.environ["RANK"]))
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(buffer)
    seconds = time.perf_counter() - began
    assert buffer.min() == buffer.max()
    print(buffer[0].item(), seconds)
    time.sleep(0.1)  # gloo's threads may still want Python's lock
    dist.destroy_process_group()
