"""Machines that share a data base: against a real PostgreSQL server behind a socket in its own folder; started and stopped here."""

import getpass
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

from bigbatch import UserError
from bigbatch.study.steps import steps
from bigbatch.study.steps.storage import Storage

PASSWORD = "not: a secret/at all"


def programs():
    """Folder of the server's programs, which Debian keeps off the path."""
    found = shutil.which("initdb")
    return Path(found).parent if found else next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="module")
def server():
    """The URL of a data base; the server refuses to run as root, so for root it runs as the user that its package made."""
    if (folder := programs()) is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    home = Path(tempfile.mkdtemp(prefix="postgresql"))  # a socket's path must be short
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(home, "postgres")

    def run(program, *arguments):
        subprocess.run([*as_user, str(folder / program), *map(str, arguments)], cwd=home, check=True, capture_output=True, timeout=LIMIT_S)

    user, data = "postgres" if as_user else getpass.getuser(), home / "data"
    (home / "password").write_text(PASSWORD)
    if as_user:
        shutil.chown(home / "password", "postgres")
    run("initdb", "-D", data, "-U", user, "-A", "scram-sha-256", "--pwfile", home / "password")
    run("pg_ctl", "-D", data, "-w", "-l", home / "log", "-o", f"-c listen_addresses='' -k {home}", "start")
    try:
        yield f"postgresql+psycopg://{user}:not%3A%20a%20secret%2Fat%20all@/postgres?host={home}"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home)


@pytest.mark.slow
def test_a_second_machine_finds_the_trials_of_the_first(server, tmp_path):
    given = {"batches": [32, 128], "target": 0.7, "trials": 3, "max_epochs": 2, "quiet": True, "storage": server}
    first = steps("digits/mlp", **given, out=tmp_path / "one")
    said = []
    second = steps("digits/mlp", **given, out=tmp_path / "other", say=said.append)
    assert said == []
    assert second.to_dict() == first.to_dict()
    assert not (tmp_path / "one" / "trials.db").exists()


@pytest.mark.slow
def test_a_password_is_not_told(server):
    with pytest.raises(UserError) as refused:
        Storage(server.replace("secret", "guess"), shared=True)
    assert "guess" not in str(refused.value)
    assert "storage /postgres?host=" in str(refused.value)
