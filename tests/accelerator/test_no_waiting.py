"""Nothing waits for the device where it should not: on a simulated device, and a planted `.item()` turns each proof red."""

import functools

import pytest
from tests.accelerator.promises import PROOFS, promises
from tests.accelerator.run import FAMILIES, run_family


@functools.lru_cache
def waits_of(family):
    return run_family(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_waits_for_the_device(family):
    found = waits_of(family)
    assert found
    assert {name: waits for name, waits in found.items() if waits} == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_reading_is_noticed(family):
    found = run_family(family, planted=True)
    assert found
    assert [plant for plant, waits in found.items() if not any(wait[0] == "_local_scalar_dense" for wait in waits)] == []


def test_the_simulated_device_knows_waits_from_work():
    found = run_family("detected")
    raised = {name: text for name, text in found.items() if isinstance(text, str)}
    assert raised == {}
    assert [name for name, waits in found.items() if bool(waits) != name.startswith("waits: ")] == []


def test_every_promise_of_a_docstring_is_proven():
    assert promises().keys() == PROOFS.keys(), "a promise not to wait for the device needs cases in tests/accelerator, named in PROOFS"


@pytest.mark.parametrize("proof", sorted({proof for proofs in PROOFS.values() for proof in proofs}))
def test_a_proof_exists(proof):
    family, _, beginning = proof.partition(": ")
    assert any(name.startswith(beginning) for name in waits_of(family))


def test_a_new_promise_without_a_proof_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text('"""A new rule."""\n\n\ndef rule():\n    """It never waits for the device."""\n')
    assert promises(tmp_path) == {"new rule": "never waits for the device"}
