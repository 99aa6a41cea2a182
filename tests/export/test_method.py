from pathlib import Path

import yaml

from kd_lightning.export import formulas, networks
from kd_lightning.export.method import formula

CONFIGS = Path(__file__).parents[2] / "configs/digits"


def init_args(config: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((CONFIGS / config).read_text())["model"]["init_args"]
    return found


def test_criteria_are_a_weighted_sum() -> None:
    assert dict(formulas(init_args("offline/kd.yaml"))) == {
        "criteria": "0.1 CrossEntropy + 0.9 SoftTarget(temperature=4.0)"
    }


def test_a_schedule_and_a_tap_are_shown() -> None:
    window = {"class_path": "kd_lightning.distillers.Window", "init_args": {"weight": 1.0, "start": 0.5}}
    loss = {"class_path": "kd_lightning.losses.Hint", "init_args": {"adapter": "none"}}
    term = {"loss": loss, "weight": window, "student": "last_map"}
    assert formula({"hint": term}) == "Window(weight=1.0, start=0.5) Hint(adapter=none) at last_map"


def test_all_criteria_of_a_run_are_found() -> None:
    assert set(dict(formulas(init_args("online/be_your_own_teacher.yaml")))) == {
        "peers.net.criteria",
        "peers.net.branch_criteria",
    }
    assert dict(formulas(init_args("born_again/ban.yaml")))["first"] == "1.0 CrossEntropy"
    assert dict(formulas(init_args("supervised/student.yaml"))) == {}


def test_the_networks_that_teach() -> None:
    assert list(networks(init_args("offline/ensemble.yaml")["teacher"])) != []
    assert list(networks(init_args("offline/kd.yaml")["teacher"])) == ["cifar_resnet8"]
    assert list(networks(None)) == []
