"""The weights of one peer, out of the checkpoint of peers that learnt together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.models.evaluated import below, evaluated_student
from kd_lightning.models.weights import matched, read_weights

OF_PEER = "#peer="  # between a run, or a file, and the name of one of its peers
PEERS = "networks"  # what holds the peers in an `OnlineDistiller`'s student
TRUNK, BRANCHES = "trunk.", "branches."  # of a `BranchedNetwork`
NETWORK, EXITS = "network.", "exits."  # of a `MultiExitNetwork`
BEST = "best"
TOP1 = "peers_top1"  # in a checkpoint: val/top1 of each peer and branch when it was written


def plain_weights(state: Mapping[str, Tensor], branch: int) -> dict[str, Tensor]:
    """Trunk and one branch, counted from 1, of a `BranchedNetwork`'s state, under the plain network's names.

    Raises:
        ValueError: if there is no such branch.
    """
    wanted = (TRUNK, f"{BRANCHES}{branch - 1}.")
    if branch < 1 or not any(key.startswith(wanted[1]) for key in state):
        known = sorted({int(key.split(".")[1]) + 1 for key in state if key.startswith(BRANCHES)})
        raise ValueError(f"there is no branch {branch}: there are {known}")
    return {key.removeprefix(part): value for key, value in state.items() for part in wanted if key.startswith(part)}


def _has_exits(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(EXITS) for key in state)


def exit_weights(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The network and one exit, counted from 1, of a `MultiExitNetwork`'s state.

    Raises:
        ValueError: if there is no such exit.
    """
    known = sorted({int(key.split(".")[1]) for key in state if key.startswith(EXITS)})
    if number not in known:
        raise ValueError(f"there is no exit {number}: there are {known}")
    return {key: value for key, value in state.items() if key.startswith((NETWORK, f"{EXITS}{number}."))}


def best_peer(top1: Mapping[str, float], asked: str) -> str:
    """The name with the largest val/top1; of equal ones the first in the alphabet.

    Args:
        top1: Peer or branch -> val/top1 when a checkpoint was written.
        asked: What asked for the best one, for the error.

    Raises:
        ValueError: if there are none.
    """
    if not top1:
        raise ValueError(f"{asked}: the checkpoint knows no val/top1 of its peers: name one")
    return max(sorted(top1), key=lambda learner: top1[learner])


def peers_in(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The peers of an `OnlineDistiller`'s checkpoint, each by its own network's names, as they are evaluated."""
    state = below(evaluated_student(checkpoint), PEERS)
    return {name: below(state, name) for name in sorted({key.partition(".")[0] for key in state})}


def _owner(checkpoint: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], int | None]:
    """The whole state of a peer, and the number of the branch or exit that is meant; see `peer_weights`."""
    if name == BEST:
        name = best_peer(checkpoint.get(TOP1) or {}, "peer 'best'")
    peers = peers_in(checkpoint)
    owner, _, number = name.rpartition("_")
    if name not in peers and owner in peers and number.isdecimal():
        return peers[owner], int(number)
    if name not in peers:
        raise ValueError(f"the checkpoint has no peer {name!r}: it has {', '.join(peers) or 'none'}")
    return peers[name], None


def peer_weights(checkpoint: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The weights of one peer out of an `OnlineDistiller`'s checkpoint, under its own network's names.

    They fill what the peer's recipe builds; those of a branch (``one_2``) fill the plain network that the branches are
    made from; those of an exit (``net_2``) are the whole network's and that exit's.

    Args:
        checkpoint: As Lightning wrote it, with ``state_dict``.
        name: Of a peer, a branch or an exit; ``best`` for the one with the largest val/top1 when the checkpoint was
            written.

    Raises:
        ValueError: if there is no such peer, or ``best`` is asked of a checkpoint that knows no val/top1.
    """
    state, number = _owner(checkpoint, name)
    if number is None:
        return state
    return exit_weights(state, number) if _has_exits(state) else plain_weights(state, number)


def _part_for(network: nn.Module, found: Mapping[str, Tensor], number: int | None, source: str) -> dict[str, Tensor]:
    """Of a peer with exits, what a network takes: all, up to the exit that is meant, or the network without exits."""
    wanted = network.state_dict()
    if number is None:
        return dict(found) if _has_exits(wanted) else below(found, NETWORK.removesuffix("."))
    if {key.split(".")[1] for key in wanted if key.startswith(EXITS)} != {str(number)}:
        raise ValueError(
            f"{source} is an exit: build it as a MultiExitNetwork with only: {number}, got {type(network).__name__}"
        )
    return {key: value for key, value in found.items() if key in wanted or key.startswith(EXITS)}


def load_peer(network: nn.Module, path: str | Path, name: str, sha256: str | None = None) -> None:
    """Fill a network from one peer of a checkpoint, strictly; see `peer_weights` and `load_weights`.

    A peer with exits fills a `MultiExitNetwork`, or the plain network without exits; one of its exits the
    `MultiExitNetwork` that has ``only`` this one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is refused, has no such peer, or the peer does not fit the network.
    """
    read_weights(path, sha256)  # refuses what is damaged, of another hash, or more than weights
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    found, source = peer_weights(checkpoint, name), f"peer {name} of {path}"
    if _has_exits(found):
        found = _part_for(network, found, _owner(checkpoint, name)[1], source)
    network.load_state_dict(matched(found, network, source), strict=True)
