"""Every configuration runs a few steps on small data, and states the published recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

from kd_lightning.cli.commands import run
from kd_lightning.cli.sweep_file import cells, read_sweep
from kd_lightning.datamodules.make_shards import make_shards
from kd_lightning.models import Network, save_weights

CONFIGS = Path(__file__).parents[2] / "configs"
TEACHERS = {path.stem for path in CONFIGS.glob("cifar100/supervised/*.yaml")}


def is_method(path: Path) -> bool:
    """Whether a configuration is of a method on one pair: `test_every_method` runs those."""
    of_a_pair = any(path.stem.startswith(f"kd_{teacher}_") for teacher in TEACHERS)
    return path.parent == CONFIGS / "cifar100/offline" and not of_a_pair


OF_OTHERS = {"logger", "sweep"}  # laid over a configuration, or a grid of one
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in OF_OTHERS and not is_method(path))
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")
SLOW_TO_START = {"mobilenetv2", "shufflenetv1", "shufflenetv2"}
SMALLER = {"regnety_160": "regnety_002", "resnetv2_152x2_bit": "resnetv2_50x1_bit"}  # of its family
SHARDS = {"train": "train", "test": "val"}  # of which folder
WNIDS = ("n01440764", "n01530575", "n01601694")


def noise(path: Path, side: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-100 and ImageNet in small: noise in the usual folders, and in shards."""
    root = tmp_path_factory.mktemp("data")
    for number in range(100):
        for split, count in {"train": 2, "test": 1}.items():
            for sample in range(count):
                noise(root / f"cifar100/{split}/c{number:02}/{sample}.png", 32, 3 * number + sample)
    for number, wnid in enumerate(WNIDS):
        for split in ("train", "val"):
            for sample in range(3):
                noise(root / f"imagenet/{split}/{wnid}/{sample}.png", 40, 10 * number + sample)
    for split in ("train", "val"):
        make_shards(root / "imagenet" / split, root / "imagenet_shards" / split, per_shard=5)
    return root


def stated(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def small_deit(path: Path, folder: Path) -> list[str]:
    """Options for one block on images of 32 pixels; the weights of a fine-tuning are of images of 48 pixels."""
    student = stated(path)["model"]["init_args"]["student"]
    options = [f"--model.student.kwargs.{name}={value}" for name, value in {"img_size": 32, "depth": 1}.items()]
    options += ["--model.teacher.init_args.network.image_size=32"]
    if "weights" in student:
        start = Network(student["name"], kwargs={"img_size": 48, "depth": 1}).build(len(WNIDS))
        save_weights(start, folder / "student.safetensors")
        options += [f"--model.student.weights={folder / 'student.safetensors'}"]
    return options


def frozen(teacher: dict[str, Any] | None, key: str = "--model.teacher") -> Iterator[tuple[str, dict[str, Any]]]:
    """Option and network of each frozen teacher: of one, or of the members of an ensemble."""
    init = (teacher or {}).get("init_args", {})
    if "network" in init:
        yield f"{key}.init_args", init["network"]
    if "teacher" in init:
        yield from frozen(init["teacher"], f"{key}.init_args.teacher")
    for name, member in init.get("teachers", {}).items():
        yield from frozen(member, f"{key}.init_args.teachers.{name}")


def small_data(path: Path, data: Path) -> list[str]:
    """Options of a data module for the small data."""
    family = path.relative_to(CONFIGS).parts[0]
    if path.parent.name == "data_free":
        options = [f"--data.init_args.data.init_args.root={data}"] if family != "digits" else []
        if stated(path)["data"]["class_path"] == "NoTrainingImages":
            return [*options, "--data.init_args.steps_per_epoch=2", "--data.init_args.global_batch_size=4"]
        images = {"root": data / "imagenet", "global_batch_size": 3, "workers": 0}
        return options + [f"--data.init_args.images.init_args.{name}={value}" for name, value in images.items()]
    options = [f"--data.init_args.root={data / family if family == 'imagenet' else data}"] if family != "digits" else []
    if family == "cifar100":
        options += ["--data.init_args.global_batch_size=4", "--data.init_args.eval_batch_size=4"]
    if family == "imagenet":
        options += ["--data.init_args.global_batch_size=3", "--data.init_args.workers=0"]
        options += ["--data.init_args.image_size=32", "--trainer.devices=1"]
    if stated(path)["data"]["class_path"] == "ShardsDataModule":
        options += [f"--data.init_args.root={data / 'imagenet_shards'}"]
        options += [f"--data.init_args.{part}={name}-{{000000..000001}}.tar" for part, name in SHARDS.items()]
    return options


def small(path: Path, data: Path, folder: Path) -> list[str]:
    """Options that make a configuration run on the small data, with a teacher that knows nothing."""
    family = path.relative_to(CONFIGS).parts[0]
    options = small_data(path, data)
    if path.parent.name == "online":
        options += ["--trainer.devices=1", "--trainer.strategy=auto"]  # codistillation has two processes
    if family == "imagenet" and path.parent.name == "deit":
        options += small_deit(path, folder)
    classes, channels = {"digits": (10, 1), "cifar100": (100, 3), "imagenet": (len(WNIDS), 3)}[family]
    for number, (key, network) in enumerate(frozen(stated(path)["model"]["init_args"].get("teacher"))):
        name, weights = network["name"].split(".")[0], folder / f"teacher{number}.safetensors"
        name = SMALLER.get(name, name)
        save_weights(Network(name, network.get("kwargs", {})).build(classes, channels), weights)
        options += [f"{key}.network.name={name}", f"{key}.network.weights={weights}", f"{key}.check=false"]
    return options


@pytest.mark.parametrize("path", FILES, ids=lambda path: "-".join(path.relative_to(CONFIGS).with_suffix("").parts))
def test_config_runs(path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = path.read_text().splitlines()[0]
    assert launch == f"# kd-lightning fit --config {path.relative_to(CONFIGS.parent)}"
    monkeypatch.chdir(tmp_path)
    options = [*QUIET, *small(path, data, tmp_path), "--experiment=e", "--run=r"]
    assert run(["fit", "--config", str(path), *options, "--trainer.fast_dev_run=1"]) == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("logger/*.yaml")), ids=lambda path: path.stem)
def test_overlay_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    laid_over = CONFIGS / "digits/supervised/teacher.yaml"
    names = [f"--config {file.relative_to(CONFIGS.parent)}" for file in (laid_over, path)]
    assert path.read_text().splitlines()[0] == f"# kd-lightning fit {' '.join(names)}"
    line = ["fit", "--config", str(laid_over), "--config", str(path), *QUIET, "--run=r"]
    assert run([*line, "--trainer.fast_dev_run=1"]) == 0
    assert not Path("runs").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sweep/*.yaml")), ids=lambda path: path.stem)
def test_sweep_runs(path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = path.read_text().splitlines()[0].partition(" --seeds")[0]
    assert launch == f"# kd-lightning sweep {path.relative_to(CONFIGS.parent)}"
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep(path)
    base = CONFIGS.parent / sweep.line[0].removeprefix("--config=")
    options = [*QUIET, *small(base, data, tmp_path), "--run=r"]
    assert run(["fit", *sweep.line, *cells(sweep.parameters)[-1].options(), *options, "--trainer.fast_dev_run=1"]) == 0


def test_real_images_train_a_step(cifar100_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--data.init_args.root={cifar100_root}", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
    path = CONFIGS / "cifar100/supervised/resnet20.yaml"
    assert run(["fit", "--config", str(path), *options, *QUIET, "--trainer.limit_val_batches=1", "--run=r"]) == 0
    assert run(["test", "runs/resnet20/r", *QUIET, "--trainer.limit_test_batches=1"]) == 0


CIFAR = sorted(
    path
    for path in CONFIGS.glob("cifar100/*/*.yaml")
    if "vit_tiny" not in path.read_text() and path.parent.name not in {"born_again", "data_free", "deit", "online"}
)
STAGED = {"ab", "fsp", "ft", "fitnets_two_stage"}  # 30 epochs before the protocol's
LONG = {"mlkd"}
OTHER_TEACHERS = {"dino", "ensemble", "kd_stored", "mean_teacher", "tf_kd"}  # than one frozen network


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_cifar_recipe_is_the_standard_protocols(path: Path) -> None:
    config = stated(path)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    student = model["student"].get("kwargs", {}).get("student", model["student"])["name"].removeprefix("cifar_")
    rate = 0.01 if student in SLOW_TO_START else 0.05
    assert data["global_batch_size"] == 64
    assert model["optimizer"]["init_args"] == {"lr": rate, "momentum": 0.9, "weight_decay": 0.0005}
    before, factor = (30, 1) if path.stem in STAGED else (0, 2 if path.stem in LONG else 1)
    epochs = config["trainer"]["max_epochs"]
    assert epochs == factor * 240 + before
    milestones = model["scheduler"]["init_args"]["milestones"]
    assert [round(epochs * share) - before for share in milestones] == [factor * epoch for epoch in (150, 180, 210)]
    if path.parent.name == "offline" and path.stem not in OTHER_TEACHERS:
        network = model["teacher"]["init_args"]["network"]
        teacher = network["name"].removeprefix("cifar_")
        assert path.stem == f"kd_{teacher}_{student}" or (teacher, student) == ("resnet56", "resnet20")
        assert network["weights"] == {"recipe": f"configs/cifar100/supervised/{teacher}.yaml"}
        assert (CONFIGS.parent / network["weights"]["recipe"]).is_file()


def test_pairs_learn_by_soft_targets() -> None:
    for path in CIFAR:
        if path.parent.name == "offline" and not is_method(path):
            assert formula(path) == {"ce": ("CrossEntropy", 0.1), "kd": ("SoftTarget", 0.9)}, path.stem
            assert stated(path)["model"]["init_args"]["criteria"]["kd"]["loss"]["init_args"] == {"temperature": 4.0}


def formula(path: Path) -> dict[str, tuple[str, Any]]:
    """Name of the loss and weight, or arguments of the weight's schedule, of each term."""
    found = {}
    for name, term in stated(path)["model"]["init_args"]["criteria"].items():
        loss, weight = term["loss"], term["weight"]
        schedule = weight["init_args"] if isinstance(weight, dict) else weight
        found[name] = (loss["class_path"] if isinstance(loss, dict) else loss, schedule)
    return found


# Weights of Tian et al., ICLR 2020, and of the papers, for the very formulas of the losses.
PUBLISHED = {
    "fitnets": ("Hint", 100.0),
    "at": ("AttentionTransfer", 1000.0),
    "sp": ("Similarity", 3000.0),
    "cc": ("CorrelationCongruence", 0.02),
    "vid": ("VID", 1.0),
    "rkd": ("RKD", 1.0),
    "pkt": ("PKT", 30000.0),
    "nst": ("NST", 50.0),
    "crd": ("CRD", 0.8),
    "ofd": ("OverhaulFeature", 1.0),
    "dkd": ("DKD", {"weight": 1.0, "epochs": 0.083333}),
    "reviewkd": ("ReviewKD", {"weight": 0.6, "epochs": 0.083333}),
    "dist": ("DIST", 2.0),
    "kd_logit_std": ("SoftTarget", 9.0),
    "simkd": ("Hint", 1.0),
    "ft": ("FactorTransfer", {"weights": [1.0, 200.0], "starts": [30]}),
    "ab": ("ActivationBoundary", {"weight": 1.0, "end": 30}),
    "fsp": ("FSP", {"weight": 1.0, "end": 30}),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_method_has_its_published_weight(method: str) -> None:
    terms = formula(CONFIGS / f"cifar100/offline/{method}.yaml")
    ce = terms.pop("ce", None)
    assert list(terms.values()) == [PUBLISHED[method]]
    expected: Any = {"simkd": None, "kd_logit_std": ("CrossEntropy", 0.1)}.get(method, ("CrossEntropy", 1.0))
    if method in STAGED:
        expected = ("CrossEntropy", {"weight": 1.0, "start": 30})
    assert ce == expected


def test_all_pairs_of_the_table_are_there() -> None:
    pairs = {path.stem for path in CIFAR if path.parent.name == "offline" and not is_method(path)}
    assert len(pairs) == 13
    assert {"kd_wrn_40_2_wrn_16_2", "kd_resnet56_resnet20", "kd_resnet32x4_resnet8x4", "kd_vgg13_vgg8"} <= pairs


def test_imagenet_teachers_exist_in_timm() -> None:
    found = [
        network["name"]
        for path in CONFIGS.glob("imagenet/offline/*.yaml")
        for _, network in frozen(stated(path)["model"]["init_args"]["teacher"])
    ]
    assert {"resnet34.tv_in1k", "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k"} <= set(found)
    for name in found:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        assert config.num_classes == 1000
