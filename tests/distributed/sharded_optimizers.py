"""One rank of test_sharded_optimizers.py: sharded and shared-out updates against the same update of whole tensors."""

import os

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from bigbatch.core.checks import UserError
from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon

MAKERS = {
    "LARS": lambda ps: LARS(ps, lr=0.5, weight_decay=0.01, trust_coefficient=0.1, nesterov=True),
    "LAMB": lambda ps: LAMB(ps, lr=0.02, weight_decay=0.1),
    "AdamP": lambda ps: AdamP(ps, lr=0.02, weight_decay=0.1),
    "SGDP": lambda ps: SGDP(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Muon": lambda ps: Muon(split(ps), lr=0.05, weight_decay=0.1, dtype=torch.float32),
    "SoapMuon": lambda ps: SoapMuon(split(ps), lr=0.05, weight_decay=0.1, dtype=torch.float32),
}
SHAPES = [(6, 4), (5, 7), (3, 2, 3), (1, 8), (9,)]  # uneven over 2 and 4 ranks; some ranks hold nothing


def split(params):
    params = list(params)
    groups = [{"params": [p for p in params if p.ndim == 2 or p.ndim > 3]}]
    groups += [{"params": [p for p in params if p.ndim == 3], "layout": "columns"}]  # experts, inputs first
    groups += [{"params": [p for p in params if p.ndim < 2], "orthogonalise": False, "lr": 0.01}]
    return [group for group in groups if group["params"]]


def seeded(shapes, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=random) for s in shapes]


def gradients(ws, step):
    """As in tests/optim/compare.py: some at right angles to the weights, by row or as a whole, so that projections happen."""
    gs = seeded([w.shape for w in ws], 50 + step)
    for i, (w, g) in enumerate(zip(ws, gs, strict=True)):
        if w.ndim > 1 and (step + i) % 3:
            rows = w.reshape(w.shape[0], -1) if (step + i) % 3 == 1 else w.reshape(1, -1)
            flat = g.reshape(rows.shape)
            gs[i] = (flat - rows * (flat * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)).reshape(w.shape)
    return gs


def check_layout(name, mesh, placements):
    ws = seeded(SHAPES, 0)
    usable = [tuple(Replicate() if isinstance(p, Shard) and p.dim >= w.ndim else p for p in placements) for w in ws]
    whole = [w.clone().requires_grad_() for w in ws]
    shards = [nn.Parameter(distribute_tensor(w, mesh, place)) for w, place in zip(ws, usable, strict=True)]
    a, b = MAKERS[name](whole), MAKERS[name](shards)
    for step in range(4):
        gs = gradients([w.detach() for w in whole], step)
        for p, q, g, place in zip(whole, shards, gs, usable, strict=True):
            p.grad, q.grad = g, distribute_tensor(g, mesh, place)
        a.step()
        b.step()
    for p, q in zip(whole, shards, strict=True):
        torch.testing.assert_close(q.detach().full_tensor(), p.detach(), rtol=1e-6, atol=1e-6)


def check_fsdp(name, mesh):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()

    plain, sharded = model(), model()
    for layer in (sharded[0], sharded[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    a, b = MAKERS[name](plain.parameters()), MAKERS[name](sharded.parameters())
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(8, 6).double()  # the same on every rank, so that the mean over ranks is the plain gradient
        for net, optimizer in ((plain, a), (sharded, b)):
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(q.detach().full_tensor(), p.detach(), rtol=1e-6, atol=1e-8)


def check_sharing_out():
    """Every rank orthogonalises its share; all end with what one process makes of everything."""
    shapes = [(6, 4), (5, 7), (8, 3, 3), (4, 4), (12, 2), (3,)]
    alone, shared = ([w.clone().requires_grad_() for w in seeded(shapes, 0)] for _ in range(2))
    a = Muon(split(alone), dtype=torch.float32)
    b = Muon(split(shared), dtype=torch.float32, process_group=dist.group.WORLD)
    made = []
    import bigbatch.optim.muon.muon as module

    original = module.orthogonalise
    for step in range(3):
        for p, q, g in zip(alone, shared, seeded(shapes, 9 + step), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        a.step()
        module.orthogonalise = lambda x, **kw: made.append(len(x)) or original(x, **kw)
        b.step()
        module.orthogonalise = original
    for p, q in zip(alone, shared, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    total = torch.tensor(sum(made))
    assert int(total) < 3 * 5 or dist.get_world_size() == 1, "one rank did all of it"
    dist.all_reduce(total)
    assert int(total) == 3 * 5, f"{int(total)} orthogonalisations of 15"


def check_mixed_meshes(world):
    half = init_device_mesh("cpu", (world,), mesh_dim_names=("a",))
    other = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("b", "c"))["c"]
    p, q = (nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])) for mesh in (half, other))
    if world > 2:
        with pytest.raises(UserError, match="different device meshes"):
            LARS([p, q])


def check_partial_sums(mesh):
    """A gradient that is still to be added up over ranks is; a parameter of that kind is refused."""
    w, world = torch.tensor([[3.0, 4.0]]), mesh.size()
    p = nn.Parameter(distribute_tensor(w, mesh, [Replicate()]))
    p.grad = DTensor.from_local(torch.tensor([[0.0, 10.0]]) / world, mesh, [Partial()])
    LARS([p], lr=1.0, trust_coefficient=0.1).step()
    torch.testing.assert_close(p.detach().full_tensor(), torch.tensor([[3.0, 3.5]]))
    bad = nn.Parameter(DTensor.from_local(w, mesh, [Partial()]))
    bad.grad = bad.detach()
    with pytest.raises(UserError, match="partial sum"):
        LARS([bad]).step()


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    line = init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
    layouts = [(line, (place,)) for place in (Shard(0), Shard(1), Replicate())]
    if world == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        layouts += [(square, (Shard(0), Shard(1))), (square, (Replicate(), Shard(0))), (square, (Shard(0), Shard(0)))]
    for name in MAKERS:
        for mesh, placements in layouts:
            check_layout(name, mesh, placements)
            if rank == 0:
                print(name, placements, "equal", flush=True)
        check_fsdp(name, line)
        if rank == 0:
            print(name, "fully_shard equal", flush=True)
    check_sharing_out()
    check_mixed_meshes(world)
    check_partial_sums(line)
    leave()


if __name__ == "__main__":
    main()
