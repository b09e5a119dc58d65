"""The plan: what it tells of recipe, data, phases, batches and weights, and how it looks where it is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

import tiny
from commands import ROOT, SUPPORT, RunCli
from launcher import Recipe, Split, Splits, backbones, data, heads, optim, phases, tasks, transforms
from launcher.errors import UserError
from launcher.planning.plan import _print, show
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.protocols import TargetKind

HYMENOPTERA = ROOT.parent / "shared" / "data" / "hymenoptera"

Plan = Callable[..., str]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Plan:
    """What is printed for a recipe at a width."""

    def show_at(
        recipe: Recipe, *, width: int = 120, num_processes: int = 1, micro_batch_size: int | None = None
    ) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        loaded = LoadedRecipe(recipe, "tiny", Path("recipes/tiny.py"))
        show(loaded, num_processes=num_processes, micro_batch_size=micro_batch_size)
        return capsys.readouterr().out

    return show_at


def variant(**changes: object) -> Recipe:
    return dataclasses.replace(tiny.recipe, **changes)  # type: ignore[arg-type]


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_everything_on_one_screen(plan: Plan) -> None:
    shown = lines_of(plan(tiny.recipe))
    start = next(index for index, line in enumerate(shown) if line.startswith("  batch_size=32, "))
    end = shown.index("data: 90 training and 31 validation images, 3 classes")
    settings = " ".join(shown[start:end])
    for field in dataclasses.fields(tiny.recipe):
        if dataclasses.is_dataclass(getattr(tiny.recipe, field.name)):
            assert any(line.startswith(f"  {field.name}=") for line in shown[:start])
        elif field.name != "freeze_plan":
            assert f"{field.name}={getattr(tiny.recipe, field.name)!r}" in settings
    assert shown[:start] + shown[end:] == [
        "recipe recipes/tiny.py",
        "  backbone=TinyBackbone(norm='batch', dropout=0.0, width=8)",
        "  head=Linear(dropout=0.0, init='normal')",
        "  task=Classification(label_smoothing=0.0, class_weights=None)",
        "  data=StripeData(train=90, val=31)",
        "  optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0001, lr_batch_size=None)",
        "  schedule=WarmupCosine(warmup_fraction=0.05, final_scale=0.01)",
        "  augment=Augment(preset='light', min_scale=0.35, flip=True, random_erasing=0.0, mixup_alpha=None, "
        "cutmix_alpha=None)",
        "data: 90 training and 31 validation images, 3 classes",
        "  images of 16x16 pixels; the backbone sees 16x16",
        "             train    val",
        "  across        30     11",
        "  down          30     10",
        "  diagonal      30     10",
        "weights",
        "  as TinyBackbone.build() makes them",
        "phase 1/2 linear_probe: 2 epochs x 3 steps",
        "  head         51 parameters  lr 0.1 (scale 1)",
        "  frozen    1,440 parameters  in evaluation mode",
        "  pictures                    augment is not applied here: evaluation view (else: cache_views=4, cache=off)",
        "  lr 0.1 (as stated) by WarmupCosine: 0.1 at step 1, 0.001 at step 6",
        "phase 2/2 full_finetune: 2 epochs x 3 steps",
        "  head          51 parameters  lr 0.1 (scale 1)",
        "  backbone   1,440 parameters  lr 0.05 (scale 0.5)",
        "  BatchNorm    2 layers train  running statistics kept",
        "  lr 0.1 (as stated) by WarmupCosine: 0.1 at step 1, 0.001 at step 6",
        "batches",
        "  batch 32 = 1 process x 32 per micro-batch x 1 accumulation",
        "  3 steps per epoch, the last one of 26 images",
        "  12 steps in all, over 360 training images",
    ]


def test_processes_and_micro_batch(plan: Plan) -> None:
    shown = plan(tiny.recipe, num_processes=4, micro_batch_size=2)
    assert "batch 32 = 4 processes x 2 per micro-batch x 4 accumulation" in shown


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_screen(plan: Plan, width: int) -> None:
    longest = max(lines_of(plan(variant(data=Many(), schedule=optim.OneCycle()), width=width)), key=len)
    assert len(longest) <= width


def test_a_file_gets_text_alone(run_cli: RunCli) -> None:
    done = run_cli("plan", str(SUPPORT / "tiny.py"))
    assert done.code == 0
    assert done.err == ""
    assert re.findall(r"[^\x20-\x7e\n]", done.out) == []
    assert done.out.startswith(f"recipe {SUPPORT / 'tiny.py'}\n")


def test_what_is_wrong_stands_beside_what_is_right(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    plan_with_probe = phases.linear_probe(epochs=1) + phases.gradual_unfreeze(["backbone.block9"], epochs=1)
    with pytest.raises(UserError) as caught:
        plan(variant(mixed_precision="fp16", freeze_plan=plan_with_probe), num_processes=3)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "mixed_precision='fp16'",
        "batch_size=32 cannot be shared by 3 processes evenly; batch_size=30 or 33 would work, or 1, 2, 4, 8, 16, 32 "
        "processes",
        "freeze_plan.1.rules.1",
    ]
    shown = lines_of(capsys.readouterr().out)
    assert "data: 90 training and 31 validation images, 3 classes" in shown
    assert any(line.startswith("phase 1/2 linear_probe: 1 epoch") for line in shown)
    assert "batches" not in shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many:
    """Class number i has i % 30 + 1 images."""

    classes: int = 1000

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        counts = np.arange(self.classes) % 30 + 1
        targets = np.repeat(np.arange(self.classes, dtype=np.int64), counts)
        each = np.arange(self.classes, dtype=np.int64)
        names = tuple(f"class {number}, with a name that says a lot more than it needs to" for number in each)
        skipped = tuple(f"pets/{number}.txt (not an image)" for number in range(5))
        train, val = tiny.Stripes(len(targets), 0), tiny.Stripes(self.classes, 1)
        return Splits(Split(Repeated(train), targets), Split(Repeated(val), each), names, skipped)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Repeated:
    """The same few pictures again and again, so that a thousand classes cost nothing."""

    images: tiny.Stripes

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> object:
        return self.images.read(index % 6)

    def name(self, index: int) -> str:
        return self.images.name(index)


@pytest.mark.slow
def test_a_thousand_classes_fit_the_screen(plan: Plan) -> None:
    shown = lines_of(plan(variant(data=Many())))
    assert len(shown) < 65
    assert "data: 15,400 training and 1,000 validation images, 1,000 classes" in shown
    assert "  training images per class: 1 to 30, median 15; the 20 largest and the 20 smallest classes:" in shown
    assert any(line.startswith("  class 29, with a name tha...      30      1   class") for line in shown)
    start = shown.index("  left out, 5 in all:")
    assert shown[start + 1 : start + 5] == [*(f"    pets/{n}.txt (not an image)" for n in range(3)), "    and 2 more"]
    assert any("task.class_weights=balanced" in line for line in shown)
    assert not any("class_weights=balanced" in line for line in lines_of(plan(tiny.recipe)))


def test_targets_of_other_tasks(plan: Plan) -> None:
    shown = plan(variant(task=tasks.Regression()))
    assert re.search(r"train mean +min +max +val mean\n +period +\d", shown)
    shown = plan(variant(task=tasks.MultiLabel()))
    assert re.search(r"across +30 +11\n +not_down +60 +21\n", shown)


def test_notes_name_what_depends_on_the_split(plan: Plan) -> None:
    probe = phases.linear_probe(epochs=1)
    full = phases.full_finetune(epochs=1, norm_statistics="update")
    dropping = tiny.TinyBackbone(dropout=0.5)
    both = plan(variant(backbone=dropping, freeze_plan=probe + full))
    assert "full_finetune: Dropout: drawn for each process and micro-batch" in both
    assert "full_finetune: norm_statistics='update'" in both
    # Frozen dropout is off, and frozen BatchNorm keeps its statistics, whatever the phase says.
    frozen = plan(variant(backbone=dropping, freeze_plan=probe))
    assert "Dropout" not in frozen
    assert "norm_statistics" not in frozen
    # The head's dropout trains in both.
    head = plan(variant(head=heads.Linear(dropout=0.1), freeze_plan=probe + phases.full_finetune(epochs=1)))
    assert "all phases: Dropout" in head


@pytest.mark.slow
def test_random_weights_that_are_never_trained_are_noted(plan: Plan) -> None:
    """A head on them comes to chance."""
    network = backbones.Torchvision(name="squeezenet1_1", weights=None, image_size=32)
    probe, full = phases.linear_probe(epochs=1), phases.full_finetune(epochs=1)
    said = "random weights stay as they are, so the head has little to learn from"
    for freeze_plan, is_noted in ((probe, True), (full, False), (probe + full, False)):
        shown = plan(dataclasses.replace(tiny.recipe, backbone=network, freeze_plan=freeze_plan))
        assert (said in " ".join(shown.split())) is is_noted


@pytest.mark.slow
def test_layers_that_draw_inside_torchvision_networks(plan: Plan) -> None:
    network = backbones.Torchvision(name="efficientnet_b0", weights=None, image_size=32)
    last = phases.gradual_unfreeze(["backbone.features.8"], epochs=1)
    shown = plan(variant(backbone=network, freeze_plan=last + phases.full_finetune(epochs=1)))
    # The dropout before the classifier follows the whole network, in which something trains in both phases.
    assert "full_finetune: Dropout, StochasticDepth: drawn" in shown or "all phases: Dropout, StochasticDepth" in shown
    assert "weights\n  none: random\n" in shown
    assert "backbone.features.8" in shown
    assert "BatchNorm keeps statistics never learned" in shown


def test_learning_rates(plan: Plan) -> None:
    scaled = plan(variant(optim=optim.AdamW(lr=1e-3, lr_batch_size=256), schedule=optim.OneCycle()))
    assert "lr 0.000125 (for a batch of 256, scaled to 32) by OneCycle: 5e-06 at step 1, " in scaled
    assert "lr 0.1 (as stated) by Constant: throughout" in plan(variant(schedule=optim.Constant()))
    step = plan(variant(schedule=optim.Step(every_epochs=1)))
    assert "by Step: 0.1 at step 1, 0.01 at step 6" in step


def test_names_of_what_trains(plan: Plan) -> None:
    part = phases.Phase(name="part", rules=(("head", 1.0), ("*.0.*", 0.5), ("*", 0.0)), epochs=1)
    shown = plan(variant(freeze_plan=(part,)))
    assert re.search(r"backbone: block1 \+ block2 +1,392 parameters +lr 0.05", shown)


def test_the_source_of_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for weights in ("DEFAULT", "IMAGENET1K_V2"):
        shown = backbones.Torchvision(name="resnet50", weights=weights).weights_source()
        alias = " (DEFAULT)" if weights == "DEFAULT" else ""
        file = tmp_path / "hub/checkpoints/resnet50-11ad3fa6.pth"
        assert shown == f"ResNet50_Weights.IMAGENET1K_V2{alias}, from {file}"


def test_the_source_of_timm_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    shown = backbones.Timm(name="tf_efficientnet_lite0").weights_source()
    assert shown.startswith("timm/tf_efficientnet_lite0.in1k (DEFAULT)")
    assert backbones.Timm(name="tf_efficientnet_lite0", weights=None).weights_source() == "none: random"
    file = tmp_path / "lite0.pth"
    file.touch()
    assert backbones.Timm(name="tf_efficientnet_lite0", weights=str(file)).weights_source() == str(file)


@pytest.mark.slow
def test_real_images(plan: Plan) -> None:
    if not HYMENOPTERA.is_dir():
        pytest.skip(f"{HYMENOPTERA} is not on this machine")
    recipe = variant(
        backbone=backbones.Torchvision(name="resnet18", weights=None, image_size=64),
        data=data.ImageFolder(root=str(HYMENOPTERA)),
        augment=transforms.Augment(preset="none"),
        freeze_plan=phases.gradual_unfreeze(["backbone.layer4", "backbone.layer3"], epochs=2),
    )
    shown = plan(recipe)
    assert re.search(r"ants +124 +70\n +bees +121 +83\n", shown)
    assert "pixels, median 500x374 (of 64 looked at); the backbone sees 64x64" in shown
    assert re.search(r"backbone: layer3 \+ layer4 +10,493,440 parameters", shown)
    assert "  8 steps per epoch, the last one of 21 images" in shown


def test_nothing_is_written(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan(tiny.recipe)
    assert list(tmp_path.iterdir()) == []


def test_no_path_is_broken_and_no_line_is_padded(capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/data/{'long' * 25}/weights.pth"
    _print(Console(width=80), Text(f"weights from {path}, which is a file, and some more words that need another line"))
    lines = capsys.readouterr().out.splitlines()
    assert any(path in line for line in lines)
    assert [line for line in lines if line != line.rstrip() or not line.startswith("  ")] == []
