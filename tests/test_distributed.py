"""Two processes under DistributedDataParallel prune alike, and as one process would on both their batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import hfp

METHODS = ("hfp", "taylor", "ggp", "uniform", "slimming", "prunenet")
STEPS = 6


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def trained(method: str, rank: int | None) -> dict[str, Tensor]:
    """The state after a schedule and two steps more; on one half of every batch for a rank, else on all of it."""
    torch.manual_seed(0)
    model = network().double()
    net = hfp.wrap(model, torch.zeros(1, 8, dtype=torch.double), target_macs=0.4, steps=STEPS, method=method)
    unused = method == "prunenet"  # in its light step weights stand still
    called = net if rank is None else nn.parallel.DistributedDataParallel(net, find_unused_parameters=unused)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.1), momentum=0.9)
    for _ in range(STEPS + 2):
        x, y = torch.randn(8, 8, dtype=torch.double), torch.randint(4, (8,))
        if rank is not None:
            x, y = x[4 * rank :][:4], y[4 * rank :][:4]
        loss = F.cross_entropy(called(x), y) + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net.macs() <= 0.4 * net.dense_macs
    net.compact(optimizer=optimizer)
    return net.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    torch.save([trained(method, rank) for method in METHODS], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_are_one(tmp_path: Path) -> None:
    spawn(worker, (str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for method, *states in zip(METHODS, *halves, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(*(s.values() for s in states), strict=True))
        # A gate that learns sums squares of gradients, which are others where a batch is halved.
        if not hfp.methods.METHODS[method].learns:
            torch.testing.assert_close(states[0], trained(method, None), rtol=1e-9, atol=1e-12)


def shard(rank: int, folder: str) -> None:
    """Trains a network of which each of two processes has half, and compacts what is gathered from both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    torch.manual_seed(0)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    with pytest.raises(ValueError, match=r"spread over processes; .* fully_shard\(hfp.wrap"):
        hfp.wrap(fully_shard(network(), mesh=mesh), torch.zeros(1, 8), target_macs=0.4)
    blocks = hfp.wrap(network(), torch.zeros(1, 8), target_macs=0.4)
    fully_shard(blocks.model[2], mesh=mesh)
    fully_shard(blocks, mesh=mesh)
    with pytest.raises(ValueError, match=r"2.weight is spread over processes by itself; shard .* fully_shard\(net\)"):
        blocks(torch.zeros(1, 8))
    net = hfp.wrap(network(), torch.zeros(1, 8), target_macs=0.4, steps=10)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.param_groups(lr=0.05), momentum=0.9)
    for step in range(12):
        x = torch.randn(8, 8, generator=torch.Generator().manual_seed(2 * step + rank))
        loss = net(x).square().mean() + net.complexity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with pytest.raises(ValueError, match="0.weight is spread over processes"):
        net.compact()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(net, options=options)
    torch.save(net.keep, f"{folder}/keep{rank}.pt")
    if rank == 0:
        whole = hfp.wrap(network(), torch.zeros(1, 8), target_macs=0.4, steps=10)
        whole.load_state_dict(state)
        small = whole.compact()
        assert torch.equal(small.hfp_record.keep, net.keep)  # type: ignore[union-attr, arg-type]
        assert not bool(net.keep.all()) and whole.macs() <= 0.4 * whole.dense_macs
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.skipif(torch.__version__ < "2.7", reason="this PyTorch shards on accelerators only")
def test_a_network_that_is_spread_over_processes(tmp_path: Path) -> None:
    spawn(shard, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"keep{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)


def test_only_methods_that_train_gates_ask_for_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for name, method in hfp.methods.METHODS.items():
        net = hfp.wrap(model, torch.zeros(1, 8), target_macs=0.5, method=name)
        assert net.gates.requires_grad == (name in ("hfp", "prunenet", "taylor"))
        assert method.learns == net.gates.requires_grad


def replicated(module: nn.Module) -> nn.Module:
    """As `nn.DataParallel` replicates a module for every step, here on the same device: a copy without parameters."""
    copies = {part: part._replicate_for_data_parallel() for part in module.modules()}
    for part, copy in copies.items():
        for name, child in part._modules.items():
            setattr(copy, name, copies[child] if child is not None else None)
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            setattr(copy, name, None if tensor is None else tensor.clone())
    replica: nn.Module = copies[module]
    return replica


@pytest.mark.parametrize("method", ["hfp", "prunenet"])
def test_a_replica_is_gated_as_the_network_is(method: str) -> None:
    """In a norm, channels are hidden by the place of the call, which a replica tells by modules of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    net = hfp.wrap(model, torch.zeros(2, 6), target_macs=0.5, steps=5, method=method)
    x = torch.randn(8, 6)
    for _ in range(6):
        statistics = model[2].running_mean.clone()
        replica = replicated(net)
        gradients = []
        for called in net, replica:
            loss = called(x).square().sum()
            wanted = [*model.parameters()]
            gradients.append((loss.detach(), *torch.autograd.grad(loss, wanted, allow_unused=True)))
        for own, expected in zip(*gradients, strict=True):
            assert (own is None) == (expected is None)
            assert own is None or torch.equal(own, expected)
        frozen = method == "prunenet" and net.progress == 0
        assert torch.equal(replica.model[2].running_mean, statistics) == frozen
        net.complexity_loss()
    assert not net.keep.all()
