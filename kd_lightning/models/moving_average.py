"""A teacher that is the student's own moving average."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.batch import Batch
from kd_lightning.models.input_adapter import Views
from kd_lightning.models.tap_plan import TapPlan, plan
from kd_lightning.models.taps import tapped
from kd_lightning.models.teacher import Outputs, Teacher
from kd_lightning.models.weights import matched
from kd_lightning.ranks import same_on_all_ranks


def ramped(momentum: float, step: int, steps: float) -> float:
    """1 - (1 - m) (cos(pi step / steps) + 1) / 2: from m at the first step to 1 at the end.

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, sec. 3.3.

    Args:
        momentum: m in [0, 1].
        step: Counted from 0.
        steps: Of the whole training, >= 1.
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * step / steps) + 1) / 2


@torch.no_grad()
def move_towards(average: nn.Module, network: nn.Module, share: float) -> None:
    """Let an average <- (1 - share) average + share network, in place; what is not floating point is copied.

    Args:
        average: Of the network's structure, on its device, in its precision.
        network: Where to.
        share: Of the network, in [0, 1].
    """
    current = [*network.parameters(), *network.buffers()]
    pairs = list(zip([*average.parameters(), *average.buffers()], current, strict=True))
    moved = [(mean, value) for mean, value in pairs if value.is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in moved], [value for _, value in moved], share)
    for mean, value in pairs:
        if not value.is_floating_point():
            mean.copy_(value)


@contextmanager
def by_the_batch(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation goes by the statistics of the batch, and keeps nothing of them."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking


class MovingAverageTeacher(Teacher):
    """theta' <- m theta' + (1 - m) theta after each optimizer step: the average of the student teaches the student.

    It starts as the student. It answers in eval mode; its buffers are averaged where they are floating point, and those
    of the first rank are everybody's. It is trained state: in the checkpoint, and taken up from it. It is not examined
    before step 0, where it knows nothing; ``test/teacher_top1`` is its own figure.

    Source: Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, eq. 2.

    Args:
        momentum: m in [0, 1); the paper takes 0.99 early and 0.999 later.
        ramp: ``constant``, or ``cosine``: m grows to 1 at the end of training (see `ramped`), which needs
            ``trainer.max_epochs`` or ``max_steps``.
        batch_statistics: In training, let batch normalisation go by each view's batch, as in the student, and not by
            the averaged statistics; the rest stays in eval mode. DINO's teacher is so (in its authors' code); without
            it, `DINO` over networks with batch normalisation learns nothing.

    Raises:
        ValueError: if ``momentum`` is out of range.
    """

    def __init__(
        self,
        momentum: float = 0.99,
        ramp: Literal["constant", "cosine"] = "constant",
        batch_statistics: bool = False,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if ramp not in {"constant", "cosine"}:
            raise ValueError(f"ramp must be constant or cosine, got {ramp!r}")
        self.momentum, self.ramp, self.batch_statistics = momentum, ramp, batch_statistics
        self.check, self.expected_top1 = False, None
        self.network: nn.Module | None = None

    def follow(self, student: nn.Module) -> None:
        """Start as the student is."""
        if self.network is None:
            self.network = copy.deepcopy(student).requires_grad_(False).eval()
        else:
            self.network.load_state_dict(student.state_dict())
        same_on_all_ranks(list(self.network.state_dict().values()))

    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        """Prepare the taps of the student's copy.

        Raises:
            ValueError: if nobody told it of the student.
        """
        if self.network is None:
            raise ValueError(
                "a MovingAverageTeacher must follow the student: it is a teacher of OfflineDistiller alone"
            )
        self._plan = plan(self._ready(), taps, views.image_shape)
        self._submodules = self._plan.submodules()

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self._ready().to(device)

    def plan(self) -> TapPlan:
        """Where the taps are, and the shapes of them and of ``logits``; known after `setup`."""
        return self._plan

    def shard(self, mesh: DeviceMesh) -> None:
        """Refuse.

        Raises:
            ValueError: always: it moves towards a student that no rank holds whole.
        """
        raise ValueError("a MovingAverageTeacher follows a student that fsdp spreads over ranks: take the strategy ddp")

    @torch.no_grad()
    def advance(self, student: nn.Module, step: int, steps: float) -> None:
        """Move towards the student.

        Raises:
            ValueError: if the ramp does not know the end, or the weights are too coarse to be averaged.
        """
        momentum = self.momentum
        if self.ramp == "cosine":
            if not 1 <= steps < math.inf:
                raise ValueError("teacher.ramp cosine needs the length of training: give trainer.max_epochs")
            momentum = ramped(momentum, step, steps)
        network = self._ready()
        current = [*student.parameters(), *student.buffers()]
        if coarse := {value.dtype for value in current} & {torch.float16, torch.bfloat16}:
            raise ValueError(
                f"weights in {coarse.pop()} are too coarse for a moving average: take trainer.precision bf16-mixed"
            )
        network.to(current[0].dtype)  # follows a run in float64
        move_towards(network, student, 1 - momentum)
        same_on_all_ranks(list(network.buffers()))

    def state(self) -> dict[str, Any]:
        """The average."""
        return dict(self._ready().state_dict())

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take up the average of a checkpoint.

        Raises:
            ValueError: if it holds none, or that of another network.
        """
        if state is None:
            raise ValueError("the checkpoint holds no moving average of the student: it was made with another teacher")
        self._ready().load_state_dict(matched(dict(state), self._ready(), "the checkpoint's teacher"))

    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        """Logits and taps of the average for a view of the batch."""
        return self._answer(batch.images[view], self.batch_statistics)

    def unlabelled(self, batch: Batch, view: str = "default") -> Outputs:
        """The answer that is measured, which goes by the averaged statistics alone."""
        return self._answer(batch.images[view], batch_statistics=False)

    @torch.no_grad()
    def _answer(self, image: Tensor, batch_statistics: bool) -> Outputs:
        network = self._ready().to(image.dtype).eval()  # follows a run in float64; nothing otherwise
        mode = by_the_batch(network) if batch_statistics else nullcontext()
        with mode, tapped(network, self._submodules) as taps:
            logits = network(image)
        return Outputs(logits, self._plan.picked(taps))

    def _ready(self) -> nn.Module:
        if self.network is None:
            raise RuntimeError("a moving average must be told of the student by follow before anything else")
        return self.network
