"""What does one product with a Hessian cost, by each of the ways that torch offers, and which should the library take?

    python benchmarks/hessian_products.py [--rounds 15] [--models cnn mlp resnet8 lstm]

256 images of noise, float32, one process, one thread. `anew` ways repeat the forward and backward pass in each product, `kept` ones reuse
them; `of 8` is the time of a vector among eight at once. Medians of rounds in which the ways alternate; CPU time, as other work on a
machine prolongs wall time. `start_ms` is what has to be made first; `error` is relative to the product in float64. Each model runs in
a process of its own. Writes hessian_products.json beside this script.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call, grad, jvp, linearize, vmap

from bigbatch.curvature import Hessian
from bigbatch.tasks.models import RowLSTM, cnn, mlp, resnet8
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
MODELS = {
    "cnn": lambda: cnn(hidden=64).to(memory_format=torch.contiguous_format),  # 105,866 parameters
    "mlp": lambda: mlp([784, 128, 64, 10]),
    "resnet8": lambda: resnet8(8).to(memory_format=torch.contiguous_format),
    "lstm": lambda: RowLSTM(),
}
K = 8


class _Ways:
    """Each method makes a way: a function of eight vectors, (8, n), that gives products of some of them, and how many."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, x, y
        self.weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        self.plain = {name: p.detach() for name, p in model.named_parameters()}
        self.sizes = [p.numel() for p in model.parameters()]

    def loss(self, weights):
        return F.cross_entropy(functional_call(self.model, weights, (self.x,)), self.y)

    def named(self, rows):
        lead = rows.shape[:-1]
        pieces = zip(self.plain.items(), torch.split(rows, self.sizes, dim=-1), strict=True)
        return {name: piece.reshape(*lead, *p.shape) for (name, p), piece in pieces}

    def joined(self, tensors, lead=()):
        return torch.cat([t.reshape(*lead, -1) for t in tensors], dim=-1)

    def edges(self):
        grads = torch.autograd.grad(self.loss(self.weights), list(self.weights.values()), create_graph=True)
        return [get_gradient_edge(g) for g in grads]

    def second(self, edges, v, **how):
        lead = (K,) if how.get("is_grads_batched") else ()
        towards = list(self.named(v).values())
        return self.joined(torch.autograd.grad(edges, list(self.weights.values()), towards, retain_graph=True, **how), lead)

    def forward_over_reverse(self, v):
        return jvp(grad(self.loss), (self.plain,), (self.named(v),))[1]

    def make_double_backward_anew(self):
        return lambda v: self.second(self.edges(), v[0]), 1

    def make_double_backward_kept(self):
        edges = self.edges()
        return lambda v: self.second(edges, v[0]), 1

    def make_double_backward_kept_of_8(self):
        edges = self.edges()
        return lambda v: self.second(edges, v, is_grads_batched=True), K

    def make_forward_over_reverse_anew(self):
        return lambda v: self.joined(self.forward_over_reverse(v[0]).values()), 1

    def make_forward_over_reverse_anew_of_8(self):
        return lambda v: self.joined(vmap(self.forward_over_reverse)(v).values(), (K,)), K

    def make_forward_over_reverse_kept(self):
        linear = linearize(grad(self.loss), self.plain)[1]
        return lambda v: self.joined(linear(self.named(v[0])).values()), 1

    def make_forward_over_reverse_kept_of_8(self):
        linear = linearize(grad(self.loss), self.plain)[1]
        return lambda v: self.joined(vmap(linear)(self.named(v)).values(), (K,)), K

    def make_bigbatch(self):
        operator = Hessian(self.model, F.cross_entropy, [(self.x, self.y)])
        operator(torch.zeros(operator.size))
        return lambda v: operator(v[0]), 1

    def make_gradient(self):
        return lambda _: self.joined(torch.autograd.grad(self.loss(self.weights), list(self.weights.values()))), 0


def measure(name, rounds):
    torch.manual_seed(0)
    model, x, y = MODELS[name]().eval(), torch.randn(256, 1, 28, 28), torch.randint(10, (256,))
    ways = _Ways(model, x, y)
    v = torch.randn(K, sum(ways.sizes))
    exact = Hessian(copy.deepcopy(model).double(), F.cross_entropy, [(x.double(), y)])(v.double())
    arms, rows = {}, {}
    for method in [m for m in dir(ways) if m.startswith("make_")]:
        way = method.removeprefix("make_")
        start = time.process_time()
        try:
            product, k = getattr(ways, method)()
            product(v)
        except (RuntimeError, NotImplementedError) as error:  # a rule that torch does not have
            rows[way] = {"fails": str(error).splitlines()[0][:120]}
            continue
        arms[way] = (product, max(k, 1), [])
        rows[way] = {"start_ms": round(1e3 * (time.process_time() - start), 1)}
        if k:
            rows[way]["error"] = float(f"{(product(v).view(-1, v.shape[1])[0] - exact[0]).norm() / exact[0].norm():.2g}")
    for _ in range(rounds):
        for product, k, times in arms.values():
            start = time.process_time()
            product(v)
            times.append((time.process_time() - start) / k)
    for way, (_, _, times) in arms.items():
        rows[way]["median_ms"] = round(1e3 * statistics.median(times), 3)
    return {"model": name, "parameters": v.shape[1], "ways": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=HERE / "hessian_products.json")
    parser.add_argument("--one", action="store_true", help="print the first model's row and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(arguments.models[0], arguments.rounds)))
        sys.exit()
    rows = []
    for name in arguments.models:
        command = [sys.executable, __file__, "--one", "--models", name, "--rounds", str(arguments.rounds)]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]))
        print(json.dumps(rows[-1], indent=1), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"commit": commit, "environment": environment(), "rounds": arguments.rounds, "rows": rows}
    arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
