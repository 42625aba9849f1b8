import pytest
import torch

from bigbatch.comm.model_averaging import ModelAveraging, state_tensors
from bigbatch.core.checks import CheckpointError


def test_the_momentum_of_a_scalar_is_state_and_its_count_of_steps_is_not():
    """It was left out, so that local SGD never averaged it."""
    scalar, matrix = (torch.ones(shape, requires_grad=True) for shape in ((), (2, 3)))
    for cls, per_parameter in ((torch.optim.SGD, 1), (torch.optim.AdamW, 2)):
        optimizer = cls([scalar, matrix], lr=0.1, **({"momentum": 0.9} if cls is torch.optim.SGD else {}))
        scalar.grad, matrix.grad = torch.ones(()), torch.ones(2, 3)
        optimizer.step()
        assert [tuple(t.shape) for t in state_tensors(optimizer)] == [()] * per_parameter + [(2, 3)] * per_parameter


@pytest.mark.parametrize("change", [lambda own: own[:-1], lambda own: [own[0][:1, :1], *own[1:]]])
def test_own_weights_of_another_shape_are_refused(change):
    """One value would have filled a whole matrix."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    comm = ModelAveraging(model)
    own = [t.clone() for t in comm._tensors(optimizer)]
    whole = model.state_dict(), optimizer.state_dict()
    comm.load_state_dicts([{"updates": 1, "own": own}])
    comm.load_full_state_dicts(optimizer, *whole)
    comm.load_state_dicts([{"updates": 1, "own": change(own)}])
    with pytest.raises(
        CheckpointError, match="a worker's own weights and optimizer state have other shapes than the model's; start a new run"
    ):
        comm.load_full_state_dicts(optimizer, *whole)
