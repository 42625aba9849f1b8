import torch

from bigbatch.comm.own_weights import state_tensors


def test_the_momentum_of_a_scalar_is_state_and_its_count_of_steps_is_not():
    """It was left out, so that local SGD never averaged it."""
    scalar, matrix = (torch.ones(shape, requires_grad=True) for shape in ((), (2, 3)))
    for cls, per_parameter in ((torch.optim.SGD, 1), (torch.optim.AdamW, 2)):
        optimizer = cls([scalar, matrix], lr=0.1, **({"momentum": 0.9} if cls is torch.optim.SGD else {}))
        scalar.grad, matrix.grad = torch.ones(()), torch.ones(2, 3)
        optimizer.step()
        assert [tuple(t.shape) for t in state_tensors(optimizer)] == [()] * per_parameter + [(2, 3)] * per_parameter
