"""What public docstrings promise about waiting for the device, and which cases prove each."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bigbatch"
_NEVER = r"\b(never|nothing|no|not|without)\b"
_DEVICE = r"(device|GPU|CPU and GPU)"
_TALK = [
    rf"{_NEVER}\s+(\w+\s+){{0,3}}waits?\s+for\s+(the|a)?\s*{_DEVICE}",  # nothing waits for the device
    rf"{_DEVICE}\s+(is|are)\s+(never|not)\s+(waited|synchroni[sz]ed)",  # the device is not waited for
    rf"{_NEVER}\s+(\w+\s+){{0,3}}(host\s+)?synchroni[sz]\w*",  # no synchronisation
    rf"{_NEVER}\s+(\w+\s+){{0,3}}syncs?\b",
    r"\btensor\s+is\s+(not|never)\s+read\b",  # a step that is a tensor is not read
    r"\b(never|does\s+not)\s+(look|looks|read|reads)\s+(at\s+)?(the\s+)?values\b",
    r"\b(looking|reading each|sending)\b.{0,20}\bwould\s+(sync|make\s+the\s+device\s+wait|wait)\b",  # looking would sync the device
]
PROMISE = re.compile("|".join(f"(?:{pattern})" for pattern in _TALK), re.IGNORECASE)

PROOFS = {
    "schedules.clock_lr set_lr": ("optimizers: set_lr, rate a",),
    "schedules.clock_lr ClockLR": ("optimizers: ClockLR, rate a",),
    "optim.base BaseOptimizer": ("optimizers: LARS", "optimizers: LAMB", "optimizers: AdamP", "optimizers: SGDP", "optimizers: Muon"),
    "optim.base check_rate": ("optimizers: LARS, rate a tensor", "optimizers: LAMB, rate a tensor"),
    "optim.adam corrections": ("optimizers: LAMB", "optimizers: AdamP"),
    "optim.adam bias_corrections": ("optimizers: LAMB", "optimizers: AdamP"),
    "optim.adamp": ("optimizers: AdamP",),
    "noise.monitor": ("measurements: monitor", "trainer: fit, noise measured"),
    "noise.unchanged mark": ("measurements: monitor",),
    "noise.dual_norm polar": ("measurements: monitor in the nuclear norm",),
    "noise.dual_norm_monitor": ("measurements: monitor in the l1 norm", "measurements: monitor in the nuclear norm"),
    "noise.preconditioned adam_preconditioned": ("measurements: monitor as LAMB weighs", "measurements: monitor as Adam weighs"),
    "core.tensors.norms norm_of": ("layers: norms",),
    "core.tensors.norms sq_norm": ("layers: norms",),
    "train.state.record Record.update": ("trainer: fit, sgd",),
}
"""Module and name whose docstring promises, to beginnings of names of cases, with their family."""


def promises(source=SOURCE):
    """Names of modules, classes and functions whose docstrings promise not to wait for the device, with the words."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        module = ".".join(path.relative_to(source).with_suffix("").parts)
        for name, text in _docstrings(ast.parse(path.read_text())):
            if match := PROMISE.search(" ".join(text.split())):
                found[f"{module} {name}".strip()] = match.group()
    return found


def _docstrings(tree, name=""):
    """Docstrings, and strings after attributes, with the name of what they describe."""
    for number, node in enumerate(tree.body):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            before = tree.body[number - 1] if number else None
            attribute = (
                before.targets[0] if isinstance(before, ast.Assign) else before.target if isinstance(before, ast.AnnAssign) else None
            )
            yield ".".join(filter(None, (name, getattr(attribute, "id", "")))), node.value.value
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield from _docstrings(node, f"{name}.{node.name}" if name else node.name)
