"""FSDP: student, teacher, adapters and optimizer states are spread over the ranks."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from kd_lightning.distillers.criteria import Criteria
from kd_lightning.distillers.first_ranks_statistics import FirstRanksStatistics
from kd_lightning.models.sharding import first_ranks, is_sharded, part_like, shard, whole


def mesh_of(strategy: Strategy) -> DeviceMesh:
    """The ranks over which a strategy spreads a network.

    Raises:
        ValueError: if it spreads it in another way than `FullySharded`.
    """
    if not isinstance(strategy, FullySharded):
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} splits a network in ways that a distillation does not follow: "
            "take fsdp, which is kd_lightning.distillers.FullySharded"
        )
    return strategy.device_mesh["data_parallel"]


def shard_trained(student: nn.Module, criteria: Criteria, strategy: Strategy) -> None:
    """Spread the student, and the adapters of each loss, over the ranks, from the weights of the first rank.

    Raises:
        ValueError: if one cannot be spread; a loss is named by its term.
    """
    mesh = mesh_of(strategy)
    parts = {"student": student} | {f"criteria.{name}": term.loss for name, term in criteria.terms.items()}
    for name, part in parts.items():
        if not any(True for _ in part.parameters()):
            continue
        first_ranks(part, strategy.root_device)
        try:
            shard(part, mesh)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


class FullySharded(FirstRanksStatistics, ModelParallelStrategy):
    """FSDP over all ranks (torch's ``fully_shard``), with checkpoints like those of one process.

    Each rank holds its part of every parameter, gradient and optimizer state of student and adapters, and of the
    teacher's weights; a block's weights come together while it runs. The networks are built whole in the memory of the
    host first. A checkpoint is one file of whole tensors, which any number of ranks resumes, with or without FSDP.
    Buffers (BatchNorm's statistics) are each rank's own in training; evaluation and checkpoints take the first rank's.

    Args:
        process_group_backend: ``gloo``, ``nccl``, ...; None for what suits the devices.
        timeout: Of a collective operation.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The optimizer of the parts must be there before its state comes."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for the optimizer's state to be restored."""
        return True

    def setup_environment(self) -> None:
        """Start the processes, and lay all of them in one row."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Take over the module, which has spread itself in ``configure_model``.

        Raises:
            ValueError: if it has not.
        """
        if not is_sharded(cast(nn.Module, self.model)):
            raise ValueError(f"{type(self.lightning_module).__name__} cannot be trained with fsdp: take ddp")
        super().setup(trainer)

    # Checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state in whole tensors, on the first rank; nothing on the others, which must ask for it too."""
        return self._on_first(cast(nn.Module, self.model).state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state in whole tensors, on the first rank; nothing on the others, which must ask for it too.

        Its form is that of a plain optimizer.
        """
        state = optimizer.state_dict()
        whole_state = {index: self._on_first(values) for index, values in state["state"].items()}
        return {**state, "state": whole_state} if self.is_global_zero else {}

    def _on_first(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        kept = {}
        for key, value in values.items():
            gathered = whole(value)
            if self.is_global_zero:
                kept[key] = gathered
        return kept

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The whole checkpoint, as any other strategy reads it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's parts of the module's state."""
        module = cast(nn.Module, self.model)
        own, state = module.state_dict(), checkpoint["state_dict"]
        module.load_state_dict({key: part_like(value, own.get(key)) for key, value in state.items()}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's parts of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                index: {key: part_like(value, parameters[index]) for key, value in values.items()}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})
