"""Real processes over gloo: peers that all train everywhere, and codistillation, in which each trains its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
SCRIPT = '''
"""Train peers in float64, one case after another; write what each rank holds at the end of each."""
import copy
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import DML, KDCL, Codistillation, GroupedDDP, OnlineDistiller, Peer, Term, Window
from kd_lightning.losses import CrossEntropy, Hint, SoftTarget


class Net(nn.Module):
    """No BatchNorm, which would see another batch on each rank; a buffer that counts its trained forwards."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.seen += 1
        return self.head(self.body(x))


class Stop(pl.Callback):
    """Saves and stops after step 5."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            trainer.save_checkpoint(out / "stopped.ckpt")
            trainer.should_stop = True


class Recompute(pl.Callback):
    """What this rank's peer should be taught by the other's predictions and become in step 0, and what happened."""

    def __init__(self):
        self.pairs, self.became = [], None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.meter.clear()
        module.collaboration.unite()  # what is not trained here is not used there either
        self.own, other = ("a", "b") if trainer.global_rank < devices / 2 else ("b", "a")
        networks = module.student.networks
        with torch.no_grad():
            z = {name: networks[name](batch.image) for name in "ab"}
        self.expected = SoftTarget(2.0)(z[self.own], z[other], batch.target).item()
        if trainer.global_step == 0:
            shown = [None] * devices
            torch.distributed.all_gather_object(shown, (self.own, batch.image, batch.target))
            images, targets = (torch.cat([each[i] for each in shown if each[0] == self.own]) for i in (1, 2))
            network = copy.deepcopy(networks[self.own])
            nn.functional.cross_entropy(network(images), targets).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            weight = network.head.weight
            self.becomes = (weight - 0.02 * (weight.grad + 0.01 * weight)).detach()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 1:
            self.became = module.student.networks[self.own].head.weight.detach().clone()
        total, count = module.meter.sums[:, module.meter.names.index(f"{self.own}_kd")].tolist()
        self.pairs.append((trainer.global_step - 1, self.expected, total / count if count else None))


def fit(case):
    pl.seed_everything(3)
    torch.manual_seed(0)
    # In double from the start: weights of a checkpoint are loaded before Lightning converts the module.
    peers = {"a": Peer(Net(8).double()), "b": Peer(Net(6).double())}
    collaboration = {
        "dml": DML(),
        "kdcl": KDCL("linear"),
        "weights": Codistillation(3),
        "predictions": Codistillation(2, "predictions"),
    }[case.partition("-")[0]]
    criteria = {
        "ce": Term(CrossEntropy(), 1.0, teacher=None), "kd": Term(SoftTarget(2.0), Window(0.5, start=1)),
    }
    if case == "dml":
        criteria["hint"] = Term(Hint("linear"), Window(1.0, end=2), student="body", teacher="body")
    module = OnlineDistiller(
        peers, collaboration, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01), criteria
    )
    groups = isinstance(collaboration, Codistillation)
    ends, recompute = "stopped" in case, Recompute()
    watching = [Stop()] if ends else [recompute] if case == "predictions" else []
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="auto" if devices == 1 else GroupedDDP() if groups else "ddp",
        precision="64-true", max_epochs=3, logger=False, enable_checkpointing=ends, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=1, gradient_clip_val=1.0, default_root_dir=str(out),
        callbacks=watching, limit_train_batches=3 if groups else None,
    )
    data = DigitsDataModule(global_batch_size=200, eval_batch_size=67, val_fraction=0.101)
    trainer.fit(module, data, ckpt_path=str(out / "stopped.ckpt") if "resumed" in case else None)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    momentum = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
    left = {"state": module.state_dict(), "figures": figures, "momentum": len(momentum), "pairs": recompute.pairs}
    if recompute.became is not None:
        left["step"] = [recompute.becomes, recompute.became]
    torch.save(left, out / f"{case}-{devices}-{trainer.global_rank}.pt")


devices, out = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
for case in sys.argv[3:]:
    fit(case)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank left of each case."""
    out = tmp_path_factory.mktemp("ddp")
    (out / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    codistilled = ("weights", "weights-stopped", "weights-resumed")
    launches = {"1": ("dml", "kdcl"), "2": ("dml", "kdcl", *codistilled), "4": ("predictions",)}
    for devices, cases in launches.items():
        command = [sys.executable, str(out / "script.py"), devices, str(out), *cases]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def left(folder: Path, case: str, devices: int, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"{case}-{devices}-{rank}.pt")
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["state"].keys() == other["state"].keys()
    assert all(torch.equal(one["state"][key], value) for key, value in other["state"].items())


@pytest.mark.parametrize("case", ["dml", "kdcl"])
def test_peers_and_adapters_equal_those_of_one_process(folder: Path, case: str) -> None:
    alone = left(folder, case, 1, 0)
    assert any(key.startswith("criteria.losses.a_hint.") for key in alone["state"]) == (case == "dml")
    for rank in (0, 1):
        both = left(folder, case, 2, rank)
        assert both["state"].keys() == alone["state"].keys()
        for key, value in alone["state"].items():
            torch.testing.assert_close(both["state"][key], value, rtol=1e-7, atol=1e-9, msg=f"{rank} {key}")
        for name in ("train/a_ce", "train/b_kd", "train/loss"):
            assert both["figures"][name] == pytest.approx(alone["figures"][name], rel=1e-6)


def test_each_process_trains_its_own_peer_and_all_end_with_both(folder: Path) -> None:
    first, second = (left(folder, "weights", 2, rank) for rank in (0, 1))
    assert_same(first, second)
    assert (first["momentum"], second["momentum"]) == (4, 4)  # one peer's parameters
    # Nine steps each: nobody ran the other's peer with a gradient.
    assert [int(first["state"][f"student.networks.{name}.seen"]) for name in "ab"] == [9, 9]
    assert first["figures"]["train/a_kd"] > 0
    assert first["figures"]["train/b_kd"] > 0
    assert first["figures"]["val/a_top1"] == second["figures"]["val/a_top1"]


def test_resumed_codistillation_equals_uninterrupted(folder: Path) -> None:
    stopped, whole = (left(folder, case, 2, 0) for case in ("weights-stopped", "weights"))
    assert not torch.equal(*(found["state"]["student.networks.b.head.weight"] for found in (stopped, whole)))
    for rank in (0, 1):
        assert_same(left(folder, "weights-resumed", 2, rank), whole)
    kept = torch.load(folder / "stopped.ckpt", weights_only=True)
    assert len(kept["optimizer_states"][0]["state"]) == 8  # of both peers
    copies, now = kept["collaboration"]["copies"]["b"], kept["state_dict"]
    assert not torch.equal(copies["head.weight"], now["student.networks.b.head.weight"])  # as exchanged at step 3


def test_a_step_is_on_the_samples_of_the_group(folder: Path) -> None:
    for rank in range(4):
        expected, got = left(folder, "predictions", 4, rank)["step"]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_predictions_are_the_others_on_the_very_images(folder: Path) -> None:
    found = [left(folder, "predictions", 4, rank) for rank in range(4)]
    for each in found:
        assert_same(found[0], each)
        taught = {step: got for step, _, got in each["pairs"] if got is not None}
        assert sorted(taught) == [4, 6, 8]  # from epoch 1 on, every second step
        for step, expected, _ in each["pairs"]:
            assert step not in taught or taught[step] == pytest.approx(expected, rel=1e-5)  # said in float32
