"""The parser: LightningCLI's, with errors that help and imports that were allowed."""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from kd_lightning import datamodules, distillers, losses, models, trust

UNKNOWN = re.compile(r"(?:[Uu]nrecognized arguments|[Kk]ey|[Oo]ption|[Aa]rgument)s?:? [\"'`]*(?:--)?([\w.]+)")
UNKNOWN_CLASS = re.compile(r"dot import path string: (\w+)")
CLASSES = {name for room in (datamodules, distillers, losses, models) for name in room.__all__}  # named without a path
DENIED = re.compile(r"Importing '((\w+)[\w.]*)' is not allowed, denied by .*? in set_parsing_settings to allow it\.")
TRUST = r"'\1' may not be imported: if you trust it, allow it with --allow \2"


def guard(allowed: Sequence[str]) -> None:
    """Let configurations import this package, its libraries, and ``allowed``; nothing else, and nothing from a URL.

    What is allowed may lie in the working folder, which comes last: a file there hides no installed module.
    """
    trust.allow(allowed)
    if allowed and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=sorted(trust.ALLOWED),
        validate_subclass_spec_in_any=True,
        instantiate_subclass_spec_in_any=False,
        config_read_mode_fsspec_enabled=False,
    )


def nearest(unknown: str, known: Iterable[str]) -> str | None:
    """The known key that an unknown one was probably meant to be: compared whole, then by its last and first part."""
    known = sorted(known)
    whole = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
    if whole:
        return whole[0]
    leaves = {name.rpartition(".")[2]: name for name in known}
    for part in (unknown.rpartition(".")[2], unknown.partition(".")[0]):
        if part not in leaves and (leaf := difflib.get_close_matches(part, leaves, n=1, cutoff=0.7)):
            return leaves[leaf[0]]
    return None


class Parser(LightningArgumentParser):
    """Names the nearest key where one is unknown, and expands no abbreviation."""

    subparsers: Sequence[LightningArgumentParser] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Leave with exit code 2, one message, and the nearest keys."""
        known = {action.dest for parser in (self, *Parser.subparsers) for action in parser._actions}
        hints = {key: nearest(key, known - {key}) for key in dict.fromkeys(UNKNOWN.findall(message))}
        hints |= {name: nearest(name, CLASSES - {name}) for name in UNKNOWN_CLASS.findall(message)}
        said = "".join(f"\n  {key}: did you mean {hint}?" for key, hint in hints.items() if hint and key not in known)
        print(f"kd-lightning: error: {DENIED.sub(TRUST, message)}{said}", file=sys.stderr)
        sys.exit(2)
