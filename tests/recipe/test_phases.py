import pytest

from launcher.errors import UserError
from launcher.recipe.phases import (
    Phase,
    full_finetune,
    gradual_unfreeze,
    layer_decay,
    linear_probe,
    matches,
    resolve_rules,
)

NAMES = [
    "backbone.conv1.weight",
    "backbone.layer1.0.bn1.bias",
    "backbone.layer1.0.conv.weight",
    "backbone.layer10.0.conv.weight",
    "head.weight",
    "head.bias",
]


def resolve(*rules: tuple[str, float]) -> dict[str, float]:
    return dict(resolve_rules(Phase(name="p", rules=rules, epochs=1), NAMES, "freeze_plan.0"))


def test_a_bare_module_path_is_its_subtree_and_not_its_longer_namesakes() -> None:
    assert matches("backbone.layer1", "backbone.layer1.0.conv.weight")
    assert not matches("backbone.layer1", "backbone.layer10.0.conv.weight")
    assert matches("*.bias", "backbone.layer1.0.bn1.bias")
    assert matches("backbone.layer?", "backbone.layer1.0.conv.weight")


def test_first_match_wins_and_the_order_is_the_models() -> None:
    scales = resolve(("*.bias", 0.5), ("backbone.layer1", 0.0), ("*", 1.0))
    assert list(scales) == NAMES
    assert scales["backbone.layer1.0.bn1.bias"] == 0.5
    assert scales["backbone.layer1.0.conv.weight"] == 0.0
    assert scales["backbone.layer10.0.conv.weight"] == 1.0


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((("head", 1.0),), "no rule covers 4 parameters: backbone.conv1.weight"),
        ((("head", 1.0), ("backbone.layr1", 0.1), ("*", 0.0)), "did you mean 'backbone.layer1"),
        ((("head", 0.0), ("*", 0.0)), "nothing would train"),
        ((("*", 1.0), ("head", 0.5)), "'head' decides nothing"),
    ],
)
def test_rules_cover_everything_and_match_something(rules: tuple[tuple[str, float], ...], said: str) -> None:
    with pytest.raises(UserError, match=r"freeze_plan\.0") as caught:
        resolve(*rules)
    assert said in str(caught.value)


def test_all_problems_of_a_phase_at_once() -> None:
    with pytest.raises(UserError) as caught:
        resolve(("nose", 1.0), ("ear", 1.0), ("head", 1.0))
    assert len(caught.value.problems) == 3


def test_plans_join_and_grow() -> None:
    plan = linear_probe(epochs=3) + full_finetune(epochs=12, backbone_lr_scale=0.1)
    assert [phase.name for phase in plan] == ["linear_probe", "full_finetune"]
    plan = gradual_unfreeze(["backbone.layer10", "backbone.layer1"], epochs=2, depth_decay=0.5)
    assert [len(phase.rules) for phase in plan] == [3, 4]
    scales = resolve_rules(plan[1], NAMES, "freeze_plan.1")
    assert scales["backbone.layer10.0.conv.weight"] == pytest.approx(0.1)
    assert scales["backbone.layer1.0.conv.weight"] == pytest.approx(0.05)
    assert scales["backbone.conv1.weight"] == 0


def test_layer_decay_falls_from_the_output_to_the_input() -> None:
    (phase,) = layer_decay(["backbone.layer1", "backbone.layer10"], epochs=1, decay=0.5)
    scales = resolve_rules(phase, NAMES, "freeze_plan.0")
    assert scales["head.weight"] == 1
    assert scales["backbone.layer10.0.conv.weight"] == 0.5
    assert scales["backbone.layer1.0.conv.weight"] == 0.25
    assert scales["backbone.conv1.weight"] == 0.125
