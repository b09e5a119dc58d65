import pytest
import torch

from launcher.recipe.optim import SGD, AdamW, Constant, OneCycle, Step, WarmupCosine


def curve(schedule: WarmupCosine | Constant | Step | OneCycle, steps: int = 100, per_epoch: int = 10) -> list[float]:
    return [schedule.scale(step, steps, per_epoch) for step in range(steps)]


def test_warmup_cosine_rises_linearly_and_ends_at_its_final_scale() -> None:
    scales = curve(WarmupCosine(warmup_fraction=0.1, final_scale=0.01))
    assert scales[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert max(scales) == scales[10] == 1.0
    assert scales[-1] == pytest.approx(0.01)
    assert scales[10:] == sorted(scales[10:], reverse=True)


def test_cosine_without_warmup_is_torchs_own() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=99, eta_min=0.1)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert curve(WarmupCosine(warmup_fraction=0, final_scale=0.1)) == pytest.approx(expected, abs=1e-6)


def test_one_cycle_is_torchs_own() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, pct_start=0.3, div_factor=25, final_div_factor=4, cycle_momentum=False
    )
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    found = [OneCycle(rising_fraction=0.3, final_divisor=100.0).scale(step, 101, 10) for step in range(100)]
    # torch peaks at 0.3 * total - 1, we at 0.3 * (total - 1): less than one step apart.
    assert found == pytest.approx(expected, abs=0.04)
    assert max(found) == pytest.approx(1.0, abs=1e-3)


def test_step_falls_at_whole_epochs() -> None:
    scales = curve(Step(every_epochs=3, gamma=0.1))
    assert scales[29] == 1
    assert scales[30] == pytest.approx(0.1)
    assert scales[60] == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", [WarmupCosine(), Constant(), Step(), OneCycle()])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_phases_have_rates(schedule: WarmupCosine | Constant | Step | OneCycle, steps: int) -> None:
    assert all(0 < schedule.scale(step, steps, 1) <= 1 for step in range(steps))


def test_rate_for_a_reference_batch() -> None:
    assert AdamW(lr=1e-3).base_lr(512) == 1e-3
    assert SGD(lr=0.1, lr_batch_size=256).base_lr(512) == pytest.approx(0.2)
