import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.distillers import Classifier, DeiTDistiller, Distiller, Term, Window
from kd_lightning.losses import CATKD, CrossEntropy, HardLabel, Hint, ReferenceSoftTarget, SoftTarget
from kd_lightning.models import FrozenTeacher, Network
from kd_lightning.models.two_heads import INFERENCES, Inference, combined

STUDENT = Network(
    "deit_tiny_distilled_patch16_224",
    kwargs={"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
)
HARD = {"ce": Term(CrossEntropy(0.1), 0.5, teacher=None), "hard": Term(HardLabel(), 0.5)}
SOFT = {"ce": Term(CrossEntropy(), 0.9, teacher=None), "soft": Term(SoftTarget(3.0), 0.1)}


class Linear(nn.Module):
    """A teacher that keeps the images that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        logits: Tensor = self.linear(image.flatten(1))
        return logits


def module(criteria: dict[str, Term], student: Network = STUDENT, **options: Any) -> DeiTDistiller:
    torch.manual_seed(5)
    teacher = options.pop("teacher", None) or FrozenTeacher(Linear(), check=False)
    return DeiTDistiller(
        student, teacher, copy.deepcopy(criteria), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1), **options
    )


class Watch(pl.Callback):
    """Keeps each step's batch, and the parameters and gradients from before the optimizer's step."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.gradients: list[dict[str, Tensor | None]] = []
        self.before: list[dict[str, Tensor]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        student = pl_module.student
        assert isinstance(student, nn.Module)
        named = dict(student.named_parameters())
        self.gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in named.items()})
        self.before.append({name: p.detach().clone() for name, p in named.items()})


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0} | options,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def fitted(criteria: dict[str, Term], data: DigitsDataModule | None = None, **options: Any) -> tuple[Watch, Distiller]:
    watch, distiller = Watch(), module(criteria, **options.pop("module", {}))
    trainer(watch, **options).fit(distiller, data or DigitsDataModule(global_batch_size=64, seed=0))
    return watch, distiller


def by_hand(watch: Watch, distiller: Distiller, soft: bool) -> dict[str, Tensor]:
    """The gradient of the paper's formula, by timm's network alone."""
    network = timm.create_model(STUDENT.name, num_classes=10, in_chans=1, **STUDENT.kwargs)
    network.load_state_dict(watch.before[0])
    network.set_distilled_training(True)
    batch = watch.batches[0]
    class_head, distillation_head = network.train()(batch.image)
    assert isinstance(distiller, DeiTDistiller)
    teacher = distiller.teacher(batch).logits
    if soft:
        log_p, log_q = F.log_softmax(distillation_head / 3, 1), F.log_softmax(teacher / 3, 1)
        kl = (log_q.exp() * (log_q - log_p)).sum(1).mean()
        loss = 0.9 * F.cross_entropy(class_head, batch.target) + 0.1 * 9 * kl
    else:
        ce = F.cross_entropy(class_head, batch.target, label_smoothing=0.1)
        loss = 0.5 * ce + 0.5 * F.cross_entropy(distillation_head, teacher.argmax(1))
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_papers_formula(soft: bool) -> None:
    watch, distiller = fitted(SOFT if soft else HARD)
    expected = by_hand(watch, distiller, soft)
    assert expected["head.weight"].abs().max() > 1e-3
    assert expected["head_dist.weight"].abs().max() > 1e-3
    for name, gradient in expected.items():
        found = watch.gradients[0][name]
        assert found is not None, name
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("weights", "learns", "rests"), [((1.0, 0.0), "head", "head_dist"), ((0.0, 1.0), "head_dist", "head")]
)
def test_a_head_gets_nothing_from_the_term_of_the_other(weights: tuple[float, float], learns: str, rests: str) -> None:
    criteria = {"ce": Term(CrossEntropy(), weights[0], teacher=None), "soft": Term(SoftTarget(), weights[1])}
    watch, distiller = fitted(criteria)
    assert watch.gradients[0][f"{rests}.weight"] is None
    found = watch.gradients[0][f"{learns}.weight"]
    assert found is not None
    assert found.abs().max() > 1e-4
    after = dict(distiller._student().named_parameters())
    assert torch.equal(after[f"{rests}.weight"], watch.before[0][f"{rests}.weight"])  # no weight decay either
    assert not torch.equal(after[f"{learns}.weight"], watch.before[0][f"{learns}.weight"])


def test_a_term_chooses_its_head() -> None:
    criteria = {"kd": Term(SoftTarget(), student="class_head"), "ce": Term(CrossEntropy(), 0.0, teacher=None)}
    watch, _ = fitted(criteria)
    assert watch.gradients[0]["head.weight"] is not None
    assert watch.gradients[0]["head_dist.weight"] is None


@pytest.mark.parametrize("inference", INFERENCES)
def test_logits_are_the_answer_that_inference_says(inference: Inference) -> None:
    criteria = {"kd": Term(SoftTarget(), student="logits")}
    watch, _ = fitted(criteria, module={"inference": inference})
    reached = {head for head in ("head", "head_dist") if watch.gradients[0][f"{head}.weight"] is not None}
    both = {"head", "head_dist"}
    assert reached == {"class": {"head"}, "distillation": {"head_dist"}}.get(inference, both)


class Both(nn.Module):
    """A loss that asks for both heads."""

    def forward(self, student: list[Tensor], teacher: Tensor, target: Tensor) -> Tensor:
        class_head, distillation_head = student
        return F.cross_entropy(class_head, target) + (distillation_head - teacher).square().mean()


def test_a_loss_of_ones_own_may_look_at_both_heads_and_at_features() -> None:
    criteria = {
        "both": Term(Both(), student=["class_head", "distillation_head"]),
        "hint": Term(Hint("linear"), student="head_dist:in", teacher="linear"),
    }
    watch, _ = fitted(criteria)
    assert all(gradient is not None for gradient in watch.gradients[0].values())


def test_features_and_stated_taps_keep_theirs() -> None:
    distiller = module(
        {
            "ce": Term(CrossEntropy(), teacher=None),
            "kd": Term(SoftTarget()),
            "own": Term(SoftTarget(), student="logits"),
            "hint": Term(Hint("linear"), student="head_dist:in", teacher="linear"),
        }
    )
    taps = {name: term.student_taps() for name, term in distiller.criteria.terms.items()}
    assert taps == {
        "ce": ["class_head"],
        "kd": ["distillation_head"],
        "own": ["logits"],
        "hint": ["head_dist:in"],
    }


def test_the_table_of_taps_names_the_heads(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fitted(HARD)
    shown = caplog.text + capsys.readouterr().err
    assert "class_head  10" in shown
    assert "distillation_head  10" in shown


def test_a_head_that_rests_for_an_epoch_is_not_touched() -> None:
    criteria = {"ce": Term(CrossEntropy(), teacher=None), "hard": Term(HardLabel(), Window(1.0, start=1))}
    watch, _ = fitted(criteria, max_epochs=2)
    assert [gradients["head_dist.weight"] is None for gradients in watch.gradients] == [True, False]


def test_the_teacher_sees_the_mixed_image() -> None:
    data = DigitsDataModule(global_batch_size=64, seed=0, mixing=Mixing(mixup_alpha=0.8))
    teacher = Linear()
    watch, _ = fitted(HARD, data, module={"teacher": FrozenTeacher(teacher, check=False)})
    batch = watch.batches[0]
    assert batch.target.is_floating_point()
    assert torch.equal(teacher.seen[-1], batch.image)


# Evaluation


@pytest.mark.parametrize("inference", INFERENCES)
def test_what_is_tested_and_predicted_is_what_inference_says(inference: Inference) -> None:
    distiller = module(HARD, inference=inference)
    data = DigitsDataModule(global_batch_size=64, seed=0)
    (figures,) = trainer(limit_train_batches=3).test(distiller, data, verbose=False)
    network = timm.create_model(STUDENT.name, num_classes=10, in_chans=1, **STUDENT.kwargs).eval()
    network.load_state_dict(distiller._student().state_dict())
    batches = trainer().predict(distiller, data)
    assert batches is not None
    probabilities = torch.cat([batch[1] for batch in batches])  # type: ignore[index]
    loader = data.test_dataloader()
    images, targets = zip(*((batch.image, batch.target) for batch in loader), strict=True)
    image, target = torch.cat(images), torch.cat(targets)
    with torch.no_grad():
        tokens = network.forward_features(image)
        heads = network.head(tokens[:, 0]), network.head_dist(tokens[:, 1])
        fused = network(image)
    expected = {way: combined(*heads, way) for way in INFERENCES}
    torch.testing.assert_close(expected["logits"], fused)
    torch.testing.assert_close(probabilities, expected[inference].softmax(dim=1))
    names: dict[str, Inference] = {
        "class_head": "class",
        "distillation_head": "distillation",
        "both_softmax": "softmax",
        "both_logits": "logits",
    }
    for name, way in names.items():
        top1 = (expected[way].argmax(1) == target).float().mean().item()
        assert figures[f"test/{name}_top1"] == pytest.approx(top1)
        assert figures[f"test/{name}_loss"] == pytest.approx(F.cross_entropy(expected[way], target).item(), rel=1e-4)
    assert figures["test/top1"] == pytest.approx((expected[inference].argmax(1) == target).float().mean().item())
    assert 0 <= figures["test/teacher_top1"] <= 1
    assert figures["test/class_head_loss"] != figures["test/distillation_head_loss"]


def test_the_teacher_is_in_no_state_and_is_examined() -> None:
    with pytest.raises(ValueError, match="near chance"):
        fitted(HARD, module={"teacher": FrozenTeacher(Linear())})
    _, distiller = fitted(HARD)
    assert all(key.startswith("student.") for key in distiller.state_dict() if "metrics" not in key)


def test_it_is_two_levels_below_lightning() -> None:
    assert DeiTDistiller.__bases__ == (Distiller,)
    assert Distiller.__bases__[0] is pl.LightningModule


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (Network("resnet10t"), "student ResNet has no distillation head"),
        (
            Network("deit3_small_patch16_224", kwargs={"img_size": 8, "patch_size": 4, "depth": 1}),
            "no distillation head",
        ),
        (Network("cifar_resnet8"), "no distillation head: take a network that offers set_distilled_training"),
    ],
)
def test_a_student_without_two_heads_stops_before_step_0(student: Network, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(HARD, module={"student": student})


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="inference must be one of softmax, logits, class, distillation, got 'mean'"):
        module(HARD, inference="mean")
    with pytest.raises(ValueError, match="no term of criteria asks the teacher"):
        module({"ce": Term(CrossEntropy(), teacher=None)})


def test_the_one_classifier_of_two_is_not_guessed() -> None:
    distiller = module({"cat": Term(CATKD())})
    with pytest.raises(ValueError, match="a student with two heads has two"):
        distiller.fact("student_classifier", distiller.criteria.terms["cat"])


def test_the_distillation_terms_fall() -> None:
    torch.manual_seed(0)
    data = DigitsDataModule(global_batch_size=64, seed=0)
    teacher = Network("cifar_resnet8").build(10, 1)
    classifier = Classifier(teacher, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    trainer(max_epochs=3, limit_train_batches=1.0).fit(classifier, data)
    criteria = {"ce": Term(CrossEntropy(), 0.5, teacher=None), "kd": Term(ReferenceSoftTarget(3.0), 5.0)}
    distiller = DeiTDistiller(
        STUDENT, FrozenTeacher(teacher), criteria, lambda p: torch.optim.AdamW(p, 0.01), weight_decay_on="matrices"
    )
    first = trainer(max_epochs=1, limit_train_batches=1)
    first.fit(distiller, data)
    before = first.callback_metrics["train/kd"].item()
    last = trainer(max_epochs=6, limit_train_batches=1.0)
    last.fit(distiller, data)
    assert last.callback_metrics["train/kd"].item() < 0.75 * before
    (figures,) = last.test(distiller, data, verbose=False)
    assert min(figures[f"test/{part}_top1"] for part in ("class_head", "distillation_head", "both_softmax")) > 0.2
