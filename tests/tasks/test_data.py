"""Where data is looked for, and what happens when it is missing or damaged."""

import gzip
import shutil
import urllib.error

import pytest
from sklearn.datasets import load_digits

from bigbatch.core.checks import DataError
from bigbatch.tasks import load_task
from bigbatch.tasks.data import digits as digits_module
from bigbatch.tasks.data import fashion_mnist as module
from bigbatch.tasks.data import locate
from bigbatch.tasks.data.digits import read_digits

FILES = list(module.SHA256)


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(module.SYSTEM, folder)
    return folder


def splits(data):
    module.fashion_mnist.cache_clear()
    return load_task("fashion_mnist/mlp", data=data).splits()


def test_sizes_and_scale(copy):
    train, validation, test = splits(copy)
    assert [len(s) for s in (train, validation, test)] == [55_000, 5_000, 10_000]
    inputs, targets = train.tensors
    assert inputs.shape == (55_000, 1, 28, 28)
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01
    assert targets.bincount().min() > 5_400


def test_digits_splits_are_disjoint_and_standardised():
    train, validation, test = load_task("digits/mlp").splits()
    assert [len(s) for s in (train, validation, test)] == [1297, 200, 300]
    assert abs(train.tensors[0].mean()) < 0.02


def test_recompressed_files_are_the_same_data(copy):
    path = copy / FILES[1]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert len(splits(copy).train) == 55_000


@pytest.mark.parametrize("keep", [0, 10, 20_000])
def test_a_truncated_file(copy, keep):
    path = copy / FILES[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{FILES[0]}: (is truncated or damaged|SHA-256 .*) .*delete it and get it again: on Debian"):
        splits(copy)


def test_a_damaged_file_of_the_right_shape(copy):
    path = copy / FILES[1]
    labels = bytearray(gzip.decompress(path.read_bytes()))
    labels[100] = (labels[100] + 1) % 10
    path.write_bytes(gzip.compress(bytes(labels)))
    with pytest.raises(
        DataError, match=r"SHA-256 of the content is [0-9a-f]{16}\.\.\., expected bad3541b69d91243\.\.\.: the file is damaged"
    ):
        splits(copy)


def test_an_explicit_folder_is_the_only_place_searched(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz not found; tried [^,]*empty[^,]*; on Debian or Ubuntu `apt-get"):
        splits(tmp_path / "empty")


def test_the_environment_names_a_folder(copy, monkeypatch):
    monkeypatch.setenv("BIGBATCH_DATA", str(copy))
    monkeypatch.setattr(module, "SYSTEM", copy / "nowhere")
    assert len(splits(None).test) == 10_000


def test_missing_everywhere_and_no_network(tmp_path, monkeypatch):
    def no_network(url, timeout):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(locate.urllib.request, "urlopen", no_network)
    monkeypatch.setattr(module, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        splits(None)
    text = str(caught.value)
    for part in ("tried", "cache/fashion-mnist", "system/", "(Temporary failure in name resolution)", "apt-get install", "--data"):
        assert part in text


@pytest.mark.parametrize("damaged", [False, True])
def test_a_download_is_verified_and_kept(tmp_path, monkeypatch, damaged):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        path = module.SYSTEM_BEFORE / url.rpartition("/")[2]
        if damaged:
            (tmp_path / "half").write_bytes(path.read_bytes()[:1000])
            path = tmp_path / "half"
        return path.open("rb")

    monkeypatch.setattr(module, "SYSTEM_BEFORE", module.SYSTEM, raising=False)
    monkeypatch.setattr(locate.urllib.request, "urlopen", answer)
    monkeypatch.setattr(module, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path / "cache"))
    if damaged:
        with pytest.raises(DataError, match="is truncated or damaged"):
            splits(None)
        assert not (tmp_path / "cache" / "fashion-mnist" / FILES[0]).exists()
    else:
        assert len(splits(None).train) == 55_000
        assert len(asked) == 4
        splits(None)
        assert len(asked) == 4  # now from the cache


def test_digits_are_those_of_scikit_learn():
    theirs = load_digits()
    images, labels = read_digits()
    assert (images.numpy() == theirs.images).all()
    assert (labels.numpy() == theirs.target).all()


def test_damaged_digits(tmp_path, monkeypatch):
    whole = digits_module.FILE.read_bytes()
    monkeypatch.setattr(digits_module, "FILE", tmp_path / "digits.csv.gz")
    for damaged in (whole[:1000], gzip.compress(gzip.decompress(whole).replace(b"0,0,5,13", b"0,0,5,12", 1))):
        (tmp_path / "digits.csv.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"digits\.csv\.gz: .*damaged.*; install bigbatch anew"):
            read_digits()
