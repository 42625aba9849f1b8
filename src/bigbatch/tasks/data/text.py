"""Bytes of a text, mapped from a file: the King James Bible of Debian, or any text file or folder of them.

The Bible is Debian's `bible-kjv` (its program, which unpacks) with `bible-kjv-text` (its data), public domain; as one file of a verse a
line, "Ge1:1 In the beginning ...", 4,404,412 bytes. Where neither that nor a copy of it is found, the sources of Python's standard library,
cut to as many bytes, take its place, and this is said: they differ from version to version.
"""

import codecs
import hashlib
import itertools
import subprocess
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from bigbatch.core.checks import DataError
from bigbatch.core.environment import DATA, read_variable
from bigbatch.core.storage.reading import reason
from bigbatch.core.storage.writing import make_folder, write_atomically
from bigbatch.tasks.data.locate import cache_folder, read_verified
from bigbatch.tasks.task import Splits

FILE = "kjv.txt"
PROGRAM = ("bible", "-f", "Genesis1:1-Revelation22:21")
SHA256 = "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"
NUM_BYTES = 4_404_412
HOW_TO_GET = "on Debian or Ubuntu `apt-get install bible-kjv`; elsewhere give a text of your own with --data FILE or FOLDER"
SHARES = (0.9, 0.05)
"""Of the bytes, from the start, that are trained on, and that settings are chosen on; the test set is the rest."""
TIMEOUT_S = 60
LOOKED_AT = 2**20
"""Bytes at the start of a file by which it is told whether it is text."""


def text_of(data: Path | None) -> Tensor:
    """The bytes of a text, uint8 of shape (n,), mapped from its file where there is one.

    Args:
        data: A text file, or a folder whose files, in the order of their paths, make one; None looks for the Bible in the folder that
            BIGBATCH_DATA names, in the cache and behind the program `bible`, and else takes the standard library's sources.

    Raises:
        DataError: If `data` can't be read, or holds a binary file or no text.
    """
    if data is not None:
        return _mapped(data) if data.is_file() else _joined(data)
    folders = [Path(folder) for folder in (read_variable(DATA), cache_folder() / "text") if folder]
    for path in (folder / FILE for folder in folders):
        if path.is_file():
            read_verified(path, sha256=SHA256, decode=bytes, remedy=f"delete it, and it is made again: {HOW_TO_GET}")
            return _mapped(path)
    if (text := _unpacked()) is not None:
        return _stored(text, FILE)
    warnings.warn(
        f"the Bible's text is not here ({HOW_TO_GET}): the sources of Python {sysconfig.get_python_version()}'s standard library take its "
        "place, and scores compare with those of no other version",
        stacklevel=2,
    )
    return _stored(_standard_library(), f"python-{sysconfig.get_python_version()}.txt")


def split_text(tokens: Tensor, *, context: int) -> Splits:
    """Windows of `context` tokens that do not overlap, and for each position the token after it; views of `tokens`.

    Training, validation and test sets are contiguous parts, in this order.

    Args:
        tokens: Shape (n,).
        context: Tokens of a sample.

    Raises:
        DataError: If a part is shorter than one window.

    >>> train, _, test = split_text(torch.arange(200, dtype=torch.uint8), context=4)
    >>> len(train), len(test), [t.tolist() for t in train[1]]
    (44, 2, [[4, 5, 6, 7], [5, 6, 7, 8]])
    """
    n = len(tokens)
    cuts = [0, int(n * SHARES[0]), int(n * sum(SHARES)), n]
    parts = [tokens[start:end] for start, end in itertools.pairwise(cuts)]
    if min(len(part) for part in parts) <= context:
        least = int(-(-(context + 1) // min(SHARES)))
        raise DataError(
            f"the text has {n:,} bytes: too short for one window of {context} in each of the training, validation and test sets; give at "
            f"least {least:,}"
        )
    return Splits(*(_windows(part, context) for part in parts))


def _windows(part: Tensor, context: int) -> TensorDataset:
    num = (len(part) - 1) // context
    return TensorDataset(part[: num * context].view(num, context), part[1 : num * context + 1].view(num, context))


def _mapped(path: Path) -> Tensor:
    try:
        size = path.stat().st_size
        tokens = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: {reason(error) if isinstance(error, OSError) else error}; check --data") from None
    _check_text(path, tokens)
    return tokens


def _check_text(path: Path, tokens: Tensor) -> None:
    head = tokens[:LOOKED_AT].numpy().tobytes()
    if b"\0" in head:
        raise DataError(f"{path}: holds bytes of zero, so it is no text; give text files alone")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(tokens) <= LOOKED_AT)
    except UnicodeDecodeError as error:
        warnings.warn(f"{path}: byte {error.start:,} is not UTF-8: the model reads bytes, so any encoding will do", stacklevel=4)


def _joined(folder: Path) -> Tensor:
    """The files below a folder, hidden ones left out, as one."""
    try:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such file or folder; check --data")
        paths = sorted(
            p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        )
    except OSError as error:
        raise DataError(f"{folder}: {reason(error)}; check --data") from None
    if not paths:
        raise DataError(f"{folder}: holds no file; give a text file, or a folder of them, with --data")
    return _stored(b"".join(_mapped(path).numpy().tobytes() for path in paths))


def _stored(text: bytes, name: str | None = None) -> Tensor:
    """The text, mapped from a file of the cache; from memory where that can't be written."""
    path = cache_folder() / "text" / (name or f"{hashlib.sha256(text).hexdigest()[:16]}.txt")
    try:
        make_folder(path.parent)
        write_atomically(path, text)
        return torch.from_file(str(path), shared=False, size=len(text), dtype=torch.uint8)
    except (OSError, DataError, RuntimeError):
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _unpacked() -> bytes | None:
    """The Bible from the program `bible`; None where that is not installed.

    Raises:
        DataError: If what it prints is not the text that is expected.
    """
    try:
        text = subprocess.run(PROGRAM, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not text:  # the program without its data
        return None
    if (found := hashlib.sha256(text).hexdigest()) != SHA256:
        raise DataError(
            f"`{' '.join(PROGRAM)}`: SHA-256 of what it prints is {found[:16]}..., expected {SHA256[:16]}...: another edition; "
            "give a text with --data"
        )
    return text


def _standard_library() -> bytes:
    """Sources of the running interpreter's standard library, in the order of their paths, as many bytes as the Bible has."""
    parts, size = [], 0
    for path in _sources():
        parts.append(path.read_bytes().replace(b"\0", b""))
        size += len(parts[-1])
        if size >= NUM_BYTES:
            break
    return b"".join(parts)[:NUM_BYTES]


def _sources() -> Iterator[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    yield from sorted(path for path in folder.rglob("*.py") if not {"site-packages", "dist-packages", "test"} & set(path.parts))
