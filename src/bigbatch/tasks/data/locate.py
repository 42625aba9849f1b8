"""Where a data file is looked for: an explicit folder, the cache folder, the system's data folder, its official home."""

import hashlib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import platformdirs

from bigbatch.core.checks import DataError
from bigbatch.core.environment import CACHE, read_variable
from bigbatch.core.storage.reading import reason
from bigbatch.core.storage.writing import make_folder, write_atomically

TIMEOUT_S = 20.0


def cache_folder() -> Path:
    """The user's cache folder for bigbatch; `BIGBATCH_CACHE` overrides it."""
    return Path(read_variable(CACHE) or platformdirs.user_cache_dir("bigbatch", appauthor=False))


def read_verified(path: Path, *, sha256: str, decode: Callable[[bytes], bytes], remedy: str) -> bytes:
    """Read, decode and verify one file.

    Args:
        path: The file.
        sha256: SHA-256 of the *decoded* content, so that any recompression of the same data is accepted.
        decode: From the file's bytes to the content, such as `gzip.decompress`.
        remedy: What to do about a damaged file.

    Returns:
        The decoded content.

    Raises:
        DataError: If the file is unreadable, truncated or not the expected one.
    """
    try:
        content = decode(path.read_bytes())
    except Exception as error:  # gzip alone raises four unrelated kinds
        raise DataError(f"{path}: is truncated or damaged ({error}); {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{path}: SHA-256 of the content is {found[:16]}..., expected {sha256[:16]}...: the file is damaged; {remedy}")
    return content


def locate(
    dataset: str,
    file: str,
    *,
    sha256: str,
    decode: Callable[[bytes], bytes],
    data: Path | None,
    system: Path,
    urls: tuple[str, ...],
    how_to_get: str,
) -> bytes:
    """Content of one file of a data set from the first place that has it.

    Returns:
        The decoded, verified content.

    Raises:
        DataError: If no place has it (lists what was tried and how to get it), or the one found is damaged.
    """
    cache = cache_folder() / dataset
    folders = [data] if data is not None else [cache, system]
    for folder in folders:
        if _is_file(folder / file):
            return read_verified(folder / file, sha256=sha256, decode=decode, remedy=f"delete it and get it again: {how_to_get}")
    tried = [str(folder / file) for folder in folders]
    if data is None:
        for url in urls:
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                    raw = answer.read()
            except OSError as error:
                tried.append(f"{url} ({getattr(error, 'reason', error)})")
                continue
            make_folder(cache)
            partial = cache / f"{file}.unverified"
            write_atomically(partial, raw)
            content = read_verified(partial, sha256=sha256, decode=decode, remedy="try again later")
            partial.rename(cache / file)
            return content
    raise DataError(f"data set {dataset}: {file} not found; tried {', '.join(tried)}; {how_to_get}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}; check --data") from None
