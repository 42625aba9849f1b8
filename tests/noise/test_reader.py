import random
from fractions import Fraction

import pytest
import torch

from bigbatch.noise.reader import ALL, Pending, Reader

DEVICE = torch.device("cpu")


def pending(parameters, number, *, groups=None):
    """An update of random norms; of float32, as a monitor leaves them."""
    chance = torch.Generator().manual_seed(number)
    groups = groups or 2 + number % 5
    norms = torch.rand(groups + 1, parameters, generator=chance)
    rows = [list(row.unbind()) for row in norms]
    weights = [1 / groups] * groups
    counts = (8.0 * groups, float(groups), 1.0, sum(w * w / 8 for w in weights))
    return Pending(rows[:-1], [8 * groups**2.0] * groups, rows[-1], torch.rand(3, generator=chance), counts, 1.0)


def reader(parameters):
    parts = {ALL: list(range(parameters)), "odd": list(range(1, parameters, 2)), "last": [parameters - 1]}
    return Reader(parts, 1000.0, DEVICE, None, sharded=False, own=False)


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("only_all", [True, False])
@pytest.mark.parametrize("parameters", [1, 4, 6, 8, 22, 65])
def test_an_update_is_read_alike_whatever_is_read_with_it(parameters, only_all):
    """The clock decides how many updates are read at once: a resumed run reads others together, and its record must be the same."""
    updates = [pending(parameters, number) for number in range(60)]
    read = reader(parameters)
    if only_all:
        read = Reader({ALL: list(range(parameters))}, 1000.0, DEVICE, None, sharded=False, own=False)
    alone = [measured for update in updates for measured in read.read([update])]
    chance = random.Random(0)
    for _ in range(5):
        pieces, rest = [], updates
        while rest:
            pieces.append(rest[: (size := chance.randint(1, 25))])
            rest = rest[size:]
        assert [measured for piece in pieces for measured in read.read(piece)] == alone


def test_the_sums_by_exact_fractions():
    """Squared norms of groups, weighted, over the parameters of each part; signal and noise by the formula, in fractions."""
    update = pending(7, 3, groups=4)
    (measured,) = reader(7).read([update])
    for name, numbers in (("all", range(7)), ("odd", (1, 3, 5)), ("last", (6,))):
        sq = [sum(Fraction(float(norms[i])) ** 2 for i in numbers) for norms in (*update.passes, update.whole)]
        noise = (sum(8 * s * 16 for s in sq[:-1]) - 32 * sq[-1]) / 3  # the pass added 1/4 of its mean gradient
        signal = sq[-1] - (Fraction(1, 32) - Fraction(1, 1000)) * noise
        assert measured.parts[name] == pytest.approx((float(signal), float(noise)), rel=1e-12)
