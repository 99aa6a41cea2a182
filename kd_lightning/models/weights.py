"""Weights in files: read without running code, checked to the last name, written whole or not at all."""

import hashlib
import io
import itertools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor, nn

from kd_lightning.models.evaluated import evaluated_student
from kd_lightning.models.position_embeddings import NAME, with_resized
from kd_lightning.whole_file import whole_file

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPERS = ("module.", "student.", "model.", "network.")
SHOWN = 20

State = Mapping[str, Any]


@runtime_checkable
class HasClassifier(Protocol):
    """A network that knows its classifier, as timm's do; those with a distillation head give a pair."""

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The last layer or layers."""


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sha256(file: io.BufferedReader, path: Path, sha256: str) -> None:
    if not re.fullmatch("[0-9a-f]{8,64}", sha256.lower()):
        raise ValueError(f"sha256 must be 8 to 64 hex digits, got {sha256!r}")
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        raise ValueError(f"weights file {path} has sha256 {found}, but sha256 {sha256} was asked for")


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"weights file {path} is truncated, damaged, or no weights file: {reason[0]}")


def _read_torch(file: io.BufferedReader, path: Path, zipped: bool) -> object:
    try:
        if zipped:
            # torch.load does not look at the checksums that it wrote.
            with zipfile.ZipFile(file) as archive:
                if (bad := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")
            file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged or hostile file may raise anything; nothing of it was executed.
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"weights file {path} is refused: besides tensors it holds a pickled {unsafe[1]}, and unpickling that "
                "could run code; if you trust its source, save its state_dict() alone as .safetensors, and load that"
            ) from None
        raise _unreadable(path, error) from error


def _read(path: Path, sha256: str | None) -> object:
    # One open file for every look at it, so that what is loaded is what was checked.
    with path.open("rb") as file:
        if not (start := file.read(9)):
            raise ValueError(f"weights file {path} is empty")
        file.seek(0)
        if sha256 is not None:
            _check_sha256(file, path, sha256)
            file.seek(0)
        if start[8:] == b"{":
            try:
                return safetensors.torch.load(file.read())
            except safetensors.SafetensorError as error:
                raise _unreadable(path, error) from error
        if (zipped := start.startswith(b"PK\x03\x04")) or start.startswith(b"\x80"):
            return _read_torch(file, path, zipped)
        raise _unreadable(path, ValueError(f"it begins with {start!r}, as no safetensors or torch.save file does"))


def read_weights(path: str | Path, sha256: str | None = None) -> dict[str, Any]:
    """The named tensors of a local file, on the CPU, under the names that they have there.

    The content decides the format: safetensors; what ``torch.save`` wrote of a state dict, or of a dict with one under
    one of `STATE_DICT_KEYS`; a Lightning checkpoint, of which the `evaluated_student` is taken where there is one (in
    the state dict stand the criteria's adapters too). Nothing that is pickled beyond tensors and plain containers is
    loaded.

    Args:
        path: A file on this machine.
        sha256: Of the file; its first 8 hex digits or more, in either case. Zip files, which ``torch.save`` writes,
            carry checksums of their own; in safetensors and in ``torch.save`` files from before torch 1.6 only this
            notices a flipped bit.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a URL, is empty or damaged, has another hash, or holds no weights or more than weights.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ValueError(f"weights must be a local file, got {path}: download it, then give the file and its sha256")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} " + ("is a folder" if path.is_dir() else "does not exist"))
    content = state = _read(path, sha256)
    if isinstance(content, Mapping):
        state = next((inner for key in STATE_DICT_KEYS if isinstance(inner := content.get(key), Mapping)), content)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        held = f"a dict of {sorted(map(str, state))[:SHOWN]}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"weights file {path} holds {held}, expected a state dict, or a dict with one under "
            f"{' or '.join(map(repr, STATE_DICT_KEYS))}"
        )
    entries = {str(key): value for key, value in state.items()}
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        return evaluated_student(content) or entries
    return entries


def _uncompiled(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def renamings(keys: Iterable[str]) -> list[dict[str, str]]:
    """Ways to read keys, each a dict key → name: as they are first, then with wrappers taken off, the fewest first.

    Taken off are ``_orig_mod.`` (torch.compile) anywhere, and any of `WRAPPERS` in front of the keys that have it. No
    two keys get the same name, so none is lost.
    """
    ways = [{key: key for key in keys}]
    for way in ways:  # It grows while it is read.
        shorter = [{key: _uncompiled(name) for key, name in way.items()}]
        shorter += [{key: name.removeprefix(prefix) for key, name in way.items()} for prefix in WRAPPERS]
        ways += [new for new in shorter if new not in ways and len(set(new.values())) == len(new)]
    return ways


def _described(value: object, other: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    same_kind = isinstance(other, Tensor) and value.is_floating_point() == other.is_floating_point()
    return f"{list(value.shape)}" if same_kind else f"{list(value.shape)} {value.dtype}"


def _fits(value: object, wanted: object) -> bool:
    if not isinstance(value, Tensor) or not isinstance(wanted, Tensor):
        return isinstance(value, Tensor) == isinstance(wanted, Tensor)
    return value.shape == wanted.shape and value.is_floating_point() == wanted.is_floating_point()


def _listed(title: str, names: list[str]) -> list[str]:
    rest = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"  {title} ({len(names)}): {', '.join(names[:SHOWN])}{rest}"] if names else []


def _classifier_keys(network: nn.Module) -> set[str]:
    heads: tuple[nn.Module, ...]
    if isinstance(network, HasClassifier):
        given = network.get_classifier()
        heads = given if isinstance(given, tuple) else (given,)
    else:
        heads = tuple(module for module in network.modules() if isinstance(module, nn.Linear))[-1:]
    owners = [(name, module) for name, module in network.named_modules() if any(module is head for head in heads)]
    return {f"{name}.{key}" if name else key for name, module in owners for key in module.state_dict()}


def _class_counts(network: nn.Module, misshapen: Mapping[str, tuple[Any, Any]]) -> tuple[int, int] | None:
    """(file's, network's) number of classes, if that alone explains the misshapen entries."""
    if not misshapen or not set(misshapen) <= _classifier_keys(network):
        return None
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in misshapen.values() if isinstance(a, Tensor)]
    if len(shapes) < len(misshapen) or any(a == b or not a or not b or a[1:] != b[1:] for a, b in shapes):
        return None
    counts = {(a[0], b[0]) for a, b in shapes}
    return counts.pop() if len(counts) == 1 else None


def matched(found: State, network: nn.Module, source: str) -> dict[str, Any]:
    """The found entries under the network's own keys, all of them or none.

    Args:
        found: Names and tensors; wrappers' prefixes are taken off (`renamings`) where more of them match then.
        network: Whose state dict is to be filled. It is not changed.
        source: What the entries were found in, for the error.

    Raises:
        ValueError: if an entry is missing, unexpected or misshapen; each is named, up to 20 of a kind.
    """
    wanted = network.state_dict()
    ours, theirs = max(
        itertools.product(renamings(wanted), renamings(found)),
        key=lambda pair: len(set(pair[0].values()) & set(pair[1].values())),
    )
    own_key = {name: key for key, name in ours.items()}
    state = {own_key[name]: found[key] for key, name in theirs.items() if name in own_key}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key, name in theirs.items() if name not in own_key]
    misshapen = {key: (state[key], wanted[key]) for key in state if not _fits(state[key], wanted[key])}
    if not missing and not unexpected and (counts := _class_counts(network, misshapen)):
        raise ValueError(
            f"{source} has {counts[0]} classes, the network {counts[1]}: {', '.join(misshapen)} do not fit; "
            f"give weights trained on {counts[1]} classes"
            + (", or, for a teacher, say in its classes which of its own they are" if counts[0] > counts[1] else "")
        )
    if missing or unexpected or misshapen:
        pairs = [
            f"{key}: file {_described(a, b)}, network {_described(b, a)}" for key, (a, b) in sorted(misshapen.items())
        ]
        lines = _listed("missing", missing) + _listed("unexpected", unexpected) + _listed("misshapen", pairs)
        if any(key.rpartition(".")[2] == NAME for key in misshapen):
            lines.append("  position embeddings for images of another size are interpolated with resize: true")
        raise ValueError("\n".join([f"{source} does not fit the network {type(network).__name__}:", *lines]))
    return state


def load_weights(network: nn.Module, path: str | Path, sha256: str | None = None, resize: bool = False) -> None:
    """Fill a network from a local file (see `read_weights`), strictly: every entry fits, or nothing is loaded.

    Prefixes that wrappers leave (``module.``, ``_orig_mod.``, ``student.``, ``model.``, ``network.``) do not matter, in
    the file or in the network. Floating-point entries are converted to the network's precision.

    Args:
        network: Filled in place.
        path: The file.
        sha256: Of the file, see `read_weights`.
        resize: Interpolate position embeddings to the network's grid of patches (`with_resized`).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is refused (`read_weights`), or does not fit the network; every missing, unexpected or
            misshapen entry is named.
    """
    found = read_weights(path, sha256)
    if resize:
        found = with_resized(found, network)
    network.load_state_dict(matched(found, network, f"weights file {path}"), strict=True)


def _bare(weights: nn.Module | State) -> dict[str, Tensor]:
    """The tensors under the bare network's names, without what torch.compile and DDP put in front, sorted."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    bare = {_uncompiled(key): value for key, value in state.items()}
    while bare and all(key.startswith("module.") for key in bare):
        bare = {key.removeprefix("module."): value for key, value in bare.items()}
    for key, value in bare.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"weights must be tensors, got {type(value).__name__} under {key}")
    return {key: bare[key].detach().cpu().contiguous() for key in sorted(bare)}


def fingerprint(weights: nn.Module | State) -> str:
    """The SHA-256 over names, types, shapes and bytes, 64 hex digits; the same on any device, compiled or not.

    Raises:
        TypeError: if the state dict holds something that is not a tensor.
    """
    digest = hashlib.sha256()
    for key, value in _bare(weights).items():
        digest.update(repr((key, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_safetensors(weights: nn.Module | State) -> bytes:
    """The content of the file that `save_weights` writes."""
    # Tensors that share memory (tied weights) are written twice, since safetensors knows no sharing.
    tensors = {key: value.clone() for key, value in _bare(weights).items()}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def save_weights(weights: nn.Module | State, path: str | Path) -> None:
    """Write a network's weights as safetensors that a plain torch or timm program loads.

    The file is there whole or not at all: it is written beside its place, synced, and renamed. Folders are made.

    Args:
        weights: A network, compiled or wrapped or not, or a state dict.
        path: A file that ends in ``.safetensors``.

    Raises:
        TypeError: if the state dict holds something that is not a tensor.
        ValueError: if the path ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    with whole_file(path) as file:
        file.write(as_safetensors(weights))
