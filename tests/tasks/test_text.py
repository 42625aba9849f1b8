"""Text data: where it is looked for, how it is split, and what can be wrong with it; and the models over bytes."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bigbatch import Recipe, fit
from bigbatch.cli.options.settings import find_recipe
from bigbatch.core.checks import DataError, UserError
from bigbatch.tasks import load_task
from bigbatch.tasks.data import text
from bigbatch.tasks.models import GPT
from bigbatch.tasks.models.transformer import rotary, rotated
from bigbatch.tasks.text import CONTEXT

VERSE = b"Ge1:1 In the beginning God created the heaven and the earth.\n"
TINY = {
    "model": {"width": 16, "num_blocks": 1, "num_heads": 2},
    "num_train_samples": 51,
    "batch.global_batch": 10,
    "budget": {"updates": 4},
}


@pytest.fixture
def written(tmp_path):
    """Writes files below a folder, and gives the folder."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / "text" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "text"

    return write


def bytes_of(splits):
    """The training text, put together again."""
    inputs, targets = splits.train.tensors
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    return inputs.flatten().numpy().tobytes()


def test_the_bible_is_unpacked_once_and_verified(tmp_path, monkeypatch):
    assert shutil.which("bible"), "apt-get install bible-kjv"
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path))
    train, validation, test = load_task("text/gpt").splits()
    assert [len(part) for part in (train, validation, test)] == [30_968, 1_720, 1_720]
    assert Recipe.named("text/gpt").num_train_samples == Recipe.named("text/lstm").num_train_samples == len(train)
    stored = tmp_path / "text" / "kjv.txt"
    assert stored.read_bytes().startswith(VERSE)
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == text.SHA256
    monkeypatch.setattr(text, "PROGRAM", ("no-such-program",))
    assert bytes_of(load_task("text/lstm").splits()).startswith(VERSE)
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"kjv.txt: SHA-256 .* damaged; delete it"):
        load_task("text/gpt").splits()


def test_a_copy_in_the_data_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "kjv.txt").write_bytes(text.text_of(None).numpy().tobytes())
    monkeypatch.setenv("BIGBATCH_DATA", str(tmp_path))
    monkeypatch.setattr(text, "PROGRAM", ("no-such-program",))
    shutil.rmtree(tmp_path / "cache")
    assert bytes_of(load_task("text/gpt").splits()).startswith(VERSE)


def test_another_edition_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "PROGRAM", ("echo", "In the beginning"))
    with pytest.raises(DataError, match="another edition; give a text with --data"):
        load_task("text/gpt").splits()


def test_without_it_the_standard_library_takes_its_place_and_this_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "PROGRAM", ("no-such-program",))
    with pytest.warns(UserWarning, match=r"standard library take its place, and scores compare with those of no other version"):
        train, *_ = load_task("text/gpt").splits()
    assert len(train) == 30_968  # the recipes' number
    with pytest.warns(UserWarning, match="standard library"):
        assert torch.equal(load_task("text/gpt").splits().train.tensors[0], train.tensors[0])


def test_a_file_and_a_folder(written):
    folder = written(b=VERSE * 60, a__c=b"A" * 600, **{".hidden": b"\0"})
    assert bytes_of(load_task("text/gpt", data=folder / "b").splits()) == (VERSE * 60)[: 25 * CONTEXT]
    joined = b"A" * 600 + VERSE * 60
    assert bytes_of(load_task("text/gpt", data=folder).splits()) == joined[: int(0.9 * len(joined) - 1) // CONTEXT * CONTEXT]


def test_tokens_are_mapped_and_not_copied(written):
    path = written(a=VERSE * 100) / "a"
    before = text.text_of(path)
    splits = text.split_text(before, context=8)
    for part in splits:
        for tensor in part.tensors:
            assert tensor.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no such file or folder; check --data"),
        ({".git": b"x"}, r"holds no file; give a text file, or a folder of them, with --data"),
        ({"empty": b""}, r"the text has 0 bytes: too short for one window of 128 in each .* at least 2,580"),
        ({"short": b"a" * 2_000}, r"the text has 2,000 bytes: too short"),
        ({"a": VERSE, "picture.png": b"\x89PNG\0\0"}, r"picture.png: holds bytes of zero, so it is no text"),
    ],
    ids=["missing", "empty folder", "empty file", "short", "binary"],
)
def test_bad_text_is_refused(files, message, written, tmp_path):
    written(**files)
    with pytest.raises(DataError, match=message):
        load_task("text/gpt", data=tmp_path / "text").splits()


def test_the_least_that_is_named_is_enough(written):
    assert all(len(part) == 1 for part in load_task("text/gpt", data=written(a=b"a" * 2_580)).splits()[1:])


def test_another_encoding_is_read_as_bytes_and_said(written):
    folder = written(latin="déjà vu, ".encode("latin-1") * 400)
    with pytest.warns(UserWarning, match=r"latin: byte 1 is not UTF-8: the model reads bytes, so any encoding will do"):
        assert bytes_of(load_task("text/gpt", data=folder / "latin").splits()).startswith(b"d\xe9j\xe0")


def test_a_letter_that_a_file_cuts_is_no_error(written, recwarn):
    load_task("text/gpt", data=written(a="é".encode() * 2**20)).splits()  # its first MiB is looked at
    assert not [warning for warning in recwarn if "UTF-8" in str(warning.message)]


def test_a_vocabulary_that_is_too_small_for_the_text(written):
    task = load_task("text/gpt", data=written(a="é".encode() * 2_000))
    with pytest.raises(DataError, match=r"model.vocab_size = 128: the text holds bytes up to 195; raise it"):
        task.model(vocab_size=128)
    assert task.model(vocab_size=196).head.out_features == 196


def test_a_checkpoint_of_another_vocabulary_is_refused(written, tmp_path):
    data = written(a=VERSE * 120)
    base = Recipe.named("text/gpt").replace(TINY)
    fit(load_task("text/gpt", data=data), base.replace({"model.vocab_size": 128}), out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(Exception, match=r"vocab_size"):
        fit(load_task("text/gpt", data=data), base, out=tmp_path / "run", resume=True, quiet=True)


@pytest.mark.parametrize("name", ["text/gpt", "text/gpt-muon", "text/lstm", "text/lstm-muon"])
def test_learns_letters(name, written):
    """A verse again and again: the loss falls far below that of its letters drawn at random."""
    recipe = Recipe.named(name)
    small = TINY["model"] if "gpt" in name else {"units": 32, "num_layers": 1}
    recipe = recipe.replace({**TINY, "model": small, "budget": {"updates": 200}, "optimizer.lr": 0.02})
    result = fit(load_task(recipe.task, data=written(a=VERSE * 120)), recipe, quiet=True)
    shares = torch.tensor(list(VERSE)).bincount().double() / len(VERSE)
    assert result.test_score < 0.5 * -shares[shares > 0].log().mul(shares[shares > 0]).sum()


def model(**options):
    torch.manual_seed(0)
    return GPT(**{"context": 16, "width": 32, "num_blocks": 2, "num_heads": 4, "vocab_size": 50, "tied": False} | options)


def test_gpt_starts_near_a_uniform_guess_and_sees_no_future():
    gpt, tokens = model(), torch.randint(50, (8, 16), dtype=torch.uint8)
    logits = gpt(tokens)
    assert abs(F.cross_entropy(logits.flatten(0, 1), tokens.flatten().long()).item() - torch.tensor(50.0).log()) < 0.7
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    after = gpt(changed)
    assert torch.equal(after[:, :9], logits[:, :9])
    assert not torch.allclose(after[:, 9:], logits[:, 9:])
    assert torch.allclose(gpt(tokens[:, :5]), logits[:, :5], atol=1e-5)  # a shorter context


def test_rotary_positions_turn_complex_numbers():
    """By complex arithmetic; and products of queries and keys depend on their distance alone."""
    x = torch.randn(7, 10, dtype=torch.float64)
    cos, sin = (t.double() for t in rotary(7, 10))
    turned = rotated(x, cos, sin)
    angles = torch.arange(7.0, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(5, dtype=torch.float64) / 5)
    expected = torch.complex(x[:, :5], x[:, 5:]) * torch.exp(1j * angles)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], 1), rtol=1e-6, atol=1e-6)
    same = rotated(x[:1].expand(7, -1), cos, sin)
    products = same @ same.T
    for distance in range(7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_one_weight():
    tied, free = model(tied=True), model()
    assert tied.head.weight is tied.embed.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 50 * 32


def test_the_command_line_takes_a_shipped_recipe_by_name(written, tmp_path):
    data = written(a=VERSE * 120)
    sets = [f"--set={name}={value}" for name, value in {"num_train_samples": 51, "budget.epochs": 0.2, "model.num_blocks": 1}.items()]
    command = [sys.executable, "-m", "bigbatch", "train", "text/gpt", "--recipe", "text/gpt-muon", "--data", str(data), *sets]
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "nats per byte" in done.stdout
    assert Recipe.load(tmp_path / "run" / "recipe.toml").optimizer.name == "muon"


@pytest.mark.parametrize("name", ["text/gpt", "text/lstm"])
@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_other_precisions(name, precision, written):
    small = TINY["model"] if "gpt" in name else {"units": 16}
    recipe = Recipe.named(name).replace({**TINY, "model": small, "precision": precision})
    assert fit(load_task(name, data=written(a=VERSE * 120)), recipe, quiet=True).test_score < 5.7


def test_a_recipe_s_name_is_no_task():
    with pytest.raises(UserError, match="text/gpt-muon: is a recipe of the task text/gpt; give text/gpt --recipe text/gpt-muon"):
        find_recipe("text/gpt-muon", None, None)
    assert find_recipe("text/gpt", Path("text/gpt-muon"), None).optimizer.name == "muon"
