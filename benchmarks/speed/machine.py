"""The machine and the versions that figures are of."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.speed.setting import REPOSITORY

PACKAGES = ("kd-lightning", "torch", "torchvision", "lightning", "timm", "torchdistill", "numpy", "pillow")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as its maker calls it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine() -> str:
    """GPU if there is one, CPU, and the number of cores."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu_name()}, {cores()} cores"


def slug(name: str) -> str:
    """A name as that of a file: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str | None]:
    """Of Python and the packages; None for one that is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """Of the working tree, with ``+`` where it has changes; None where there is no repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "kd_lightning") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
