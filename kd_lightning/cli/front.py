"""The thin front of the command line: what needs no torch is answered at once."""

import sys
from collections.abc import Sequence

from kd_lightning import __version__

HELP = f"""kd-lightning {__version__}: knowledge distillation of image classifiers

usage:
  kd-lightning fit      --config CONFIG [--experiment NAME] [--run NAME] [--KEY VALUE ...]
  kd-lightning validate --config CONFIG --ckpt_path FILE
  kd-lightning test     --config CONFIG --ckpt_path FILE
  kd-lightning predict  --config CONFIG --ckpt_path FILE
  kd-lightning test     RUN_DIR [--ckpt last|best]     test a run; last is the default
  kd-lightning predict  RUN_DIR [--ckpt last|best]     write its predictions.csv
  kd-lightning resume   RUN_DIR                        go on where a run was stopped

A configuration states who learns, from whom, what is matched, and on which views. Any key of it can be set:
  --trainer.max_epochs 8   --model.criteria.kd.weight 0.5   --data.global_batch_size 128
Several --config are laid over each other, for instance configs/logger/wandb.yaml.

options:
  --allow MODULE   let the configuration name classes of this module (your own networks, losses, data)
  --version        the version
  --help           this text; kd-lightning fit --help lists all keys,
                   kd-lightning fit --config CONFIG --print_config prints the complete configuration

A run leaves runs/<experiment>/<run>/ with config.yaml, metrics.csv, checkpoints/, and results.json after its test.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer ``--help`` and ``--version``; go on into the command line for the rest, in the same process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return
    if given[0] in {"--version", "-V", "version"}:
        print(f"kd-lightning {__version__}")
        return
    from kd_lightning.cli.commands import run

    sys.exit(run(given))
