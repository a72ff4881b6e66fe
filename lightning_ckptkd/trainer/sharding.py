"""FSDP2: the student's weights, gradients and optimiser states spread over the ranks."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_ckptkd.errors import ArgumentError


def shard(network: nn.Module, strategy: ModelParallelStrategy) -> None:
    """Shard a network in place over the data-parallel ranks, as one unit; nothing happens where it is sharded.

    Args:
        network: May be compiled by ``torch.compile``.
        strategy: Has set up its processes.

    Raises:
        ArgumentError: If the strategy asks for tensor parallelism, which needs a plan for each network.
    """
    mesh = strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise ArgumentError(
            f"ModelParallelStrategy has tensor_parallel_size={mesh['tensor_parallel'].size()}, but the student is "
            f"sharded over data_parallel ranks only. Give data_parallel_size={mesh.size()} and tensor_parallel_size=1, "
            "or override configure_model and parallelise the student there."
        )
    plain = getattr(network, "_orig_mod", network)
    if not any(isinstance(part, FSDPModule) for part in plain.modules()):
        fully_shard(plain, mesh=mesh["data_parallel"])
