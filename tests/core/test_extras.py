"""A missing package is one line; other failed imports stay what they are."""

import sys

import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.extras import MissingExtra, needed


def test_it_is_a_mistake_that_the_user_can_mend_and_a_failed_import():
    line = r"^a trip needs rocket, which is not installed: pip install 'bigbatch\[space\]'$"
    with pytest.raises(MissingExtra, match=line) as caught, needed("a trip", extra="space"):
        import rocket.engine  # noqa: F401
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "rocket"


def test_the_line_names_what_pip_installs(monkeypatch):
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(MissingExtra, match=r"a parameter server needs pyzmq, which"), needed("a parameter server", extra="x"):
        import zmq  # noqa: F401


def test_the_first_to_miss_it_says_so():
    with pytest.raises(MissingExtra, match="inner needs rocket"), needed("outer", extra="b"), needed("inner", extra="a"):
        import rocket  # noqa: F401


def test_a_module_of_our_own_and_a_broken_package_are_no_missing_extra():
    with pytest.raises(ModuleNotFoundError, match="bigbatch.nothing"), needed("a trip", extra="space"):
        import bigbatch.nothing  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name") as caught, needed("a trip", extra="space"):
        from math import nothing  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)
