"""Parameters that no active term reaches: DDP must not wait for them, and the optimizer must leave them alone."""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn


def reached(loss: Tensor) -> set[Tensor]:
    """The leaf tensors that a scalar's graph leads to, those that ``backward`` would give a gradient."""
    leaves: set[Tensor] = set()
    seen: set[torch.autograd.graph.Node] = set()
    open_nodes = [loss.grad_fn] if loss.grad_fn is not None else []
    while open_nodes:
        node = open_nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            leaves.add(variable)
        open_nodes += [following for following, _ in node.next_functions if following is not None]
    return leaves


class Unreached:
    """Ties a loss to the parameters that it does not reach, and takes the zero gradient away again."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._parameters: list[nn.Parameter] = []

    def tied(self, loss: Tensor, key: Hashable, trained: Iterable[nn.Parameter], ranks: int) -> Tensor:
        """The loss, on several ranks with a zero tie to what it does not reach, so that DDP waits for nobody.

        Args:
            loss: A scalar.
            key: While it stays the same, the loss reaches the same parameters, and its graph is not walked again.
            trained: All parameters that are trained; not looked at while the key stays the same.
            ranks: Number of processes.
        """
        if key != self._key:
            leaves = reached(loss)
            self._parameters = [p for p in trained if p.requires_grad and p not in leaves]
            self._key = key
        if ranks == 1:
            return loss
        return loss + sum((0.0 * parameter.sum() for parameter in self._parameters), torch.zeros_like(loss))

    def release(self) -> None:
        """No gradient for what was not reached, so that weight decay and momentum leave it alone."""
        for parameter in self._parameters:
            parameter.grad = None
