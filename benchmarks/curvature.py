r"""Eigenvalues, trace and density of a network's Hessian: how long, beside PyHessian, hessian-eigenthings and curvlinops at equal accuracy?

    pip install --no-deps pyhessian hessian-eigenthings curvlinops-for-pytorch \
        backpack-for-pytorch einops einconv opt-einsum linear-operator tqdm jaxtyping
    python benchmarks/curvature.py [--rounds 5] [--questions eigenvalues trace density]

A convolutional network of 105,866 parameters after 300 updates, 256 Fashion-MNIST images, float32, one process, one thread.

    eigenvalues   the top three, each with |H v - lambda v| <= 0.001 |lambda|, by products in float64 with what is returned
    trace         2 % root-mean-square error over seeds (ours: by its own stopping, at a stated standard error of 2 %)
    density       one start of 100 Lanczos steps

First, untimed, each tool's settings are searched over several seeds: the whole batch, or pieces of 128 or 64 images, whichever it
multiplies faster with (PyHessian keeps its graph of a whole batch only), and then the cheapest setting that is accurate enough; "sweep"
lists what was tried. Peers are thus given what a user would have to find out. "default" arms are a tool as it comes. Then arms alternate,
and seeds differ from round to round; medians of CPU time (other work on a machine prolongs wall time), and of wall time. Setting up is in
the time of all. The file is rewritten after each question, and keeps the others'.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import curvlinops
import hessian_eigenthings as eigenthings
import numpy as np
import pyhessian
import torch
import torch.nn.functional as F
from curvlinops._torch_base import PyTorchLinearOperator
from scipy.sparse.linalg import LinearOperator, eigsh

from bigbatch.curvature import Hessian, spectral_density, top_eigenvalues, trace
from bigbatch.tasks.fashion_mnist_cnn import FashionMNISTCNN
from bigbatch.train.state.record import environment

RESIDUAL, ERROR, STEPS, K = 1e-3, 0.02, 100, 3
IMAGES, PIECES = 256, (256, 128, 64)
FIRST_ROUND_SEED = 100
PYHESSIAN = sys.modules["pyhessian.hessian"]  # the module, which the class of this name hides


def trained():
    """The network and its images: fixed seeds."""
    x, y = FashionMNISTCNN().splits().train.tensors
    torch.manual_seed(0)
    model = FashionMNISTCNN().model(hidden=64).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(300):
        chosen = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), x[:IMAGES].clone(), y[:IMAGES].clone()


class _Case:
    """Data, and every tool's operator on it, with its products counted."""

    def __init__(self):
        self.model, self.x, self.y = trained()
        self.pieces = {}  # tool: images at once
        double = copy.deepcopy(self.model).double()
        self.exact = Hessian(double, F.cross_entropy, [(self.x.double(), self.y)])
        self.own = self.bigbatch(PIECES[-1])
        self.n, self.products = self.own.size, 0

    def batches(self, piece):
        return list(zip(self.x.split(piece), self.y.split(piece), strict=True))

    def bigbatch(self, piece=None):
        return Hessian(self.model, F.cross_entropy, [(self.x, self.y)], micro_batch=piece or self.pieces["bigbatch"])

    def eigenthings(self, piece=None, **options):
        case = self

        class Counted(eigenthings.HessianOperator):
            def matvec(self, v):
                case.products += 1
                return super().matvec(v)

        def loss(model, batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        return Counted(copy.deepcopy(self.model), self.batches(piece or self.pieces["hessian-eigenthings"]), loss, **options)

    def curvlinops(self, piece=None):
        case, model = self, copy.deepcopy(self.model)

        class Counted(curvlinops.HessianLinearOperator):
            def _matmat(self, X):
                case.products += X[0].shape[-1]
                return super()._matmat(X)

        data = self.batches(piece or self.pieces["curvlinops"])
        return Counted(model, torch.nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False)

    def pyhessian(self):
        return pyhessian.hessian(copy.deepcopy(self.model), torch.nn.CrossEntropyLoss(), data=(self.x, self.y), cuda=False)

    def residuals(self, values, vectors):
        """|H v - lambda v| / |lambda| in float64."""
        v, values = torch.nn.functional.normalize(vectors.double(), dim=1), torch.as_tensor(np.array(values)).double()
        return ((self.exact(v) - values[:, None] * v).norm(dim=1) / values.abs()).tolist()

    def lent_to_curvlinops(self):
        """Our products for its algorithms, where only their number and error are of interest."""
        case = self

        class Lent(PyTorchLinearOperator):
            SELF_ADJOINT = True

            def __init__(self):
                super().__init__([(case.n,)], [(case.n,)])

            device, dtype = torch.device("cpu"), torch.float32

            def _matmat(self, X):
                return [case.own(X[0].T.contiguous()).T]

        return Lent()


def timed(case, arm, seed):
    case.products = 0
    torch.manual_seed(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    found = arm(seed)
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "products": case.products, **found}


def alternated(case, arms, rounds):
    """Every arm once a round; medians and ranges."""
    runs = {name: [] for name in arms}
    for i in range(rounds):
        for name, arm in arms.items():
            runs[name].append(timed(case, arm, FIRST_ROUND_SEED + i))
            print(json.dumps({"arm": name, **{k: v for k, v in runs[name][-1].items() if k != "check"}}, default=str), flush=True)
    return runs


def summary(runs, extra):
    rows = {}
    for name, each in runs.items():
        row = {"cpu_s": statistics.median(r["cpu_s"] for r in each), "wall_s": statistics.median(r["wall_s"] for r in each)}
        row |= {"cpu_s_range": [min(r["cpu_s"] for r in each), max(r["cpu_s"] for r in each)]}
        row |= {"products": statistics.median(r["products"] for r in each)}
        rows[name] = {k: _short(v) for k, v in (row | extra(each)).items()}
    return rows


def _short(value):
    return [_short(v) for v in value] if isinstance(value, list) else float(f"{value:.4g}") if isinstance(value, float) else value


def sizes_of_batches(case):
    """What a product costs each tool with the whole batch and in pieces; the faster is taken from then on."""
    v, sweep = torch.randn(case.n, generator=torch.Generator().manual_seed(0)), {}

    makers = {
        "bigbatch": lambda piece: (lambda op: lambda: op(v))(case.bigbatch(piece)),
        "hessian-eigenthings": lambda piece: (lambda op: lambda: op.matvec(v))(case.eigenthings(piece)),
        "curvlinops": lambda piece: (lambda op: lambda: op @ v)(case.curvlinops(piece)),
    }
    products = {(tool, piece): make(piece) for tool, make in makers.items() for piece in PIECES}
    h = case.pyhessian()
    parts = [part.view(p.shape) for part, p in zip(torch.split(v, [p.numel() for p in h.params]), h.params, strict=True)]
    products["pyhessian", IMAGES] = lambda: PYHESSIAN.hessian_vector_product(h.gradsH, h.params, parts)
    times = {key: [] for key in products}
    for i in range(6):
        for key, product in products.items():
            start = time.process_time()
            product()
            if i:  # the first makes graphs
                times[key].append(time.process_time() - start)
    for tool in (*makers, "pyhessian"):
        medians = {piece: statistics.median(times[tool, piece]) for piece in PIECES if (tool, piece) in times}
        case.pieces[tool] = min(medians, key=medians.get)
        sweep[tool] = {f"{piece} images at once": f"{1e3 * s:.1f} ms" for piece, s in medians.items()}
    exact = case.exact(v.double())
    for name, product in (
        ("autograd", case.eigenthings().matvec(v)),
        ("finite_difference", case.eigenthings(method="finite_difference").matvec(v)),
    ):
        sweep["hessian-eigenthings"][f"{name}: relative error of a product"] = float(f"{(product - exact).norm() / exact.norm():.2g}")
    return sweep


def first_that_serves(settings, worst, sweep):
    """The first setting, in the order of cost, whose worst residual over three seeds serves."""
    for setting in settings:
        found = max(worst(setting, seed) for seed in range(3))
        sweep.append({"setting": setting, "worst_residual": float(f"{found:.3g}")})
        print(sweep[-1], flush=True)
        if found <= RESIDUAL:
            return setting
    return None


def eigenvalues(case, rounds):
    def check(values, vectors):
        return {"values": [float(v) for v in values], "check": (torch.as_tensor(np.array(values)), vectors)}

    def bigbatch(start):
        def arm(seed):
            op = case.bigbatch()
            found = top_eigenvalues(op, K, tolerance=RESIDUAL, seed=seed, start=op.gradient() if start else None)
            case.products = found.products
            return check(found.values, found.vectors) | {"stated": found.residuals.tolist()}

        return arm

    def eigenthing(max_iter, op=None, **options):
        def arm(seed):
            found = eigenthings.lanczos(op or case.eigenthings(**options), k=K, max_iter=max_iter, which="LA", seed=seed)
            return check(found.eigenvalues, found.eigenvectors)

        return arm

    def curvlinop(ncv, matrix=None):
        def arm(seed):
            v0 = np.random.default_rng(seed).standard_normal(case.n).astype(np.float32)
            values, vectors = eigsh(matrix or case.curvlinops().to_scipy(), k=K, which="LA", ncv=ncv, tol=RESIDUAL, v0=v0)
            return check(values[::-1].copy(), torch.from_numpy(vectors.T[::-1].copy()))

        return arm

    def pyhess(tol, max_iter=3000):
        def arm(_):
            h, original = case.pyhessian(), PYHESSIAN.hessian_vector_product

            def counted(*arguments):
                case.products += 1
                return original(*arguments)

            PYHESSIAN.hessian_vector_product = counted
            try:
                values, vectors = h.eigenvalues(maxIter=max_iter, tol=tol, top_n=K)
            finally:
                PYHESSIAN.hessian_vector_product = original
            return check(values, torch.stack([torch.cat([t.flatten() for t in v]) for v in vectors]))

        return arm

    def worst(make):
        def of(setting, seed):
            return max(case.residuals(*timed(case, make(setting), seed)["check"]))

        return of

    lent = eigenthings.LambdaOperator(case.own, case.n)
    scipy = LinearOperator((case.n, case.n), lambda v: case.own(torch.from_numpy(v.ravel().copy())).numpy(), dtype=np.float32)
    sweep = {name: [] for name in ("hessian-eigenthings", "curvlinops + eigsh", "pyhessian")}
    max_iter = first_that_serves(range(8, 60), worst(lambda m: eigenthing(m, lent)), sweep["hessian-eigenthings"])
    costs = {}
    for ncv in (7, 8, 10, 12, 14, 16, 20):
        counts, worsts = [], []
        for seed in range(3):
            seen = []
            counted = LinearOperator(scipy.shape, lambda v, seen=seen: (seen.append(1), scipy.matvec(v))[1], dtype=np.float32)
            worsts.append(max(case.residuals(*timed(case, curvlinop(ncv, counted), seed)["check"])))
            counts.append(len(seen))
        sweep["curvlinops + eigsh"].append({"setting": ncv, "worst_residual": max(worsts), "products": statistics.mean(counts)})
        if max(worsts) <= RESIDUAL:
            costs[ncv] = statistics.mean(counts)
    ncv = min(costs, key=costs.get)
    tol = first_that_serves([10.0**-i for i in range(3, 9)], worst(pyhess), sweep["pyhessian"])
    arms = {
        "bigbatch": bigbatch(False),
        "bigbatch, start=gradient": bigbatch(True),
        f"hessian-eigenthings, max_iter={max_iter}": eigenthing(max_iter),
        f"hessian-eigenthings, max_iter={max_iter}, finite_difference": eigenthing(max_iter, method="finite_difference"),
        f"curvlinops + eigsh, ncv={ncv}": curvlinop(ncv),
        f"pyhessian, tol={tol:g}": pyhess(tol),
        "hessian-eigenthings, default": eigenthing(None),
        "pyhessian, default": pyhess(1e-3, 100),
    }
    runs = alternated(case, arms, rounds)

    def extra(each):
        found = [max(case.residuals(*run["check"])) for run in each]
        serves = max(found) <= RESIDUAL
        return {"values": each[0]["values"], "worst_residual": max(found), "correct": serves}

    return {"sweep": sweep, "arms": summary(runs, extra)}


def traces(case, rounds):
    reference = trace(case.own, tolerance=0.002, max_products=4000, seed=12345)
    print(reference, flush=True)

    def rms(estimates):
        return math.sqrt(statistics.mean((e / reference.value - 1) ** 2 for e in estimates))

    def bigbatch(seed):
        found = trace(case.bigbatch(), tolerance=ERROR, seed=seed)
        case.products = found.products
        return {"value": found.value, "stated": found.standard_error / abs(found.value)}

    def eigenthing(num, op=None):
        return lambda seed: {"value": eigenthings.trace(op or case.eigenthings(), num_matvecs=num, seed=seed).estimate}

    def curvlinop(num, op=None):
        return lambda _: {"value": float(curvlinops.xtrace(op or case.curvlinops(), num))}

    def pyhess(num, tol=0.0):
        def arm(_):
            estimates = case.pyhessian().trace(maxIter=num, tol=tol)
            case.products = len(estimates)
            return {"value": float(np.mean(estimates))}

        return arm

    samples = 10 * 8
    g = torch.randn(samples, case.n, generator=torch.Generator().manual_seed(0)).sign()
    spread = float(torch.cat([(case.own(rows) * rows).sum(1) for rows in g.split(8)]).std())
    alone = math.ceil((spread / (ERROR * reference.value)) ** 2)
    sweep = {"pyhessian": [{"setting": alone, "why": f"{spread:.4g}, the spread of {samples} samples, over {ERROR} of the trace, squared"}]}
    chosen = {}
    lent = {
        "hessian-eigenthings": (eigenthing, eigenthings.LambdaOperator(case.own, case.n)),
        "curvlinops": (curvlinop, case.lent_to_curvlinops()),
    }
    for tool, (make, op) in lent.items():
        sweep[tool] = []
        for num in (30, 48, 60, 72, 84, 96, 120, 150, 180, 240, 300, 390, 480):
            errors = rms([timed(case, make(num, op), seed)["value"] for seed in range(8)])
            sweep[tool].append({"setting": num, "rms_error_of_8_seeds": float(f"{errors:.3g}")})
            print(tool, sweep[tool][-1], flush=True)
            if errors <= ERROR:
                chosen[tool] = num
                break
    arms = {
        "bigbatch": bigbatch,
        f"hessian-eigenthings, Hutch++ {chosen['hessian-eigenthings']}": eigenthing(chosen["hessian-eigenthings"]),
        f"curvlinops, XTrace {chosen['curvlinops']}": curvlinop(chosen["curvlinops"]),
        f"pyhessian, maxIter={alone}, tol=0": pyhess(alone),
        "pyhessian, default": pyhess(100, 1e-3),
    }
    runs = alternated(case, arms, rounds)
    more = rms([bigbatch(seed)["value"] for seed in range(30)])

    def extra(each):
        stated = (
            {"stated_error": statistics.mean(run["stated"] for run in each), "rms_error_of_30_seeds": more} if "stated" in each[0] else {}
        )
        return {"rms_error": rms([run["value"] for run in each]), "errors": [run["value"] / reference.value - 1 for run in each]} | stated

    return {"reference": reference._asdict(), "sweep": sweep, "arms": summary(runs, extra)}


def density(case, rounds):
    reference = trace(case.own, tolerance=0.002, max_products=4000, seed=12345).value

    def bigbatch(seed):
        found = spectral_density(case.bigbatch(), steps=STEPS, starts=1, seed=seed)
        case.products = found.products
        return {"mean": found.moment(1)}

    def eigenthing(seed):
        found = eigenthings.spectral_density(case.eigenthings(), num_runs=1, lanczos_steps=STEPS, seed=seed)
        return {"mean": float((found.raw_eigenvalues * found.raw_weights).sum())}

    def curvlinop(_):
        x, p = curvlinops.lanczos_approximate_spectrum(case.curvlinops(), STEPS)
        return {"mean": float((x * p).sum() / p.sum())}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case.pyhessian().density(iter=STEPS, n_v=1)
            fails = "does not fail"
        except Exception as error:
            fails = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    runs = alternated(case, {"bigbatch": bigbatch, "hessian-eigenthings": eigenthing, "curvlinops": curvlinop}, rounds)

    def extra(each):
        return {"rms_error_of_the_mean": math.sqrt(statistics.mean((case.n * run["mean"] / reference - 1) ** 2 for run in each))}

    return {"pyhessian": fails, "arms": summary(runs, extra)}


QUESTIONS = {"eigenvalues": eigenvalues, "trace": traces, "density": density}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Using backward")  # PyHessian's
    case = _Case()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    peers = {name: version(name) for name in ("pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "scipy")}
    facts = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    facts |= {"environment": environment() | peers, "parameters": case.n, "images": IMAGES, "products": sizes_of_batches(case)}
    print(json.dumps(facts["products"], indent=1), flush=True)
    for question in arguments.questions:
        facts[question] = {"commit": commit, "rounds": arguments.rounds} | QUESTIONS[question](case, arguments.rounds)
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
        print(json.dumps(facts[question]["arms"], indent=1), flush=True)
