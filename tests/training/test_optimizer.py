import pytest
import torch
from torch import nn

from launcher.recipe.optim import SGD, AdamW
from launcher.training.optimizer import (
    WeightAverage,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
    set_learning_rates,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


SCALES = {"0.weight": 0.0, "0.bias": 0.0, "1.weight": 0.1, "1.bias": 0.1, "2.weight": 1.0, "2.bias": 1.0}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_groups_hold_what_trains_and_spare_norms_and_biases() -> None:
    groups = parameter_groups(network(), SCALES)
    settings = {tuple(group["names"]): (group["lr_scale"], group.get("weight_decay")) for group in groups}
    assert settings == {
        ("1.weight", "1.bias"): (0.1, 0.0),
        ("2.weight",): (1.0, None),
        ("2.bias",): (1.0, 0.0),
    }


@pytest.mark.parametrize("part", [AdamW(lr=0.1, weight_decay=0.5), SGD(lr=0.1, weight_decay=0.5)])
def test_discriminative_rates_reach_the_update(part: AdamW | SGD) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(part, model, SCALES)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5, 0.0]
    set_learning_rates(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.01, 0.01])
    step(model, optimizer)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("part", [AdamW(lr=0.1), SGD(lr=0.1)])
def test_state_goes_by_name_and_comes_back_to_the_bit(part: AdamW | SGD) -> None:
    straight, first = network(), network()
    optimizers = [build_optimizer(part, model, SCALES) for model in (straight, first)]
    for _ in range(2):
        step(straight, optimizers[0])
        step(first, optimizers[1])
    saved = optimizer_state(optimizers[1])
    second = network()
    second.load_state_dict(first.state_dict())
    # Other groups, another order: what belongs to a parameter still comes to it.
    resumed = build_optimizer(part, second, SCALES | {"1.weight": 1.0, "1.bias": 1.0})
    load_optimizer_state(resumed, saved)
    for group in resumed.param_groups:
        group["lr_scale"] = 0.1 if "1.weight" in group["names"] else group["lr_scale"]
    again = build_optimizer(part, second, SCALES)
    load_optimizer_state(again, saved)
    for optimizer in (optimizers[0], again):
        set_learning_rates(optimizer, 0.1)
    step(straight, optimizers[0])
    step(second, again)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    for name, parameter in second.named_parameters():
        if parameter.requires_grad:
            assert resumed.state[parameter].keys() == saved[name].keys()


def test_the_average_follows_and_steps_in_and_out() -> None:
    model = network()
    average = WeightAverage(model, {"2.weight"}, decay=0.5)
    start = model[2].weight.detach().clone()
    with torch.no_grad():
        model[2].weight.add_(1.0)
    live = model[2].weight.detach().clone()
    average.update(0)  # the first steps decay faster: min(0.5, 1 / 10)
    assert torch.allclose(average.values["2.weight"], start * 0.1 + live * 0.9)
    with average.applied():
        assert torch.allclose(model[2].weight, start * 0.1 + live * 0.9)
    assert torch.equal(model[2].weight, live)
    average.update(100)
    assert torch.allclose(average.values["2.weight"], (start * 0.1 + live * 0.9) * 0.5 + live * 0.5)
