"""Files of a run, damaged at random, through whatever reads them: it works, or one line of a `UserError` says what is wrong.

What must never come of a damaged file: another exception, an error of several lines, a loss that nobody was told of, and weights other
than those of the run that was not disturbed. `KINDS` is the table of files; a new one is one line there, and one in `Folder.write`.
"""

import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

import torch

from bigbatch import Recipe, fit
from bigbatch.core.checks import UserError
from bigbatch.core.storage.folder_lock import OWNER, Owner
from bigbatch.core.storage.json_lines import stored_lines
from bigbatch.report import write_report
from bigbatch.study.all_runs.runs import runs
from bigbatch.study.comparison.scale import scale
from bigbatch.study.search import _identity
from bigbatch.train.state.folder import finished_result
from bigbatch.train.state.result import Result

PLAIN = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 12, "batch.micro_batch": 16, "model": {"hidden": 8}})
ADAPTIVE = PLAIN.replace(
    {
        "optimizer.name": "adam",
        "optimizer.lr": 1e-3,
        "budget.updates": None,
        "budget.samples": 32 * 12,
        "schedule": {"warmup": {"kind": "autowu"}},
        "batch.rule": {"kind": "norm_test", "theta": 0.6, "every_updates": 3},
    }
)
STOPPED_AT = 10  # updates; two are left, so that momentum that was lost shows in the weights
QUIET = {"quiet": True, "tensorboard": False}


class Folder:
    """Runs to damage: `plain` and `adaptive` are stopped two updates before their end, `finished` is at its end, `scale` a comparison."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.weights = {}
        for name, recipe in (("plain", PLAIN), ("adaptive", ADAPTIVE)):
            fit("digits/mlp", recipe, out=root / name, evaluate_every=32 / 1297, keep_checkpoints=True, **QUIET)
            self.weights[name] = weights(root / name)
            if name == "plain":
                shutil.copytree(root / name, root / "finished", ignore=shutil.ignore_patterns("update-*"))
            kept = sorted((root / name).glob("update-*.pt"))
            shutil.copy(kept[-3], root / name / "last.pt")
            for path in kept:
                path.unlink()
            (root / name / "result.json").unlink()
            (root / name / OWNER).write_text(json.dumps(Owner.this_process()._asdict()))  # of a run that was killed
        short = PLAIN.replace({"budget.updates": None, "budget.samples": 128})
        scale("digits/mlp", to=64, rule="linear", seeds=1, max_seeds=1, recipe=short, out=root / "scale", quiet=True)
        (root / "study").mkdir()
        lines = [{"settings": {"optimizer.lr": 0.1 * i}, "seed": 0, "validation_score": 0.5} for i in range(9)]
        (root / "study" / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def copy(self, name: str, to: Path) -> Path:
        """A folder to spoil."""
        shutil.copytree(self.root / name, to, ignore=shutil.ignore_patterns("tensorboard"))
        return to


def weights(out: Path) -> dict:
    """Of the last checkpoint."""
    return torch.load(out / "last.pt", weights_only=True)["model"]


# ------------------------------------------------------------------------------------------------ what happens to a file


def flip_bits(chance: random.Random, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(chance.choice([1, 1, 3, 20])):
        if out:
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.choice([0, 1, chance.randrange(len(content) + 1), max(0, len(content) - 3)])]


def insert(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content) + 1)
    what = [b"\0" * 512, b"\xff\xfe", b"12", b"null", b"[]", b"\r", b"\n", b"{", b'"', b"\n12\n", b"\n[]\n", b"\nnull\n", b"\xef\xbb\xbf"]
    what += [b"[" * 5000, b"9" * 5000, bytes(chance.randrange(256) for _ in range(40))]
    return content[:at] + chance.choice(what) + content[at:]


def delete(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + content[at + chance.choice([1, 2, 50, 700]) :]


def double(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content) + 1)
    size = chance.choice([1, 10, 200, 1500])
    return content[: at + size] + content[at : at + size] + content[at + size :]


def zeros(chance: random.Random, content: bytes) -> bytes:
    """What a file system leaves after a power failure."""
    at = chance.randrange(len(content) + 1)
    size = min(chance.choice([8, 512, 4096]), len(content) - at)
    return content[:at] + b"\0" * size + content[at + size :]


def windows_ends(chance: random.Random, content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def double_lines(chance: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    size = chance.randrange(1, 5)
    return b"".join([*lines[: at + size], *lines[at : at + size], *lines[at + size :]])


def drop_lines(chance: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    return b"".join([*lines[:at], *lines[at + chance.randrange(1, 5) :]])


def swap_lines(chance: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    chance.shuffle(lines)
    return b"".join(lines)


BYTES = (flip_bits, cut, insert, delete, double, zeros)
LINES = (*BYTES, windows_ends, double_lines, drop_lines, swap_lines)
VALUES = (None, True, False, 0, -1, 12, 2**62, 10**30, 0.5, -1e308, 1e308, float("nan"), float("inf"), "", "x", "\ud800", [], {}, ["x"])


def strange_value(chance: random.Random, old: object) -> object:
    """Another value, now and then one that is near."""
    if isinstance(old, int | float) and not isinstance(old, bool) and chance.random() < 0.2:
        return chance.choice([old + 1, -old, str(old), [old], 10**12 * (old + 1)])
    return chance.choice(VALUES)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The path of every value inside of plain ones."""
    found = [path] if path else []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) and len(value) < 700 else ()
    for key, each in inside:
        found += places(each, (*path, key))
    return found


def edit(chance: random.Random, value: object, path: tuple, change: object) -> object:
    """A copy with one value changed, or left out where `change` says so by returning `...`."""
    if not path:
        return change(value)
    key, rest = path[0], path[1:]
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    new = edit(chance, items[key], rest, change)
    if new is ...:
        del items[key]
    else:
        items[key] = new
    return items if isinstance(value, dict) else type(value)(items.values())


def change_structure(chance: random.Random, value: object) -> object:
    """Leave out, rename, wrap or replace something."""
    path = chance.choice(places(value))
    how = chance.choice(["drop", "strange", "strange", "wrap", "add"])
    match how:
        case "drop":
            return edit(chance, value, path, lambda old: ...)
        case "wrap":
            return edit(chance, value, path, lambda old: [old])
        case "add":
            return edit(chance, value, path[:-1], lambda old: {**old, "of a newer version": 1} if isinstance(old, dict) else [*old, "x"])
    return edit(chance, value, path, lambda old: strange_value(chance, old))


def change_json(chance: random.Random, content: bytes) -> bytes:
    return json.dumps(change_structure(chance, json.loads(content)), indent=2).encode()


def change_json_line(chance: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = json.dumps(change_structure(chance, json.loads(lines[at]))).encode() + b"\n"
    return b"".join(lines)


def change_toml(chance: random.Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    at = chance.randrange(len(lines))
    name = lines[at].partition("=")[0].strip() if "=" in lines[at] else "seed"
    values = ["'x'", "-1", "1e999", "nan", "[]", "{}", "true", "1979-05-27", "9" * 5000, "9" * 30, "[" * 5000, "2.5", '"\\u0000"', "'lars'"]
    lines[at] = chance.choice(
        [f"{name} = {chance.choice(values)}", "", "[optimizer]", "a." * 1500 + "b = 1", f"new = {chance.choice(values)}"]
    )
    return "\n".join(lines).encode()


def change_checkpoint(chance: random.Random, content: bytes) -> bytes:
    """With right checksums, as only a program could."""
    import io

    state = torch.load(io.BytesIO(content), weights_only=True)
    tensors = [path for path in places(state) if isinstance(at(state, path), torch.Tensor)]
    if chance.random() < 0.4:
        changes = [
            lambda t: t[:-1] if t.dim() else t.reshape(1),
            lambda t: t.reshape(1, *t.shape),
            lambda t: t.to(torch.int32) if t.is_floating_point() else t.double(),
            lambda t: t.tolist(),
            lambda t: t.flatten()[:1].clone(),
            lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t[:0],
            lambda t: t.to_sparse() if t.dim() else t,
            lambda t: {"t": t},
            lambda t: None,
        ]
        state = edit(chance, state, chance.choice(tensors), chance.choice(changes))
    else:
        state = change_structure(chance, state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def at(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return value


# ------------------------------------------------------------------------------------------------ who reads it


class Silent(AssertionError):
    """Something was lost or mixed, and nobody was told."""


def resume_record(folder: Folder, out: Path, name: str) -> str:
    """Resume a run whose record is damaged."""
    before, mutated = (folder.root / name / "record.jsonl").read_bytes(), (out / "record.jsonl").read_bytes()
    told = resume(folder, out, name)
    there = [json.loads(line) for line in (out / "record.jsonl").read_bytes().splitlines()]
    saved_at = torch.load(folder.root / name / "last.pt", weights_only=True)["progress"][0]
    intact = set(mutated.split(b"\n"))
    expected = [line for line in map(json.loads, before.splitlines()) if kept_by_a_resume(line, saved_at)]
    lost = [line for line in expected if json.dumps(line).encode() in intact and line not in there]
    if lost and not (told and list(out.glob("record.jsonl.damaged-*"))):
        raise Silent(f"{len(lost)} intact lines went")
    updates = [line["update"] for line in there if line["kind"] == "update"]
    if len(set(updates)) < len(updates):
        raise Silent("an update is there twice")
    wanted = {line["update"] for line in map(json.loads, before.splitlines()) if line["kind"] == "update"}
    if set(updates) != wanted and not told:
        raise Silent(f"updates {sorted(wanted - set(updates))} went")
    if there[0]["kind"] != "start" or there[-1]["kind"] != "end":
        raise Silent("no head, or no end")
    return "repaired with a warning" if told else "works"


def kept_by_a_resume(line: dict, clock: tuple) -> bool:
    samples = line.get("samples", 0)
    again = line["kind"] in ("end", "diverged") or line.get("split") == "test" or (line["kind"] == "batch" and samples == clock[0])
    return samples <= clock[0] and not again


def resume(folder: Folder, out: Path, name: str) -> list[str]:
    """Resume a run to its end, and compare its weights; what was warned about."""
    recipe = {"plain": PLAIN, "adaptive": ADAPTIVE}[name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit("digits/mlp", recipe, out=out, resume=True, evaluate_every=32 / 1297, **QUIET)
    there = weights(out)
    if any(not torch.equal(value, there[key]) for key, value in folder.weights[name].items()):
        raise Silent("other weights")
    return [str(w.message) for w in told]


def resume_checkpoint(folder: Folder, out: Path, name: str) -> str:
    return "works" if not resume(folder, out, name) else "works with a warning"


def report(folder: Folder, out: Path, name: str) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_report(out)
    return "report with a warning" if told else "report"


def read_finished(folder: Folder, out: Path, name: str) -> str:
    """The result of a run that is finished."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = finished_result(out, PLAIN)
    assert isinstance(result, Result)
    for field, kind in Result.__annotations__.items():
        value = getattr(result, field)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise Silent(f"{field} = {value!r}")
    return "works with a warning" if told else "works"


def load_recipe(folder: Folder, out: Path, name: str) -> str:
    Recipe.load(out / "recipe.toml")
    Recipe.load(out / "recipe.toml", saved=True)
    return "works"


def read_study(folder: Folder, out: Path, name: str) -> str:
    """A search's lines, twice: what was repaired needs no second repair."""
    path = out / "trials.jsonl"
    intact = set(path.read_bytes().split(b"\n"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        lines = stored_lines(path, _identity)
    original = [json.loads(line) for line in (folder.root / "study" / "trials.jsonl").read_bytes().splitlines()]
    if any(line not in lines and json.dumps(line).encode() in intact for line in original):
        raise Silent("an intact line went")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stored_lines(path, _identity) == lines
    return "repaired with a warning" if told else "works"


def list_runs(folder: Folder, out: Path, name: str) -> str:
    """All runs below the folder: each keeps its row, whatever became of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = runs(out)
        for column in ("run", "score", "updates", "seconds", "state", *table.labels):
            assert len(table.sorted_by(column).table(80).rows) == len(table.runs)
        json.dumps(table.to_dict(), allow_nan=False)
        table.to_csv()
    if [row.path for row in table.runs] != [row.path for row in runs(folder.root / name).runs]:
        raise Silent("a run went")
    for row in table.runs:
        if (row.state == "damaged") != bool(row.note) or "\n" in row.note:
            raise Silent(f"{row.state}: {row.note!r}")
    return "works, damage told" if any(row.note for row in table.runs) else "works"


KINDS = {  # name: folder, file, what happens to it, who reads it, how often beside the others
    "record": ("plain", "record.jsonl", (*LINES, change_json_line), resume_record, 6),
    "record of an adaptive run": ("adaptive", "record.jsonl", (*LINES, change_json_line), resume_record, 4),
    "record, report": ("plain", "record.jsonl", (*LINES, change_json_line), report, 1),
    "record of an adaptive run, report": ("adaptive", "record.jsonl", (*LINES, change_json_line), report, 1),
    "comparison": ("scale", "batch-64-linear.comparison.json", (*BYTES, change_json, change_json), report, 1),
    "result": ("finished", "result.json", (*BYTES, change_json, change_json), read_finished, 6),
    "recipe": ("finished", "recipe.toml", (*BYTES, windows_ends, change_toml, change_toml, change_toml), load_recipe, 6),
    "recipe of a finished run": ("finished", "recipe.toml", (*BYTES, change_toml, change_toml), read_finished, 4),
    "recipe of a stopped run": ("plain", "recipe.toml", (*BYTES, change_toml, change_toml), resume_checkpoint, 2),
    "checkpoint": ("plain", "last.pt", (*BYTES, *[change_checkpoint] * 10), resume_checkpoint, 8),
    "checkpoint of an adaptive run": ("adaptive", "last.pt", (*BYTES, *[change_checkpoint] * 10), resume_checkpoint, 8),
    "owner of a folder": ("plain", OWNER, (*BYTES, change_json, change_json), resume_checkpoint, 1),
    "record, list": ("plain", "record.jsonl", (*LINES, change_json_line), list_runs, 1),
    "result, list": ("finished", "result.json", (*BYTES, change_json, change_json), list_runs, 1),
    "recipe, list": ("adaptive", "recipe.toml", (*BYTES, change_toml, change_toml), list_runs, 1),
    "checkpoint, list": ("plain", "last.pt", (*BYTES, change_checkpoint), list_runs, 1),
    "owner of a folder, list": ("plain", OWNER, (*BYTES, change_json, change_json), list_runs, 1),
    "lines of a study": ("study", "trials.jsonl", (*LINES, change_json_line), read_study, 3),
}


def attempt(folder: Folder, kind: str, number: int, out: Path) -> str:
    """Damage a file of a fresh copy and read it.

    Returns:
        What came of it, "refused" for a `UserError` of one line.

    Raises:
        AssertionError: With what went wrong, and the kind and number to repeat it by.
    """
    name, file, mutations, read, _ = KINDS[kind]
    chance = random.Random(f"{kind} {number}")
    folder.copy(name, out)
    mutation = chance.choice(mutations)
    path = out / file
    path.write_bytes(mutation(chance, path.read_bytes()))
    try:
        return read(folder, out, name)
    except UserError as error:
        text = str(error)
        if "\n" in text or not text.strip():
            raise AssertionError(f"{kind} {number} ({mutation.__name__}): not one line: {text!r}") from error
        if path.name not in text and str(out) not in text:
            raise AssertionError(f"{kind} {number} ({mutation.__name__}): which file? {text!r}") from error
        return "refused"
    except Exception as error:
        raise AssertionError(f"{kind} {number} ({mutation.__name__}): {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(out)


def shares(number: int) -> dict[str, int]:
    """How many of each kind."""
    total = sum(weight for *_, weight in KINDS.values())
    return {kind: -(-number * weight // total) for kind, (*_, weight) in KINDS.items()}


def count(folder: Folder, kind: str, number: int, out: Path, *, start: int = 0) -> tuple[Counter, list[str]]:
    """What came of so many of a kind, and what went wrong."""
    counts, wrong = Counter(), []
    for i in range(start, start + number):
        try:
            counts[attempt(folder, kind, i, out)] += 1
        except AssertionError as error:
            wrong.append(str(error))
    return counts, wrong
