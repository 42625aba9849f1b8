"""Signals that ask to stop are caught, left alone where they are ignored, and harmless in a process that was just forked."""

import os
import signal
import threading

import pytest

from bigbatch.core.signals import STOPS, caught, was_received


@pytest.mark.parametrize("number", STOPS)
def test_each_is_handed_on_and_given_back(number):
    before, seen = signal.getsignal(number), []
    with caught(seen.append):
        os.kill(os.getpid(), number)
    assert seen == [number]
    assert signal.getsignal(number) is before
    assert was_received(number)


def test_an_ignored_sighup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen = []
        with caught(seen.append):
            os.kill(os.getpid(), signal.SIGHUP)
        assert seen == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fork_does_not_run_its_parents_handler():
    seen = []
    with caught(seen.append):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    assert seen == []


def test_another_thread_catches_nothing():
    before, inside = signal.getsignal(signal.SIGUSR1), []

    def run():
        with caught(lambda number: None):
            inside.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]
