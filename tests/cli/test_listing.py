"""What there is to name: compared with what Python and timm say after an import."""

import fnmatch
import inspect
import subprocess
import sys
from types import ModuleType

import pytest
import timm
import yaml

from kd_lightning import distillers, losses
from kd_lightning.cli.listing import HELP, answer, listed, of_config
from kd_lightning.packaged import configs


def names(topic: str, pattern: str = "") -> list[str]:
    return [line.split()[0] for line in listed(topic, pattern).splitlines()]


def built(room: ModuleType, root: type) -> dict[str, type]:
    """The exported classes of a room that are derived from ``root`` and not abstract, by import."""
    found = {name: getattr(room, name) for name in room.__all__}
    kinds = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, root)}
    return {name: kind for name, kind in kinds.items() if kind is not root and not inspect.isabstract(kind)}


@pytest.mark.parametrize(
    ("topic", "room", "root"),
    [("losses", losses, losses.Loss), ("schemes", distillers, distillers.Distiller)],
)
def test_classes_are_those_that_python_knows(topic: str, room: ModuleType, root: type) -> None:
    kinds = built(room, root)
    rows = dict(line.split(maxsplit=1) for line in listed(topic).splitlines())
    assert rows == {name: (inspect.getdoc(kind) or "").splitlines()[0] for name, kind in kinds.items()}


def test_models_are_those_that_timm_knows() -> None:
    listed_names = names("models")
    own = [name for name in listed_names if name.startswith("cifar_")]
    assert listed_names == own + [name for name in timm.list_models() if not name.startswith("cifar_")]
    assert own == timm.list_models("cifar_*")
    assert own[:4] == ["cifar_mobilenetv2", "cifar_resnet8", "cifar_resnet8x4", "cifar_resnet14"]


@pytest.mark.parametrize("pattern", ["resnet18*", "*vit_tiny*", "cifar_wrn_??_[12]"])
def test_a_glob_of_models_is_timms(pattern: str) -> None:
    assert sorted(names("models", pattern)) == sorted(timm.list_models(pattern))


def test_any_other_pattern_is_a_part_of_the_name() -> None:
    assert set(names("models", "ResNet20")) == set(fnmatch.filter(timm.list_models(), "*resnet20*"))
    assert names("losses", "fitnets") == ["Hint"]
    assert names("configs", "offline/kd.yaml") == ["digits/offline/kd.yaml"]
    assert "cifar100/offline/dkd.yaml" in names("configs", "DKD")


def test_configurations_are_told_apart() -> None:
    assert names("configs") == list(configs())
    rows = {line.split()[0]: line.split(maxsplit=1)[1:] for line in listed("configs").splitlines()}
    assert (
        rows["cifar100/offline/ensemble.yaml"][0].split("  ")[0] == "cifar_resnet20 <- cifar_resnet56, cifar_wrn_40_2"
    )
    assert rows["digits/supervised/teacher.yaml"] == ["cifar_resnet8"]
    assert rows["digits/online/one.yaml"][0].split() == ["cifar_resnet8", "CrossEntropy,", "SoftTarget"]
    assert "Weights & Biases beside metrics.csv" in rows["logger/wandb.yaml"][0]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (
            {
                "student": {
                    "name": "kd_lightning.models.SimKDStudent",
                    "kwargs": {"student": {"name": "a"}, "teacher": {"name": "b"}},
                },
                "teacher": {
                    "class_path": "StoredOutputs",
                    "init_args": {"teacher": {"init_args": {"network": {"name": "b"}}}},
                },
                "criteria": {
                    "hint": {"loss": "kd_lightning.losses.Hint"},
                    "kd": {"loss": {"class_path": "SoftTarget"}},
                },
            },
            ("a <- b", "Hint, SoftTarget"),
        ),
        (
            {"student": {"name": "my.Network"}, "teacher": {"class_path": "MovingAverageTeacher"}, "criteria": {}},
            ("my.Network <- MovingAverageTeacher", ""),
        ),
        (
            {
                "student": {"name": "kd_lightning.models.cifar.CifarResNet"},
                "teacher": None,
                "criteria": {"tf": {"loss": "TeacherFree"}},
            },
            ("CifarResNet", "TeacherFree"),
        ),
    ],
)
def test_who_learns_from_whom(stated: dict[str, object], told: tuple[str, str]) -> None:
    assert of_config(yaml.safe_dump({"model": {"init_args": stated}})) == told


def test_a_configuration_without_a_model_says_its_first_sentence() -> None:
    text = "# kd-lightning fit --config a.yaml\n# One thing beside\n# metrics.csv. Another.\nkey: 1\n# More."
    assert of_config(text) == ("", "One thing beside metrics.csv.")
    assert of_config("key: 1\n# More.") == ("", "")
    told = {
        path: of_config(path.read_text())[1] for path in configs().values() if path.parent.name in ("logger", "sweep")
    }
    assert len(told) > 3
    assert all(sentence.endswith(".") for sentence in told.values())


def test_the_help_says_which_ones_are_no_configurations_of_a_training() -> None:
    assert "those under sweep/ are for kd-lightning sweep" in HELP


def test_columns_begin_below_each_other() -> None:
    first, second = listed("models", "cifar_resnet*").splitlines()[:2]
    assert first.index("ResNet-8,") == second.index("ResNet-8,")
    assert not any(line != line.rstrip() for line in listed("configs").splitlines())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["networks"], r"list knows models, losses, schemes, configs, got 'networks'"),
        ([], r"list needs one of models, losses, schemes, configs, and takes a pattern, got \[\]"),
        (["models", "a", "b"], r"got \['models', 'a', 'b'\]"),
        (["losses", "SoftTarge_"], r"none of the losses is 'SoftTarge_': did you mean SoftTarget"),
        (["models", "nothing*like*it"], r"none of the models is 'nothing\*like\*it'$"),
    ],
)
def test_what_is_not_there_is_said(line: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answer(line)


@pytest.mark.parametrize("line", [["models", "resnet5"], ["configs"]])
def test_no_answer_imports_torch(line: list[str]) -> None:
    ask = "import sys; from kd_lightning.cli.front import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask, "list", *line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
