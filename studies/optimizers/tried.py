"""What was tried on the way to the `muon` rule, on validation data: one run of one combination of settings.

    python studies/optimizers/tried.py fashion_mnist/cnn 64 --seed 0 --settings '{"matrices": "normuon", "weight_decay": 0.3}'

Appends a line to tried.jsonl beside this script. Everything is in one deliberately plain optimizer, so that variants are a line each:
matrices by Muon (five Newton-Schulz steps), "polar" (to convergence), "normuon" (rows evened out by second moments after
orthogonalising), "muon2" (Adam's second moment before it), "soap" (Adam in the eigenbasis of Shampoo's factors), "whitened" (Muon in
the metric of each layer's inputs, K-FAC's right factor A: Z A^-1/2 orthogonalised, then times A^-1/2); the head by Adam or Muon; per
gate or not; warm-up, decay, momentum, rates; averaging of the last weights; initialisation.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from bigbatch import Recipe
from bigbatch.core.checks import Diverged
from bigbatch.optim.muon.newton_schulz import orthogonalise
from bigbatch.tasks.task import load_task
from bigbatch.train import trainer

HERE = Path(__file__).parent
START = {
    "matrices": "muon",
    "lr": 0.05,
    "adam_lr": 0.02,
    "momentum": 0.9,
    "head": "adam",
    "per_gate": True,
    "warmup_updates": 2,
    "decay": "lin",
    "betas": [0.9, 0.95],
    "weight_decay": 0.0,
    "averaged_share": 0,
    "zero_head": False,
    "init": "torch",
    "forget_bias": 0.0,
    "damping": 0.1,
}
DECAYS = {
    "lin": lambda x: 1 - x,
    "cos": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "trap": lambda x: min(1, (1 - x) / 0.5),
    "sqrt": lambda x: math.sqrt(1 - x),
}


def polar(x):
    x = orthogonalise(x, steps=6)
    return orthogonalise(x, steps=4, coefficients=(1.875, -1.25, 0.375)) if x.norm() else x


class Tried(torch.optim.Optimizer):
    """All the variants; slow and plain."""

    def __init__(self, model, settings, num_updates):
        self.c, self.num_updates, self.t, self.mean = settings, num_updates, 0, None
        named = dict(model.named_parameters())
        head = [name for name, p in named.items() if p.ndim > 1][-1]
        self.kind = {p: self._kind(name, p, head) for name, p in named.items()}
        with torch.no_grad():
            for name, p in named.items():
                if settings["init"] == "orth" and p.ndim > 1 and name != head:
                    for part in p.view(p.shape[0], -1).chunk(4 if "lstm" in name else 1):
                        torch.nn.init.orthogonal_(part)
                if settings["forget_bias"] and "bias_hh" in name:
                    p[p.numel() // 4 : p.numel() // 2] = settings["forget_bias"]
            if settings["zero_head"]:
                named[head].zero_()
        super().__init__(list(named.values()), {"lr": 1.0})
        self.moments = {}
        if settings["matrices"] == "whitened":
            for module in model.modules():
                if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LSTM)):
                    module.register_forward_hook(self._watch)

    @torch.no_grad()
    def _watch(self, module, inputs, output):
        """Second moments of what each matrix multiplies, of every fourth sample."""
        x = inputs[0][::4]
        if not module.training:
            return
        if isinstance(module, torch.nn.LSTM):
            seen = {module.weight_ih_l0: x, module.weight_hh_l0: output[0][::4]}
        elif isinstance(module, torch.nn.Conv2d):
            seen = {module.weight: torch.nn.functional.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride).mT}
        else:
            seen = {module.weight: x}
        for p, rows in seen.items():
            rows = rows.reshape(-1, rows.shape[-1]).float()
            if self.c.get("centred"):
                rows = rows - rows.mean(0)
            with torch.autocast("cpu", enabled=False):
                gram = rows.T @ rows / len(rows)
            total, count = self.moments.get(p, (0.0, 0))
            self.moments[p] = total + gram, count + 1

    def _whiten(self, p, state):
        total, count = self.moments.pop(p)
        a = state.setdefault("a", torch.zeros_like(total)).lerp_(total / count, 0.1) / (1 - 0.9**self.t)
        values, vectors = torch.linalg.eigh(a)
        return (vectors * (values.clamp_min(0) + self.c["damping"] * values.mean()).pow(-0.5)) @ vectors.T

    def _kind(self, name, p, head):
        if p.ndim < 2 or (name == head and self.c["head"] != "muon"):
            return "adam", 1
        return self.c["matrices"], 4 if "lstm" in name and self.c["per_gate"] else 1

    @torch.no_grad()
    def step(self):
        """One update."""
        c, done = self.c, self.t / self.num_updates
        self.t += 1
        factor = DECAYS[c["decay"]](done) * min(1, self.t / (c["warmup_updates"] + 1))
        params = self.param_groups[0]["params"]
        for p in params:
            kind, count = self.kind[p]
            if kind == "adam":
                p.sub_(self._adam(self.state[p], p.grad), alpha=c["adam_lr"] * factor)
                continue
            p.mul_(1 - c["lr"] * factor * c["weight_decay"])
            stack = p.grad.reshape(count, p.shape[0] // count, -1)
            if kind == "whitened":
                self.white = self._whiten(p, self.state[p])
            p.sub_(self._direction(kind, self.state[p], stack).reshape(p.shape), alpha=c["lr"] * factor * 0.2)
        if self.t > self.num_updates * (1 - c["averaged_share"]):
            self._average(params)

    def _adam(self, state, g, prefix=""):
        b1, b2 = self.c["betas"]
        m, v = state.setdefault(prefix + "m", torch.zeros_like(g)), state.setdefault(prefix + "v", torch.zeros_like(g))
        m.lerp_(g, 1 - b1)
        v.lerp_(g * g, 1 - b2)
        return m / (1 - b1**self.t) / ((v / (1 - b2**self.t)).sqrt() + 1e-8)

    def _direction(self, kind, state, g):
        if kind == "soap":
            return torch.stack([self._soap(state.setdefault(i, {}), part) for i, part in enumerate(g)])
        m, beta = state.setdefault("m", torch.zeros_like(g)), self.c["momentum"]
        m.lerp_(g, 1 - beta)
        z = g.lerp(m, beta)
        if kind == "muon2":
            v = state.setdefault("v", torch.zeros_like(g))
            z = z / ((v.lerp_(g * g, 0.05) / (1 - 0.95**self.t)).sqrt() + 1e-8)
        if kind == "whitened":
            o = orthogonalise(z @ self.white) @ self.white
            o = o * (math.sqrt(min(g.shape[1:])) / torch.linalg.matrix_norm(o, keepdim=True))
            return math.sqrt(max(g.shape[1:])) * o
        o = (polar if kind == "polar" else orthogonalise)(z)
        if kind == "normuon":
            v = state.setdefault("v", torch.zeros(*o.shape[:2], 1))
            evened = o / ((v.lerp_(o.square().mean(-1, keepdim=True), 0.05) / (1 - 0.95**self.t)).sqrt() + 1e-8)
            o = evened * torch.linalg.matrix_norm(o, keepdim=True) / torch.linalg.matrix_norm(evened, keepdim=True)
        return math.sqrt(max(g.shape[1:])) * o

    def _soap(self, state, g):
        """Adam in the present eigenbasis; the second moment is not carried over when the basis turns. One side where the other is wide."""
        b1, b2 = self.c["betas"]
        for side, gram in (("left", g @ g.T), ("right", g.T @ g if g.shape[1] <= 300 else None)):
            if gram is not None:
                state.setdefault(side, torch.zeros_like(gram)).lerp_(gram, 0.1)
        left = torch.linalg.eigh(state["left"])[1]
        right = torch.linalg.eigh(state["right"])[1] if "right" in state else torch.eye(g.shape[1])
        m, v = state.setdefault("m", torch.zeros_like(g)), state.setdefault("v", torch.zeros_like(g))
        m.lerp_(g, 1 - b1)
        v.lerp_((left.T @ g @ right).square(), 1 - b2)
        return left @ ((left.T @ m @ right) / (1 - b1**self.t) / ((v / (1 - b2**self.t)).sqrt() + 1e-8)) @ right.T

    def _average(self, params):
        """Uniform mean of the last weights, put in place after the last update."""
        if not self.c["averaged_share"]:
            return
        self.mean = self.mean or [[p.clone() for p in params], 0]
        self.mean[1] += 1
        for a, p in zip(self.mean[0], params, strict=True):
            a.lerp_(p, 1 / self.mean[1])
            if self.t == self.num_updates:
                p.copy_(a)


def run(task, multiple, seed, settings):
    named = Recipe.named(task)
    changes = {"schedule.warmup.kind": "none", "schedule.decay.kind": "constant", "optimizer.lr": 1.0, "seed": seed}
    recipe = named.replace({**changes, "batch.global_batch": named.batch.global_batch * multiple})
    trainer.build_optimizer = lambda model, recipe, _: Tried(model, settings, recipe.num_updates)
    try:
        result = trainer.fit(load_task(task), recipe, quiet=True, tensorboard=False, measure_test=False, evaluate_every=recipe.total_epochs)
    except Diverged:
        return 0.0
    return 100 * result.validation_score


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("multiple", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={})
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {**START, **arguments.settings}
    line = {"task": arguments.task, "multiple": arguments.multiple, "seed": arguments.seed, "settings": chosen}
    line["validation_accuracy"] = round(run(arguments.task, arguments.multiple, arguments.seed, chosen), 2)
    with (HERE / "tried.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))
