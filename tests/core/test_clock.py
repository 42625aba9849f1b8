import pytest

from bigbatch import Clock, UserError


def test_counts_samples_and_updates():
    clock = Clock().after(128).after(128).after(44)
    assert clock == (300, 3)
    assert clock.epochs(200) == 1.5


@pytest.mark.parametrize("bad", [0, -1])
def test_an_update_has_samples(bad):
    with pytest.raises(UserError, match=f"num_samples = {bad}: must be a finite number above zero"):
        Clock().after(bad)
