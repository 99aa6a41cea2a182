"""The process of one contender: ``python -m benchmarks.speed.contend NAME SETTING``."""

import importlib
import os
import sys

from benchmarks.speed.setting import Setting

# Name -> module and function; a module is imported by its own process only, since that is part of its start-up.
CONTENDERS = {
    "floor": "floor.run",
    "warm": "ours.warm",
    "cold": "ours.cold",
    "online": "ours.online",
    "timm_default": "timm_task.default",
    "timm_fastest": "timm_task.fastest",
    "torchdistill": "torchdistill_box.run",
    "loader": "loaders.ours",
    "torchvision": "loaders.torchvision",
    "bare": "overhead.bare",
    "lightning": "overhead.lightning",
    "kd_lightning": "overhead.kd_lightning",
    "one_rank": "ours.one_rank",
    "two_ranks": "ours.two_ranks",
}


def main(name: str, text: str) -> None:
    """Be a contender, on as many cores as the setting says."""
    setting = Setting.of(text)
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.cores])
    from benchmarks.speed.turns import turns

    turns()  # before anything is printed
    module, _, function = CONTENDERS[name].partition(".")
    getattr(importlib.import_module(f"benchmarks.speed.{module}"), function)(setting)


if __name__ == "__main__":
    main(*sys.argv[1:])
