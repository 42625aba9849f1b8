import pytest

from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.core.checks import UserError

GOOD = {"BIGBATCH_ROLE": "server:1", "BIGBATCH_SERVERS": "h1:7000,10.0.0.2:7001", "BIGBATCH_TOKEN": "t", "BIGBATCH_NUM_WORKERS": "3"}


def test_who_is_who():
    assert ProcessRole.from_environment({}) is None
    assert ProcessRole.from_environment(GOOD) == ProcessRole(True, 1, ("tcp://h1:7000", "tcp://10.0.0.2:7001"), "t", 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BIGBATCH_ROLE": "boss:1"}, "BIGBATCH_ROLE=boss:1: must be server:0"),
        ({"BIGBATCH_ROLE": "worker"}, "BIGBATCH_ROLE=worker: must be"),
        ({"BIGBATCH_ROLE": "server:2"}, "BIGBATCH_SERVERS lists 2 servers; count from 0"),
        ({"BIGBATCH_SERVERS": ""}, "'nothing' is not HOST:PORT"),
        ({"BIGBATCH_SERVERS": "h1:7000,h2"}, "'h2' is not HOST:PORT"),
        ({"BIGBATCH_TOKEN": ""}, "BIGBATCH_TOKEN: must be a secret of 1 to 256 bytes"),
        ({"BIGBATCH_NUM_WORKERS": "0"}, "BIGBATCH_NUM_WORKERS=0: must be a number above zero"),
    ],
)
def test_impossible_environments(changes, message):
    with pytest.raises(UserError, match=message):
        ProcessRole.from_environment({**GOOD, **changes})
