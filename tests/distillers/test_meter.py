import pytest
import torch
from torch import Tensor

from kd_lightning.distillers.meter import TermMeter, due


def alone(value: Tensor) -> Tensor:
    return value


def test_means_are_over_samples_not_over_batches() -> None:
    meter = TermMeter(["ce", "kd"])
    meter.add({"ce": torch.tensor(1.0), "kd": torch.tensor(10.0)}, 2)
    meter.add({"ce": torch.tensor(4.0), "kd": torch.tensor(40.0)}, 1)
    assert meter.read(alone) == {"ce": pytest.approx(2.0), "kd": pytest.approx(20.0)}


def test_a_reading_starts_anew() -> None:
    meter = TermMeter(["ce"])
    assert meter.read(alone) == {}
    meter.add({"ce": torch.tensor(1.0)}, 2)
    meter.read(alone)
    assert meter.read(alone) == {}
    meter.add({"ce": torch.tensor(5.0)}, 3)
    assert meter.read(alone) == {"ce": 5.0}


def test_a_value_counts_only_where_it_came() -> None:
    meter = TermMeter(["ce", "kd", "never"])
    meter.add({"ce": torch.tensor(1.0)}, 2)
    meter.add({"ce": torch.tensor(1.0), "kd": torch.tensor(3.0)}, 6)
    assert meter.read(alone) == {"ce": 1.0, "kd": 3.0}


def test_a_value_of_0_is_a_value() -> None:
    meter = TermMeter(["ce"])
    meter.add({"ce": torch.tensor(0.0)}, 2)
    assert meter.read(alone) == {"ce": 0.0}


def test_small_values_are_not_lost_in_a_long_sum() -> None:
    meter = TermMeter(["ce"])
    meter.add({"ce": torch.tensor(1.0)}, 10**8)
    meter.add({"ce": torch.tensor(1.0)}, 1)
    assert meter.sums is not None
    assert meter.sums[0, 0].item() == 10**8 + 1


def test_means_are_over_the_samples_of_all_ranks() -> None:
    meters = [TermMeter(["ce"]), TermMeter(["ce"])]
    meters[0].add({"ce": torch.tensor(1.0)}, 3)
    meters[1].add({"ce": torch.tensor(5.0)}, 1)
    sums = [meter.sums.clone() for meter in meters if meter.sums is not None]
    assert meters[0].read(lambda own: sums[0] + sums[1]) == {"ce": 2.0}


def test_a_restored_meter_goes_on_where_it_was() -> None:
    meter = TermMeter(["ce"])
    meter.add({"ce": torch.tensor(1.0)}, 2)
    state = meter.state(alone)
    assert state is not None
    again = TermMeter(["ce"])
    again.restore(state.clone(), rank=0)
    for each in (meter, again):
        each.add({"ce": torch.tensor(4.0)}, 1)
    assert meter.read(alone) == again.read(alone) == {"ce": pytest.approx(2.0)}


def test_keeping_the_state_changes_nothing() -> None:
    meter = TermMeter(["ce"])
    meter.add({"ce": torch.tensor(3.0)}, 2)
    meter.state(lambda own: own.mul_(2))
    assert meter.read(alone) == {"ce": 3.0}


def test_only_the_first_rank_takes_up_what_all_have_summed() -> None:
    meter = TermMeter(["ce"])
    meter.add({"ce": torch.tensor(1.0)}, 4)
    state = meter.state(lambda own: 2 * own)
    assert state is not None
    ranks = [TermMeter(["ce"]), TermMeter(["ce"])]
    for rank, each in enumerate(ranks):
        each.restore(state.clone(), rank)
    total = sum(each.sums for each in ranks if each.sums is not None)
    assert torch.equal(torch.as_tensor(total), torch.tensor([[8.0], [8.0]], dtype=torch.float64))


def test_an_empty_state_leaves_an_empty_meter() -> None:
    meter = TermMeter(["ce"])
    assert meter.state(alone) is None
    meter.restore(None, 0)
    assert meter.read(alone) == {}


def test_a_restored_sum_is_not_rounded() -> None:
    meter = TermMeter(["ce"])
    meter.add({"ce": torch.tensor(0.1)}, 3)  # in float64 it has more digits than float32 holds
    again = TermMeter(["ce"])
    again.restore(meter.state(alone), rank=0)
    for each in (meter, again):
        each.add({"ce": torch.tensor(0.7)}, 5)
    assert again.read(alone) == meter.read(alone)


def test_what_is_due_every_so_many_steps() -> None:
    assert [steps for steps in range(1, 8) if due(steps, 3)] == [3, 6]
    assert not any(due(steps, 0) for steps in range(3))
