"""Servers and workers as threads of one process, around real sockets."""

import contextlib
import threading

import torch
from torch import nn

from bigbatch.comm.parameter_server.client import ParameterClient


def problem(dtype=torch.float64):
    """A model of three tensors, and its data by the number of a sample."""
    random = torch.Generator().manual_seed(0)  # not the global one, which other threads draw from
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1, bias=False)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=dtype) / 2)
    inputs = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return model, inputs, inputs.sum(1, keepdim=True).sin()


def losses_of(model, inputs, targets, work):
    span = slice(work.start, work.start + work.num_samples)
    return (model(inputs[span]) - targets[span]).square().flatten()


def work(addresses, token, worker, *, before_push=lambda work: None, **settings):
    """A worker's loop; returns how many of its gradients were wanted."""
    model, inputs, targets = problem()
    wanted = 0
    with ParameterClient(addresses, token, model.parameters(), worker=worker, **settings) as client:
        while (piece := client.pull()) is not None:
            losses = losses_of(model, inputs, targets, piece)
            losses.mean().backward()
            before_push(piece)
            wanted += client.push(piece, losses.sum())
    return wanted


@contextlib.contextmanager
def threads(*targets):
    """Run functions beside the test; their errors are the test's."""
    errors = []

    def run(target):
        try:
            target()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join(30)
    assert not any(thread.is_alive() for thread in running)
    if errors:
        raise errors[0]
