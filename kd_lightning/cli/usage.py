"""The texts of the command line's help: the first screen of each command, and what begins each topic."""

TOPICS = """more of it, by topic:
  kd-lightning {command} --help trainer       the arguments of Lightning's Trainer
  kd-lightning {command} --help model         the schemes and teachers, with their arguments
  kd-lightning {command} --help data          the data modules, with their arguments
  kd-lightning {command} --help optimizer     optimizers and learning-rate schedules
  kd-lightning {command} --help checkpoints   which checkpoints are kept
  kd-lightning {command} --help logger        trackers beside metrics.csv
  kd-lightning {command} --help CLASS         a scheme, teacher, loss or data module, as OfflineDistiller or SoftTarget
  kd-lightning {command} --help all           every key, as LightningCLI prints it
"""
FIT = """kd-lightning fit: train what a configuration states

usage:
  kd-lightning fit --config CONFIG [--config OVERLAY ...] [--KEY VALUE ...]

  kd-lightning fit --config digits/offline/kd.yaml
  kd-lightning fit --config cifar100/offline/dkd.yaml --experiment cifar --run dkd-seed1 --seed_everything 1
  kd-lightning fit --config my.yaml --config logger/wandb.yaml --trainer.devices 2 --trainer.strategy ddp

CONFIG is a file, or the name of one that comes with the package: kd-lightning list configs.

parts of a configuration, each of which is also an option:
  model             who learns, from whom, and what is matched: class_path is a scheme
  data              on which views: class_path is a data module
  trainer           how long, where, and how: Lightning's Trainer
  checkpoints       which checkpoints are kept
  seed_everything   of weights, batches and views; 0 by default
  experiment, run   folder of the run, runs/EXPERIMENT/RUN; by default the configuration's name, and time and seed

often set:
  --trainer.max_epochs 8            a longer or shorter training; the schedule goes with it
  --trainer.precision bf16-mixed    or 16-mixed, 32-true
  --trainer.fast_dev_run 2          try two batches, and leave nothing
  --data.root DATA                  where the images are
  --data.global_batch_size 128      over all devices
  --model.criteria.kd.weight 0.5    of one term of the loss
  --model.optimizer.lr 0.1

options of the call:
  --print_config    print the complete configuration, and do nothing
  --ckpt_path FILE  go on from a checkpoint; kd-lightning resume RUN_DIR does it with the run's own
  --allow MODULE    let the configuration name classes of this module (your own networks, losses, data)

"""
OF_A_RUN = """kd-lightning {command}: {what}

usage:
  kd-lightning {command} RUN_DIR [--ckpt last|best] [--KEY VALUE ...]
  kd-lightning {command} --config CONFIG --ckpt_path FILE [--KEY VALUE ...]

  kd-lightning {command} runs/cifar/dkd-seed1
  kd-lightning {command} runs/cifar/dkd-seed1 --ckpt best --data.root DATA --trainer.devices 1

RUN_DIR is the folder of a run, whose configuration and last checkpoint are taken unless --ckpt and keys say otherwise.

"""
WHAT = {
    "test": "measure a run on the test set, beside its teacher, and write its results.json",
    "validate": "measure a run on the validation set",
    "predict": "write predictions.csv of a run, with the class probabilities of each test image",
}
RESUME = """kd-lightning resume: go on with a run where it was stopped

usage:
  kd-lightning resume RUN_DIR [--KEY VALUE ...]

The configuration is that of the run, the checkpoint its newest whole one; without one it starts again. On the CPU the
run ends, bit for bit, where it would have ended without the stop. Of a run that has finished nothing is done.
"""
TRAINER = """trainer holds the arguments of Lightning's Trainer. On the command line: --trainer.max_epochs 8
"""
MODEL = """model.class_path is a scheme: one of these, or a subclass of kd_lightning.distillers.Distiller of your own;
its arguments are in init_args. What criteria may name: kd-lightning list losses; a student: kd-lightning list models.
"""
TEACHER = """teacher.class_path, where a scheme has one:
"""
DATA = """data.class_path is one of these, or any LightningDataModule; its arguments are in init_args:
"""
MORE = """What is said of each argument of one: kd-lightning fit --help {}
"""
OPTIMIZER = """model.optimizer names a class, with its arguments in init_args:

  optimizer:
    class_path: torch.optim.SGD
    init_args: {lr: 0.05, momentum: 0.9, weight_decay: 0.0005}

On the command line: --model.optimizer.lr 0.1. These are torch's; those of timm.optim will do too.
"""
SCHEDULE = """model.scheduler is a class of torch.optim.lr_scheduler, or of kd_lightning.distillers: these go with the
length of the training. Its arguments but the optimizer are in init_args. Without one the rate stays.
"""
CHECKPOINTS = """checkpoints says when a run saves last.ckpt and best.ckpt: the student, never a frozen teacher.
On the command line: --checkpoints.every_epochs 5
"""
LOGGER = """metrics.csv in the run's folder is written in any case. A tracker is an overlay:

  kd-lightning fit --config CONFIG --config logger/wandb.yaml

trainer.logger may name any class of lightning.pytorch.loggers, or a list of them. There are overlays for these:
"""


def usage(command: str) -> str:
    """The first screen of help of a command that takes a configuration, or of ``resume``."""
    if command == "resume":
        return RESUME
    first = FIT if command == "fit" else OF_A_RUN.format(command=command, what=WHAT[command])
    return first + TOPICS.format(command=command)
