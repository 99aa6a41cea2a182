"""The formula of a loss, from terms and from configurations."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from kd_lightning.distillers import Complement, Criteria, Piecewise, Ramp, Schedule, Term, Window
from kd_lightning.distillers.formula import formula, formula_of, formulas_of
from kd_lightning.losses import CRD, DKD, RKD, CrossEntropy, CurriculumTemperature, MultiLevelKD, SoftTarget

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = {path: model for path in CONFIGS.rglob("*.yaml") if (model := yaml.safe_load(path.read_text()).get("model"))}


def of(loss: str, /, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"kd_lightning.losses.{loss}", "init_args": init_args}


BOTH: dict[str, tuple[Term, dict[str, Any]]] = {
    "0.1 · CrossEntropy": (
        Term(CrossEntropy(), weight=0.1, teacher=None),
        {"loss": of("CrossEntropy", label_smoothing=0.0), "weight": 0.1, "student": "default", "teacher": None},
    ),
    "SoftTarget(T=4)": (Term(SoftTarget(4.0)), {"loss": of("SoftTarget", temperature=4.0, standardize=False)}),
    "SoftTarget(T=2, standardize=true)": (
        Term(SoftTarget(2.0, standardize=True)),
        {"loss": of("SoftTarget", temperature=2, standardize=True), "weight": 1},
    ),
    "DKD(alpha=1, beta=8, T=4)": (Term(DKD()), {"loss": of("DKD", alpha=1.0, beta=8.0, temperature=4.0)}),
    "0.02 · CRD(dim=128, negatives=16384, T=0.07, momentum=0.5)": (
        Term(CRD(), weight=0.02),
        {"loss": of("CRD", dim=128, negatives=16384, temperature=0.07, momentum=0.5), "weight": 0.02},
    ),
    "RKD(angle=50)": (Term(RKD(0.0, 50.0)), {"loss": of("RKD", distance=0.0, angle=50.0)}),
    "MultiLevelKD(temperatures=[2, 4.5], parts=[instance])": (
        Term(MultiLevelKD([2.0, 4.5], ["instance"])),
        {"loss": of("MultiLevelKD", temperatures=[2.0, 4.5], parts=["instance"])},
    ),
    "Window(weight=0.5, end=30) · CrossEntropy": (
        Term(CrossEntropy(), weight=Window(0.5, end=30), teacher=None),
        {
            "loss": "CrossEntropy",
            "weight": {"class_path": "kd_lightning.distillers.Window", "init_args": {"weight": 0.5, "end": 30}},
        },
    ),
    "Piecewise(weights=[1, 200], starts=[0.5]) · CrossEntropy": (
        Term(CrossEntropy(), weight=Piecewise([1.0, 200.0], [0.5]), teacher=None),
        {
            "loss": of("CrossEntropy"),
            "weight": {
                "class_path": "kd_lightning.distillers.schedules.Piecewise",
                "init_args": {"weights": [1.0, 200.0], "starts": [0.5]},
            },
        },
    ),
    "SoftTarget(T=4)[teacher big/logits, view strong]": (
        Term(SoftTarget(), teacher="big/logits", view="strong"),
        {"loss": of("SoftTarget", temperature=4.0), "teacher": "big/logits", "view": "strong"},
    ),
    "SoftTarget(T=4)[student [stage:1, stage:2], view a + b, teacher's view a]": (
        Term(SoftTarget(), student=["stage:1", "stage:2"], views=["a", "b"], teacher_views=["a"]),
        {
            "loss": of("SoftTarget", temperature=4.0),
            "student": ["stage:1", "stage:2"],
            "views": ["a", "b"],
            "teacher_views": ["a"],
        },
    ),
    "CurriculumTemperature(loss=SoftTarget(T=4), epochs=10, lowest=1, span=20)": (
        Term(CurriculumTemperature(SoftTarget())),
        {"loss": of("CurriculumTemperature", loss=of("SoftTarget", temperature=4.0), epochs=10, lowest=1.0, span=20.0)},
    ),
}


@pytest.mark.parametrize("expected", BOTH)
def test_terms_and_their_configuration_have_one_formula(expected: str) -> None:
    term, config = BOTH[expected]
    assert formula(Criteria({"term": term})) == expected
    assert formula_of({"term": config}) == expected


def test_terms_are_summed_and_a_negative_weight_is_subtracted() -> None:
    terms = {
        "ce": Term(CrossEntropy(0.1), weight=0.1, teacher=None),
        "kd": Term(SoftTarget(), weight=1000),
        "less": Term(SoftTarget(1.0), weight=-0.5),
    }
    assert formula(Criteria(terms)) == (
        "0.1 · CrossEntropy(label_smoothing=0.1) + 1000 · SoftTarget(T=4) - 0.5 · SoftTarget(T=1)"
    )


def test_a_term_that_weighs_nothing_is_not_hidden() -> None:
    assert formula(Criteria({"kd": Term(SoftTarget(), weight=0.0)})) == "0 · SoftTarget(T=4)"


def test_what_others_wrote_is_named_by_its_class() -> None:
    class Halved(Schedule):
        def __init__(self, share: float, table: object) -> None:
            self.share, self.table = share, table

        def __call__(self, epoch: int, epochs: int | None) -> float:
            return self.share

    terms = {"mine": Term(nn.SmoothL1Loss(beta=0.5), weight=Halved(0.5, object()))}
    assert formula(Criteria(terms)) == "Halved(share=0.5) · SmoothL1Loss(reduction=mean, beta=0.5)"


def test_each_generation_and_the_generator_have_a_formula_of_their_own() -> None:
    ce, kd = {"ce": {"loss": "CrossEntropy"}}, {"kd": {"loss": of("SoftTarget", temperature=1.0)}}
    both = {"class_path": "BornAgainDistiller", "init_args": {"first": ce, "criteria": kd}}
    assert formulas_of(both) == {"first generation": "CrossEntropy", "later generations": "SoftTarget(T=1)"}
    made = {"class_path": "DataFreeDistiller", "init_args": {"criteria": kd, "generator_criteria": ce}}
    assert formulas_of(made) == {"loss": "SoftTarget(T=1)", "generator": "CrossEntropy"}


def test_peers_share_a_formula_or_have_their_own() -> None:
    ce, kd = {"ce": {"loss": "CrossEntropy"}}, {"kd": {"loss": of("SoftTarget", temperature=1.0)}}
    peers = {"a": {"network": {}, "criteria": None}, "b": {"network": {}, "criteria": kd, "branch_criteria": ce}}
    found = formulas_of({"class_path": "x.OnlineDistiller", "init_args": {"criteria": ce, "peers": peers}})
    assert found == {
        "loss": "CrossEntropy",
        "loss of b": "SoftTarget(T=1)",
        "loss of b's branches": "CrossEntropy",
    }


def test_a_classifier_learns_by_cross_entropy_unless_it_says_otherwise() -> None:
    assert formulas_of({"class_path": "kd_lightning.distillers.Classifier"}) == {"loss": "CrossEntropy"}
    smoothed = {"loss": of("CrossEntropy", label_smoothing=0.1)}
    found = formulas_of({"class_path": "Classifier", "init_args": smoothed})
    assert found == {"loss": "CrossEntropy(label_smoothing=0.1)"}


def test_a_model_of_another_kind_has_none() -> None:
    assert formulas_of({"class_path": "mine.Module", "init_args": {"optimizer": {}}}) == {}


def test_a_ramp_stands_in_the_place_of_its_weight() -> None:
    assert formula(Criteria({"kd": Term(DKD(), weight=Ramp(0.6, 20))})) == (
        "Ramp(weight=0.6, epochs=20) · DKD(alpha=1, beta=8, T=4)"
    )


@pytest.mark.parametrize(
    ("weight", "stated", "expected"),
    [
        (0.9, 0.9, "0.1 · CrossEntropy + 0.9 · SoftTarget(T=4)"),
        (
            Ramp(0.6, 20),
            {"class_path": "Ramp", "init_args": {"weight": 0.6, "epochs": 20}},
            "(1 - Ramp(weight=0.6, epochs=20)) · CrossEntropy + Ramp(weight=0.6, epochs=20) · SoftTarget(T=4)",
        ),
    ],
)
def test_a_complement_is_what_the_other_term_leaves(weight: float | Ramp, stated: Any, expected: str) -> None:
    terms = {"ce": Term(CrossEntropy(), Complement("kd"), teacher=None), "kd": Term(SoftTarget(), weight)}
    assert formula(Criteria(terms)) == expected
    rest = {"class_path": "kd_lightning.distillers.Complement", "init_args": {"of": "kd"}}
    kd = {"loss": of("SoftTarget", temperature=4.0), "weight": stated}
    assert formula_of({"a_ce": {"loss": "CrossEntropy", "weight": rest}}) == "Complement(of=kd) · CrossEntropy"
    assert formula_of({"ce": {"loss": "CrossEntropy", "weight": rest}, "kd": kd}) == expected


def test_every_configuration_has_a_formula() -> None:
    assert len(MODELS) > 50
    for path, model in MODELS.items():
        found = formulas_of(model)
        assert found, path
        assert not any(word in text for text in found.values() for word in ("class_path", "init_args", "{")), path
