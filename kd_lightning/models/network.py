"""A network as a recipe: what to build, from which weights, and what input it was made for."""

import copy
import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_type_hints

import timm
from torch import nn

from kd_lightning.models import cifar
from kd_lightning.models.filled_later import is_filled_later
from kd_lightning.models.peer_weights import OF_PEER, load_peer
from kd_lightning.models.weights import file_sha256, load_weights
from kd_lightning.seeds import run_seed, seeded
from kd_lightning.trust import imported

Role = Literal["student", "teacher"]
REGISTERED = cifar  # importing it registers the networks with timm
KEPT = "epoch="  # what the name of a checkpoint of an epoch starts with
AT_EPOCH = f"@{KEPT}"
LOCAL = "local-dir:"
TIMM_SOURCES = ("hf-hub:", "hf_hub:", LOCAL)  # in front of a name: where timm finds a config.json, and weights
PRETRAINED = "pretrained"  # weights of timm's


def epoch_file(run: Path, epoch: str) -> Path:
    """The checkpoint that a run kept of an epoch.

    Args:
        run: Its folder.
        epoch: How many epochs it had trained, as text: a whole number >= 1.

    Raises:
        FileNotFoundError: if there is no such run, or it did not keep that epoch, with those that it has.
        ValueError: if ``epoch`` is no whole number >= 1.
    """
    if not epoch.isdecimal() or int(epoch) < 1:
        raise ValueError(f"weights: RUN@epoch=N needs a whole number N >= 1, got {epoch!r}")
    if not run.is_dir():
        raise FileNotFoundError(f"weights: there is no run folder {run}")
    kept = {int(path.stem.removeprefix(KEPT)): path for path in run.glob(f"checkpoints/{KEPT}*.ckpt")}
    if int(epoch) in kept:
        return kept[int(epoch)]
    there = f"it has epochs {', '.join(map(str, sorted(kept)))}" if kept else "it kept none"
    raise FileNotFoundError(
        f"weights: the run {run} has no checkpoint of epoch {epoch}: {there}; "
        "a run keeps every Nth one with --checkpoints.keep_every_epochs=N"
    )


def weights_file(weights: str | dict[str, str]) -> Path:
    """The file that a ``weights`` entry means: a file, the last checkpoint of a run folder, or RUN@epoch=N.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a recipe, which only the command line can train.
    """
    if isinstance(weights, dict):
        raise ValueError(
            f"weights {weights} must be trained first: start the run with the kd-lightning command, "
            "or give the finished run's folder as weights"
        )
    path = Path(weights)
    run, at, epoch = weights.rpartition(AT_EPOCH)
    if at and not path.exists():
        return epoch_file(Path(run), epoch)
    if path.is_dir():
        checkpoint = path / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise FileNotFoundError(f"weights: the run {path} has no {checkpoint.relative_to(path)}: has it finished?")
        return checkpoint
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file or run folder {path}")
    return path


def constructor(name: str) -> Callable[..., nn.Module]:
    """What builds the network of that name: timm's registry, or the class or function at a dotted path.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    if name.startswith(TIMM_SOURCES) or timm.is_model(name):
        return lambda **kwargs: timm.create_model(name, **kwargs)
    if "." in name and not timm.is_model(name.split(".")[0]):
        found = imported(name)
        if not _makes_module(found):
            raise ValueError(f"{name!r} is neither an nn.Module nor a function that is annotated to return one")
        return cast(Callable[..., nn.Module], found)
    near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    raise ValueError(
        f"no network is called {name!r}"
        + (f", the nearest are {', '.join(near)}" if near else "")
        + "; a network is a timm model name, one of the cifar_* networks, or the dotted path of an nn.Module"
    )


def _makes_module(found: object) -> bool:
    made = found if inspect.isclass(found) or not callable(found) else get_type_hints(found).get("return")
    return inspect.isclass(made) and issubclass(made, nn.Module)


@dataclass(frozen=True)
class Network:
    """What to build, and from what. Two builds give two networks; the class count comes from the data.

    Args:
        name: A model of timm's registry (this package adds ``cifar_*``), or the dotted path of an ``nn.Module`` or of
            a function that returns one.
        kwargs: Arguments of its constructor. ``num_classes`` and ``in_chans`` come from the data.
        weights: ``pretrained`` (timm's hub), a ``.ckpt``, ``.pth`` or ``.safetensors`` file, the folder of a run (its
            last checkpoint), ``RUN@epoch=N`` (that run after N epochs), ``RUN#peer=NAME`` (one of a run's peers), or
            ``{recipe: CONFIG}``, the run of that configuration, trained first if it is not there, or that ``@epoch=N``.
        sha256: Of the weights file, checked before it is loaded.
        mean: What each channel was normalised by, in units of [0, 1]; as the data by default, and timm's figures for
            ``pretrained``.
        std: The same for the standard deviation.
        image_size: Side of the square images that it was made for, in pixels; as the data by default.
        resize: Interpolate the position embeddings of a weights file that was made for images of another size, as for a
            fine-tuning at 384 pixels; timm does so itself with ``pretrained``.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str | dict[str, str] | None = None
    sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std must be given together, got mean {self.mean} and std {self.std}")
        if isinstance(self.weights, dict) and set(self.weights) != {"recipe"}:
            raise ValueError(f"weights must be a text or {{recipe: CONFIG}}, got {self.weights}")
        if self.resize and self.weights is None:
            raise ValueError(f"resize needs weights whose position embeddings it interpolates; {self.name} has none")
        for flowing in ("num_classes", "pretrained"):
            if flowing in self.kwargs:
                reason = "comes from the data" if flowing == "num_classes" else "is said by weights: pretrained"
                raise ValueError(f"kwargs must not hold {flowing}, which {reason}; got {self.kwargs[flowing]!r}")

    def arguments(self, num_classes: int, in_chans: int) -> dict[str, Any]:
        """What the constructor is given: ``kwargs``, and what comes from the data, where it takes that.

        Raises:
            ValueError: if there is no network of that name.
        """
        given: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans} | self.kwargs
        known = inspect.signature(constructor(self.name)).parameters
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
            return given
        return {key: value for key, value in given.items() if key in known or key in self.kwargs}

    def build(self, num_classes: int, in_chans: int = 3, role: Role = "student", seed: int | None = None) -> nn.Module:
        """A new network with its weights, unless it is `filled_later`.

        The initialisation is a function of (seed, role): a student starts from the same weights whether or not a
        teacher is built beside it.

        Args:
            num_classes: Number of classes of the data, >= 1.
            in_chans: Channels of the images.
            role: A teacher's pretrained head must fit the data; a student gets a new one where it does not.
            seed: Of the initialisation; the run's by default.

        Raises:
            ValueError: if the name, an argument, or the weights do not fit; the message says what is right.
        """
        make, given = constructor(self.name), self.arguments(num_classes, in_chans)
        weights = None if is_filled_later() else self.weights
        if weights == PRETRAINED:
            self._check_head(num_classes, role)
            given["pretrained"] = True
        with seeded(run_seed() if seed is None else seed, "initialisation", role):
            try:
                network = make(**given)
            except (TypeError, RuntimeError) as error:  # timm: an unknown pretrained tag
                raise ValueError(f"network {self.name}: {error}") from error
        if weights is not None and weights != PRETRAINED:
            self._fill(network, weights)
        return network

    def _fill(self, network: nn.Module, weights: str | dict[str, str]) -> None:
        run, at, peer = weights.rpartition(OF_PEER) if isinstance(weights, str) else ("", "", "")
        if at:
            load_peer(network, weights_file(run), peer, self.sha256)
        else:
            load_weights(network, weights_file(weights), self.sha256, self.resize)

    @property
    def from_hub(self) -> bool:
        """Whether the weights are timm's."""
        return self.weights == PRETRAINED

    def identity(self) -> dict[str, str]:
        """What the answers of the network depend on, as short texts; its weights by the hash of their file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it has no weights: two builds would differ.
        """
        if self.weights is None:
            raise ValueError(f"network {self.name} has no weights: what it says now it would not say again")
        facts = {"name": self.name, "kwargs": json.dumps(self.kwargs, sort_keys=True, default=repr)}
        if isinstance(self.weights, str) and not self.from_hub:
            run, at, peer = self.weights.rpartition(OF_PEER)
            facts["weights"] = f"{file_sha256(weights_file(run if at else self.weights))}{at}{peer}"
        elif self.from_hub:
            config = self._hub_config()
            facts["weights"] = f"timm's {config.architecture}.{config.tag}, {config.hf_hub_id or config.url}"
        else:
            facts["weights"] = str(self.weights)
        return facts | {"normalisation": str(self.normalisation()), "image_size": str(self.resolution())}

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std) that the network was trained with, None if they are the data's."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        return (self._hub_config().mean, self._hub_config().std) if self.from_hub else None

    def resolution(self) -> int | None:
        """Side of the images that the network was trained with, None if it is the data's."""
        if self.image_size is not None:
            return self.image_size
        return int(self._hub_config().input_size[-1]) if self.from_hub else None

    def _hub_config(self) -> Any:
        config = timm.get_pretrained_cfg(self.name)
        if config is None:
            raise ValueError(f"network {self.name} has no pretrained weights in timm: give a file as weights")
        return config

    def hub_classes(self) -> int:
        """Number of classes of timm's weights."""
        return int(self._hub_config().num_classes)

    def _check_head(self, num_classes: int, role: Role) -> None:
        published = self.hub_classes()
        if role == "teacher" and published != num_classes:
            raise ValueError(
                f"teacher {self.name}: its pretrained head has {published} classes, the data {num_classes}: "
                "train it on this data first and give that run as weights, or, if the data's classes are among its "
                "own, say which in the teacher's classes"
            )


InnerRecipe = Network | nn.Module | Mapping[str, Any]


def build_inner(network: InnerRecipe, num_classes: int, in_chans: int, seed: int | None) -> nn.Module:
    """The network that another is made of: built from its recipe or the recipe's fields; of a module, a copy.

    Args:
        network: Recipe, fields or module.
        num_classes: C.
        in_chans: Channels of the images.
        seed: Of the initialisation; None for the run's. A copy keeps the module's weights.
    """
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    recipe = network if isinstance(network, Network) else Network(**cast(dict[str, Any], network))
    return recipe.build(num_classes, in_chans, seed=seed)


if TYPE_CHECKING:
    NetworkLike: TypeAlias = Network | nn.Module
else:
    # A YAML file states recipes; in Python a module may be given in a recipe's place.
    NetworkLike = Network

__all__ = ["InnerRecipe", "Network", "NetworkLike", "Role", "build_inner", "weights_file"]
