"""What is measured: two networks, data, batch, rounds; the same for every contender."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).parents[2]
CLASSES = 100
SMALL = 32  # pixels; such images are held in memory


@dataclass(frozen=True)
class Pair:
    """Two networks, and the configuration that distils one from the other.

    Attributes:
        teacher: timm's name of it.
        student: timm's name of it.
        side: Of the images, in pixels.
        config: From the repository's root.
    """

    teacher: str
    student: str
    side: int
    config: str


CIFAR_CONFIG = "configs/cifar100/offline/kd_resnet56_resnet20.yaml"
PAIRS = {
    "resnet56_resnet20": Pair("cifar_resnet56", "cifar_resnet20", SMALL, CIFAR_CONFIG),
    "resnet32x4_resnet8x4": Pair(
        "cifar_resnet32x4", "cifar_resnet8x4", SMALL, "configs/cifar100/offline/kd_resnet32x4_resnet8x4.yaml"
    ),
    "resnet50_resnet18": Pair("resnet50", "resnet18", 224, "configs/imagenet/offline/kd_resnet34_resnet18.yaml"),
    "resnet14_resnet8": Pair("cifar_resnet14", "cifar_resnet8", SMALL, CIFAR_CONFIG),
}
MAIN, QUICK = "resnet56_resnet20", "resnet14_resnet8"
ON_GPU = ("resnet32x4_resnet8x4", "resnet50_resnet18")


@dataclass(frozen=True)
class Setting:
    """What each contender is told.

    Attributes:
        folder: Where images, weights, stored outputs and runs are.
        pair: Key of `PAIRS`.
        batch: Images per step.
        rounds: Epochs that count; one more goes before them.
        threads: Of each process.
        cores: That a contender may use with all its processes.
        views: Of each image in the filled store.
    """

    folder: str
    pair: str
    batch: int
    rounds: int
    threads: int
    cores: int
    views: int

    @property
    def networks(self) -> Pair:
        """The two networks."""
        return PAIRS[self.pair]

    @property
    def root(self) -> Path:
        """The folder that holds the data set's own."""
        return Path(self.folder) / f"images{self.networks.side}"

    @property
    def weights(self) -> Path:
        """The teacher's."""
        return Path(self.folder) / f"{self.networks.teacher}.safetensors"

    @property
    def store(self) -> Path:
        """The filled one."""
        return Path(self.folder) / f"{self.pair}.outputs"

    def text(self) -> str:
        """As one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        """The inverse of `text`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)
