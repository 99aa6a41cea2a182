"""Which part of a run is exported: the student, a head, a peer, a branch, an exit, a generation or an ensemble."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from kd_lightning.distillers import BornAgainDistiller, DeiTDistiller, Distiller, OnlineDistiller
from kd_lightning.distillers.collaboration import ENSEMBLE
from kd_lightning.distillers.deit import BOTH
from kd_lightning.distillers.generation_answers import answer_names
from kd_lightning.distillers.generations import generation_file
from kd_lightning.distillers.peers import Peers
from kd_lightning.export.part import AnswerOf, Ensemble, Heads, Part, at_ease, bare
from kd_lightning.models import BranchedNetwork, MultiExitNetwork, Network, filled_later, load_weights
from kd_lightning.models.peer_weights import BEST, best_peer
from kd_lightning.models.two_heads import CLASS_HEAD, DISTILLATION_HEAD, Inference, TwoHeaded

HEADS: Mapping[str, Inference] = {CLASS_HEAD: "class", DISTILLATION_HEAD: "distillation", **BOTH}


class Origin(NamedTuple):
    """Where a part is taken from.

    Attributes:
        module: Of the run, as it is evaluated.
        recipes: Of its networks; see `kd_lightning.export.part.recipes`.
        folder: The run's.
        in_chans: Channels of the images.
        top1: Peer or branch -> val/top1 when the checkpoint was written, where it knows it.
    """

    module: Distiller
    recipes: Mapping[str, Network]
    folder: Path
    in_chans: int
    top1: Mapping[str, float]

    def student(self) -> nn.Module:
        """The student, as it is evaluated."""
        return cast(nn.Module, self.module.student)

    def filled(self, recipe: Network, state: Mapping[str, Any]) -> nn.Module:
        """What a recipe builds, with those entries of a state that it has."""
        with filled_later():
            made = recipe.build(cast(int, self.module.num_classes), self.in_chans)
        made.load_state_dict({key: state[key] for key in made.state_dict()})
        return made


def names(module: Distiller) -> list[str]:
    """Names of the parts of a run that can be exported; none where there is the student alone."""
    if isinstance(module, OnlineDistiller):
        together = [ENSEMBLE] if len(_peers(module).networks) > 1 else []
        return [BEST, *module.parts(), *together]
    if isinstance(module, BornAgainDistiller):
        return answer_names(module.generation + 1)
    return list(module.parts()) if isinstance(module, DeiTDistiller) else []


def checked(name: str | None, known: Sequence[str], chosen: bool) -> None:
    """Let the name of a part pass.

    Args:
        name: None for the student as it is evaluated.
        known: The parts that there are.
        chosen: Whether one must be named.

    Raises:
        ValueError: if there is none of this name, or one must be named.
    """
    there = f"it has {', '.join(known)}" if known else "it has none: leave --part out"
    if name is None and chosen:
        raise ValueError(f"the run trains several networks: say which by --part; {there}")
    if name is not None and name not in known:
        hints = [f"; did you mean {each}?" for each in difflib.get_close_matches(name, known, n=1)]
        raise ValueError(f"--part: the run has no part {name!r}; {there}{''.join(hints)}")


def choose(origin: Origin, name: str | None) -> Part:
    """A part of a run; see `names`.

    Args:
        origin: Where it is taken from.
        name: None for the student as it is evaluated.

    Raises:
        ValueError: if there is no such part, one must be named, or nobody knows which is the best.
    """
    checked(name, names(origin.module), isinstance(origin.module, OnlineDistiller))
    found = _found(origin, name)
    return found._replace(network=at_ease(found.network))


def _found(origin: Origin, name: str | None) -> Part:
    module = origin.module
    if isinstance(module, OnlineDistiller):
        return _of_peers(origin, str(name))
    if isinstance(module, BornAgainDistiller) and name is not None:
        return _of_generations(origin, module.generation, name)
    if isinstance(module, DeiTDistiller):
        return _of_heads(origin, module.inference if name is None else HEADS[name], name or "")
    return Part("", origin.student(), origin.recipes.get("student"))


def _of_heads(origin: Origin, inference: Inference, name: str) -> Part:
    network, recipe = at_ease(origin.student()), origin.recipes.get("student")
    if inference == "logits" and isinstance(network, TwoHeaded):  # what timm's networks answer by themselves
        network.set_distilled_training(False)
        return Part(name, network, recipe)
    why = (
        f"the network answers with the mean of both heads' logits (--part both_logits), not with {inference!r} of them"
    )
    return Part(name, Heads(network, inference), recipe, why)


def _of_generations(origin: Origin, present: int, name: str) -> Part:
    kind, _, number = name.rpartition("_")
    if kind != ENSEMBLE:
        return Part(name, _generation(origin, int(number), present), origin.recipes.get("student"))
    together = range(present + 1 - int(number), present + 1)
    networks = [_generation(origin, each, present) for each in together]
    return Part(name, Ensemble(networks), None, f"it is the answer of {number} networks together")


def _generation(origin: Origin, number: int, present: int) -> nn.Module:
    network = copy.deepcopy(origin.student())
    if number < present:
        load_weights(network, generation_file(origin.folder, number))
    return network


def _peers(module: OnlineDistiller) -> Peers:
    return cast(Peers, module.student)


def _of_peers(origin: Origin, name: str) -> Part:
    peers = cast(Peers, origin.student())
    if name == BEST:
        name = best_peer(origin.top1, "--part best")
    if name == ENSEMBLE and name not in peers.networks:
        return Part(name, peers, None, "it is the answer of all peers together")
    if name in peers.ensembles():
        return _answer(peers, peers.ensembles()[name][0], name)
    learner = next(each for each in peers.learners() if each.name == name)
    network, recipe = peers.networks[learner.peer], origin.recipes[learner.peer]
    if isinstance(network, MultiExitNetwork) and network.branch_taps():
        return _of_exits(origin, name, network, recipe, learner.branch)
    if learner.branch is not None and isinstance(network, BranchedNetwork):
        inner = bare(recipe.kwargs["network"])
        number = network.branch_taps().index(learner.branch) + 1
        return Part(name, origin.filled(inner, network.plain_weights(number)), inner)
    if learner.branch is not None:
        return _answer(peers, learner.peer, name)
    return Part(name, network, recipe)


def _answer(peers: Peers, peer: str, name: str) -> Part:
    alone = Peers({peer: peers.networks[peer]})
    return Part(name, AnswerOf(alone, name), None, f"it is made of what {peer} and its branches answer")


def _of_exits(origin: Origin, name: str, network: MultiExitNetwork, recipe: Network, branch: str | None) -> Part:
    if branch is None:
        return Part(name, network.network, bare(recipe.kwargs["network"]))
    number = network.branch_taps().index(branch) + 1
    alone = Network(recipe.name, {**recipe.kwargs, "only": number})
    return Part(name, origin.filled(alone, network.state_dict()), alone)
