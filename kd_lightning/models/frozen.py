"""The plain teacher: one network with fixed weights."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from kd_lightning.batch import Batch
from kd_lightning.models.anatomy import norm_before
from kd_lightning.models.class_map import ClassMap
from kd_lightning.models.input_adapter import InputAdapter, Views
from kd_lightning.models.memory_format import memory_format
from kd_lightning.models.network import Network, NetworkLike
from kd_lightning.models.quick import cast_once, folded
from kd_lightning.models.sharding import is_sharded, shard
from kd_lightning.models.tap_plan import TapPlan, classifier_of, plan, several
from kd_lightning.models.taps import LOGITS, tapped
from kd_lightning.models.teacher import Outputs, Teacher, TeacherCheck
from kd_lightning.models.weights import fingerprint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenTeacher(Teacher):
    """One network with fixed weights, always in eval mode, so its BatchNorm never drifts.

    Args:
        network: A recipe with weights (in Python also a module).
        check: Its examination before step 0; false switches it off.
        expected_top1: The top-1 in [0, 1] that it is known for: the examination must come within 0.02 of it, widened by
            two standard errors of the sample.
        dtype: Of its weights and computation; None follows the run's precision.
        channels_last: Keep its maps in channels_last, which is faster on most hardware.
        fold: Answer with batch normalisation folded into the convolutions, where the network allows and no tap listens
            between them; the logits then differ by rounding.
        compile: Backend of `torch.compile` for its forward pass, usually ``inductor``; null leaves it as it is. It is
            meant for GPUs, where it has not been measured here.
        classes: Where it has more classes than the data: for each class of the data, in order, the index of its own
            class that it is; the other logits are left out. None where its classes are the data's.
        num_classes: Number of its own classes, with ``classes``; None for those of timm's weights, or of a module.
    """

    def __init__(
        self,
        network: NetworkLike,
        check: TeacherCheck | Literal[False] = TeacherCheck(),
        expected_top1: float | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        channels_last: bool = True,
        fold: bool = True,
        compile: str | None = None,
        classes: Sequence[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        if expected_top1 is not None and not 0 < expected_top1 <= 1:
            raise ValueError(f"expected_top1 must be in (0, 1], got {expected_top1}")
        if isinstance(network, Network) and network.weights is None:
            raise ValueError(f"teacher {network.name} has no weights: it would teach noise; give network.weights")
        if num_classes is not None and classes is None:
            raise ValueError(f"num_classes {num_classes} must come with classes, which says which of them the data has")
        if compile is not None and compile not in (known := torch.compiler.list_backends(exclude_tags=())):
            raise ValueError(f"teacher.compile must be null or one of {known}, got {compile!r}")
        self.recipe, self.check, self.expected_top1 = network, check, expected_top1
        self.class_map = ClassMap(classes) if classes is not None else None
        self.num_classes = num_classes
        self.dtype = DTYPES[dtype] if dtype is not None else None
        self.channels_last, self.memory_format = channels_last, torch.contiguous_format
        self.fold, self.compile = fold, compile
        self.network: nn.Module | None = None
        self._quick: tuple[object, nn.Module] | None = None
        self._mesh: DeviceMesh | None = None
        self._device = torch.device("cpu")

    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        """Build the network, freeze it, and prepare its taps.

        Raises:
            ValueError: if its classes are not the data's, and ``classes`` does not say which of them are.
        """
        recipe: Network | nn.Module = self.recipe
        normalisation, size = None, None
        if isinstance(recipe, Network):
            normalisation, size = recipe.normalisation(), recipe.resolution()
            network = self.network or recipe.build(self._own_classes(num_classes), views.image_shape[0], "teacher")
        else:
            network = recipe
        self.adapter = InputAdapter(views, normalisation, size)
        self.network, self._quick = network.requires_grad_(False).eval().to(dtype=self.dtype), None
        self._values = list(self.network.parameters())
        self.memory_format = memory_format(self.network, self.channels_last)
        self.network.to(memory_format=self.memory_format)
        side = views.image_shape[1:] if size is None else (size, size)
        self.image_shape = (views.image_shape[0], *side)
        self._plan = plan(self.network, taps, self.image_shape)
        self._submodules = self._plan.submodules()
        classes = several(self._plan.shapes[LOGITS])[0][1]
        if self.class_map is not None:
            self.class_map.check(num_classes, classes)
            self._plan = replace(self._plan, shapes={**self._plan.shapes, LOGITS: (2, num_classes)})
        elif classes != num_classes:
            raise ValueError(
                f"the teacher has {classes} classes, the data {num_classes}: if the data's are among the teacher's, "
                "say which in classes"
            )

    def _own_classes(self, num_classes: int) -> int:
        recipe = self.recipe
        if self.class_map is None or not isinstance(recipe, Network):
            return num_classes
        if self.num_classes is None and not recipe.from_hub:
            raise ValueError(f"teacher {recipe.name}: with classes, give num_classes, the number of its own classes")
        return self.num_classes or recipe.hub_classes()

    def to(self, device: torch.device) -> None:
        """Move the network to a device; one that is to be sharded is brought there part by part."""
        self._device = device
        if self.network is not None and self._mesh is None:
            self.network.to(device)

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread the network that answers, folded where that is asked for, over the ranks of a mesh.

        It happens with the first answer, when the run's precision is known; until then each rank has the whole network
        in the memory of its host. Its weights are gathered in their own precision (``dtype``), block by block.

        Raises:
            ValueError: if it was to be compiled.
        """
        if self.compile is not None:
            raise ValueError("a teacher that fsdp spreads over ranks is not compiled: leave teacher.compile out")
        self._mesh = mesh

    def plan(self) -> TapPlan:
        """Where the taps are, and the shapes of them and of ``logits``; known after `setup`."""
        return self._plan

    def identity(self) -> dict[str, str]:
        """The network's own facts, the precision, and the classes."""
        recipe = self.recipe
        own = recipe.identity() if isinstance(recipe, Network) else {"weights": fingerprint(recipe)}
        facts = {"dtype": str(self.dtype), "classes": str(self.class_map and self.class_map.classes)}
        return own | facts

    def classifier(self) -> Callable[[Tensor], Tensor]:
        """The network's classifier, fixed, as a function from ``[..., D]`` to ``[..., C]``.

        Raises:
            ValueError: if the network does not say which of its submodules it is.
        """
        head = classifier_of(self._ready(), self.image_shape)
        if self._mesh is not None:  # asked outside of the network's own forward, where no weights are gathered
            head = copy.deepcopy(head).to(self._device)

        def classify(embedding: Tensor) -> Tensor:
            logits: Tensor = head(embedding.to(next(head.parameters(), embedding).dtype))
            return logits if self.class_map is None else self.class_map(logits)

        return classify

    def norms(self, tap: str) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation ``[C]`` of a tap's channels by the batch normalisation in front, for each part.

        Raises:
            ValueError: if there is none in front of one.
        """
        found = []
        for name, shape in zip(several(self._plan.names[tap]), several(self._plan.shapes[tap]), strict=True):
            norm = norm_before(self._ready(), name)
            if norm.num_features != shape[1]:
                raise ValueError(f"tap {name!r} has {shape[1]} channels, the batch normalisation {norm.num_features}")
            mean, deviation = (part.detach().float().to(self._device) for part in (norm.bias, norm.weight.abs()))
            found.append((mean, deviation))
        return found

    @torch.no_grad()
    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        """Logits and taps, float32 unless the run's precision or ``dtype`` is lower."""
        self._ready()
        image = self.adapter(batch.images[view]).to(dtype=self.dtype, memory_format=self.memory_format)
        network = self._made_quick(image)
        with tapped(network.eval() if network.training else network, self._submodules) as taps:
            logits = network(image)
        return Outputs(logits if self.class_map is None else self.class_map(logits), self._plan.picked(taps))

    def _made_quick(self, image: Tensor) -> nn.Module:
        """The network that answers such images; it follows a run in float64, in true half precision, in autocast."""
        network, device = self._ready(), image.device
        if self._mesh is not None:
            return self._made_sharded(network, image.dtype, self._mesh)
        lower = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        # A generation is taught by a network whose weights are replaced in place, which their versions tell.
        written = sum(value._version for value in self._values)
        key = network, written, image.dtype, device, lower
        if self._quick is None or self._quick[0] != key:
            network.to(image.dtype)
            shape = self.image_shape
            made = folded(network, shape, self._submodules) if self.fold else network
            if lower is not None:
                made = copy.deepcopy(made) if made is network else made
                cast_once(made, lower)
            if self.compile is not None:
                made.compile(backend=self.compile)
            self._quick = key, made.to(memory_format=self.memory_format)
        return self._quick[1]

    def _made_sharded(self, network: nn.Module, dtype: torch.dtype, mesh: DeviceMesh) -> nn.Module:
        if not is_sharded(network):
            network.to(dtype)
            made = folded(network, self.image_shape, self._submodules) if self.fold else network
            shard(made, mesh)
            self.network = made  # and the whole one is given up
        return self._ready()

    def _ready(self) -> nn.Module:
        if self.network is None:
            raise RuntimeError("setup must be called before a teacher answers")
        return self.network
