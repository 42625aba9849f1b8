import pytest
import torch
from tests.comm.local.test_diloco import trained
from torch import nn

from bigbatch.comm.local.diloco import DiLoCo
from bigbatch.comm.local.streaming_diloco import StreamingDiLoCo, fragments_of, mixed, starts
from bigbatch.core.checks import UserError


def test_hand_worked():  # a period of 5 in 2 fragments: the first after 3, 8, 13; the second after 5, 10, 15
    assert [[t for t in range(1, 16) if starts(t, fragment=p, num_fragments=2, period=5)] for p in (0, 1)] == [[3, 8, 13], [5, 10, 15]]


def test_mixed_by_hand():  # a quarter of one's own, three quarters of the outer weights
    assert mixed(torch.tensor([1.0]), torch.tensor([5.0]), 0.25).item() == 4.0


def test_every_parameter_is_in_one_fragment():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    model.append(nn.Linear(2, 2))
    model[3].weight = model[0].weight  # tied
    model[1].bias.requires_grad_(False)
    for number in (1, 2, 3, 4, 5):
        assert all(fragments_of(model, number))
        every = [p for fragment in fragments_of(model, number) for p in fragment]
        assert {id(p) for p in every} == {id(p) for p in model.parameters() if p.requires_grad}
        assert len(every) == len({id(p) for p in every})


def test_one_fragment_without_overlap_is_diloco():
    one, other = (
        trained(lambda m, c=c, s=s: c(m, period=4, outer_lr=0.6, outer_momentum=0.5, **s))
        for c, s in ((DiLoCo, {}), (StreamingDiLoCo, {"fragments": 1, "overlap": 0}))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fragments": 0}, "fragments = 0: must be from 1 to 4"),
        ({"fragments": 5}, "fragments = 5: must be from 1 to 4"),
        ({"overlap": 8}, "overlap = 8: must be from 0 to 7"),
        ({"overlap": -1}, "overlap = -1"),
        ({"mix": 1.5}, "mix = 1.5"),
        ({"momentum": "average"}, "momentum and period_warmup"),
        ({"period_warmup": 8}, "momentum and period_warmup"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        StreamingDiLoCo(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), period=8, **settings)
