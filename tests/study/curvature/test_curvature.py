import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bigbatch import Recipe, fit
from bigbatch.core.checks import UserError
from bigbatch.report import write_report
from bigbatch.study.checkpoints import Candidate, match, open_run
from bigbatch.study.curvature.curvature import RESULT, curvature
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.data.sampler import sample_indices

TINY = Recipe.named("digits/mlp").replace({"model.hidden": 4, "budget.epochs": 3, "precision": "float64"})
FEW = {"samples": 70, "eigenvalues": 3, "tolerance": 1e-6, "points": 4, "quiet": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, batch in (("small", 32), ("large", 128)):
        recipe = TINY.replace({"batch.global_batch": batch})
        fit("digits/mlp", recipe, out=folder / name, keep_checkpoints=True, quiet=True, tensorboard=False)
    return folder


def stored(folder):
    return json.loads((folder / RESULT).read_text())


def dense_hessian(folder, file, samples=70):
    run = open_run(folder, device=torch.device("cpu"))
    model, _ = run.load(folder / file)
    inputs, targets = (t[sample_indices(0, 1297, 0, samples)] for t in run.task.splits().train.tensors)
    names, weights = zip(*model.named_parameters(), strict=True)

    def loss(flat):
        pieces = torch.split(flat, [p.numel() for p in weights])
        of = {name: piece.view(p.shape) for name, piece, p in zip(names, pieces, weights, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, of, (inputs.double(),)), targets)

    flat = torch.cat([p.detach().flatten() for p in weights])
    return torch.autograd.functional.hessian(loss, flat), loss(flat).item()


def test_the_numbers_are_those_of_the_dense_hessian(runs):
    study = curvature(runs / "large", **FEW)
    (seen,) = study.runs
    dense, loss = dense_hessian(runs / "large", "last.pt")
    values = torch.linalg.eigvalsh(dense)
    assert seen.loss == pytest.approx(loss, rel=1e-9)
    assert seen.eigenvalues == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-6)
    assert seen.trace[0] == pytest.approx(dense.trace().item(), rel=0.1)
    assert seen.range[0] == pytest.approx(values[0].item(), rel=0.05)
    assert seen.range[1] == pytest.approx(values[-1].item(), rel=0.01)
    assert all(rise.value > 0 for rise in seen.sharpness)
    assert seen.checkpoint == "last.pt"
    assert seen.clock.updates == 31
    (again,) = curvature(runs / "large", **FEW).runs
    assert {**vars(again), "seconds": 0} == {**vars(seen), "seconds": 0}


def test_two_runs_are_compared_where_their_losses_are_alike(runs):
    ends = curvature(runs / "small", against=runs / "large", matched=False, **FEW)
    assert [run.checkpoint for run in ends.runs] == ["last.pt", "last.pt"]
    assert ends.loss_ratio > 1.5, "what the test is about: the small batch came further"
    assert any(doubt.startswith("the losses differ by a factor of") for doubt in ends.doubts())
    assert "against" in ends.sentence()
    a = ends.runs[0]
    assert a.slope == pytest.approx(0.05 * a.gradient / next(s.value for s in a.sharpness if s.name.startswith("SAM")))
    study = curvature(runs / "small", against=runs / "large", **FEW)
    a, b = study.runs
    assert a.clock.updates < 123, "so it goes back"
    assert study.loss_ratio < ends.loss_ratio
    data = stored(runs / "small")
    assert data["matched"] == (study.loss_ratio <= 1.1)
    assert [point["alpha"] for point in data["path"]] == [-1.0, 0.0, 1.0, 2.0]
    assert data["path"][1]["loss"] == pytest.approx(a.loss, rel=1e-9), "there is no batch norm: the line's ends are the runs"
    assert data["path"][2]["loss"] == pytest.approx(b.loss, rel=1e-9)
    assert data["path"][3]["loss"] > data["path"][2]["loss"]


def test_sharpness_of_a_slope_is_doubted(runs):
    study = curvature(runs / "large", **FEW)
    for part, words in ((0.35, ["no minimum: much of SAM's rise is the slope, of large (35 %)"]), (0.25, [])):
        rise = next(s.value for s in study.runs[0].sharpness if s.name.startswith("SAM"))
        run = replace(study.runs[0], gradient=part * rise / 0.05)
        doubts = replace(study, runs=(run,)).doubts()
        assert [doubt.split(";")[0] for doubt in doubts if "no minimum" in doubt] == words


def test_the_report_shows_it(runs):
    curvature(runs / "small", against=runs / "large", **FEW)
    page = write_report(runs / "small").read_text()
    plots = set(re.findall(r'aria-label="([^"]+)"', page))
    line = {"Training loss on the line through both", "Validation accuracy on the line through both"}
    assert plots > {"Spectral density of the Hessian", *line}
    for words in ("Spectrum of the Hessian", "Sharpness", "second / first", "Of the mean loss over 70 training samples, 310 parameters"):
        assert words in page
    curvature(runs / "large", **FEW)
    page = write_report(runs / "large").read_text()
    assert "Spectral density of the Hessian" in page
    assert not any(title in page for title in line)
    (runs / "large" / RESULT).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        write_report(runs / "large")
    (runs / "large" / RESULT).unlink()
    assert "Spectral density" not in write_report(runs / "large").read_text()


@pytest.mark.slow
@pytest.mark.bit_for_bit
def test_batch_norm_is_evaluated_as_saved_and_computed_anew_on_the_line(tmp_path):
    class Normed(DigitsMLP):
        name = "normed"

        def model(self):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 10))

    recipe = TINY.replace({"task": "normed", "batch.ghost_batch": 32, "model": {}})
    fit(Normed(), recipe, out=tmp_path, quiet=True, tensorboard=False)
    study = curvature(tmp_path, against=tmp_path, task=Normed(), **FEW)
    run = open_run(tmp_path, task=Normed(), device=torch.device("cpu"))
    assert study.runs[0].eigenvalues == study.runs[1].eigenvalues
    assert len({round(point.loss, 9) for point in study.path}) == 1, "a line from a run to itself is one point"
    assert study.path[0].loss != pytest.approx(study.runs[0].loss, rel=1e-6), "other statistics than the running ones"
    with pytest.raises(UserError, match="unknown task 'normed'"):
        curvature(run.folder, **FEW)


def test_pairs_of_checkpoints():
    def of(*losses):
        return [Candidate(Path(f"{loss}"), loss) for loss in losses]

    assert [c.loss for c in match(of(2.0, 1.0, 0.5), of(2.0, 1.05, 0.7))] == [1.0, 1.05], "the lowest pair within a tenth"
    assert [c.loss for c in match(of(2.0, 0.1), of(1.0, 0.02))] == [2.0, 1.0], "the nearest where there is none"
    assert match(of(0.0), of(1.0, 0.5))[0].loss == 0.0, "a loss of zero is like no other"


def test_bad_input(runs, tmp_path):
    fit("digits/mlp", TINY.replace({"model.hidden": 3, "budget": {"updates": 1}}), out=tmp_path / "other", quiet=True, tensorboard=False)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("recipe.toml", "record.jsonl", "last.pt"):
        data = (runs / "small" / name).read_bytes()
        (damaged / name).write_bytes(data[:-100] if name == "last.pt" else data)
    for run, settings, message in (
        (tmp_path, {}, "holds no checkpoint"),
        (runs / "small", {"against": tmp_path / "nowhere"}, "holds no checkpoint"),
        (runs / "small", {"against": tmp_path / "other"}, r"has another model than .*small \(they differ in 3 of 4 parameters, such as"),
        (damaged, {}, "is truncated or damaged"),
        (runs / "small", {"samples": 0}, "samples = 0: must be a finite number above zero"),
        (runs / "small", {"tolerance": 1e-30}, "tolerance = 1e-30: below the rounding"),
        (runs / "small", {"task": "none:Task"}, "no module named 'none'"),
        (runs / "small", {"task": "fashion_mnist/mlp"}, "does not fit|unknown model option|has .* training samples"),
    ):
        with pytest.raises(UserError, match=message):
            curvature(run, **{**FEW, **settings})
