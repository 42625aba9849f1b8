"""One rank of test_over_ranks.py: unequal shares of the samples, one of them empty, give what all samples give to one."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from tests.curvature.conftest import make_case, unequal
from tests.distributed.ranks import leave
from torch.nn.parallel import DistributedDataParallel

from bigbatch.core.checks import Elsewhere, UserError
from bigbatch.curvature import GaussNewton, Hessian, hvp, keskar_sharpness, spectral_density, top_eigenvalues, trace

SHARES = {2: [23, 37], 4: [1, 30, 0, 29]}


def same_bits_everywhere(tensor, world):
    all = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(all, tensor)
    return all_equal(all)


def all_equal(tensors):
    return all(torch.equal(t, tensors[0]) for t in tensors)


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    everyone = dist.group.WORLD
    case = make_case(dense=False)
    x, y = unequal(case.x, case.y, SHARES[world])[rank]
    share = unequal(x, y, [5] * (len(x) // 5) + [len(x) % 5] * (len(x) % 5 > 0)) if len(x) else []
    v = torch.randn(2, 1229, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind in (Hessian, GaussNewton):
        alone, together = kind(case.model, case.loss, case.batches), kind(case.model, case.loss, share, micro_batch=3, group=everyone)
        assert together.samples == 60
        for _ in range(2):  # the second time by kept graphs
            got = together(v)
            torch.testing.assert_close(got, alone(v), rtol=1e-11, atol=1e-13)
            assert same_bits_everywhere(got, world)
        assert together.loss() == pytest.approx(alone.loss(), rel=1e-13)
        torch.testing.assert_close(together.gradient(), alone.gradient(), rtol=1e-11, atol=1e-13)
    for kind in (Hessian, GaussNewton):
        alone, together = kind(case.model, case.loss, case.batches), kind(case.model, case.loss, share, group=everyone)
        found, expected = (top_eigenvalues(operator, 2, tolerance=1e-5) for operator in (together, alone))
        torch.testing.assert_close(found.values, expected.values, rtol=1e-10, atol=0)
        assert same_bits_everywhere(found.vectors, world)
        found, expected = (trace(operator, max_products=20) for operator in (together, alone))
        assert found == pytest.approx(expected, rel=1e-9)
        found, expected = (spectral_density(operator, steps=8, starts=2) for operator in (together, alone))
        assert same_bits_everywhere(torch.from_numpy(found.nodes), world)
        assert found.nodes == pytest.approx(expected.nodes, rel=1e-7, abs=1e-9)
    wrapped = DistributedDataParallel(copy.deepcopy(case.model))
    torch.testing.assert_close(hvp(wrapped, case.loss, share, v[0], group=everyone), alone_product(case, v[0]), rtol=1e-11, atol=1e-13)
    alike = {"iterations": 3, "subspace": 4}
    rise = keskar_sharpness(wrapped, case.loss, share, group=everyone, **alike).value
    assert rise == pytest.approx(keskar_sharpness(case.model, case.loss, case.batches, **alike).value, rel=1e-9)

    def broken(z, y):
        return case.loss(z, y) / 0 if rank == 1 else case.loss(z, y)

    with pytest.raises(UserError, match="loss of batch 0 is inf" if rank == 1 else "worker 1 of the group could not do its share") as told:
        Hessian(case.model, broken, share, group=everyone)(v)
    assert isinstance(told.value, Elsewhere) == (rank != 1)
    with pytest.raises(UserError, match="vectors are not the same on all workers"):
        Hessian(case.model, case.loss, share, group=everyone)(v + rank)
    with pytest.raises(UserError, match="batches: none"):
        Hessian(case.model, case.loss, [], group=everyone)(v)
    pair = dist.new_group([0, 1])
    if rank < 2:
        assert Hessian(case.model, case.loss, share, group=pair).samples == sum(SHARES[world][:2])
    else:
        with pytest.raises(UserError, match="group: this process is not in it"):
            Hessian(case.model, case.loss, share, group=pair)(v)
    with torch.no_grad():
        case.model[0].bias[0] += rank
    with pytest.raises(UserError, match="the models' weights are not the same on all workers"):
        Hessian(case.model, case.loss, share, group=everyone)(v)
    if rank == 0:
        print("all agree")
    dist.barrier()
    leave()


def alone_product(case, v):
    return Hessian(case.model, case.loss, case.batches)(v)


if __name__ == "__main__":
    main()
