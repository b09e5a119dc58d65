"""Weights on disk: what is accepted, and what each wrong file is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from launcher.assets.torch_hub import torch_hub_file
from launcher.backbones import Torchvision
from launcher.backbones.weight_files import is_path, part_read, read_weights
from launcher.errors import UserError


@pytest.fixture(scope="module")
def shufflenet() -> torch.nn.Module:
    network: torch.nn.Module = torchvision.models.shufflenet_v2_x0_5(weights=None)
    return network


@pytest.fixture
def state(shufflenet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(shufflenet.state_dict())


def backbone_from(weights: Path | str) -> torch.nn.Module:
    part = Torchvision(name="shufflenet_v2_x0_5", weights=str(weights))
    part.check()
    return part.build()


def problem_with(weights: Path | str, name: str = "shufflenet_v2_x0_5") -> str:
    part = Torchvision(name=name, weights=str(weights))
    with pytest.raises(UserError) as caught:  # noqa: PT012 - which of the two it is, depends on the file
        part.check()
        part.build()
    assert len(caught.value.problems) == 1
    return str(caught.value)


def assert_holds(backbone: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = backbone.state_dict()
    assert set(own) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_wrappers_and_prefixes_are_taken_off(
    tmp_path: Path, state: dict[str, torch.Tensor], prefix: str, wrap: str | None
) -> None:
    saved: Any = {prefix + name: tensor for name, tensor in state.items()}
    if wrap:
        saved = {"epoch": 3, wrap: saved}
    torch.save(saved, tmp_path / "weights.pth")
    assert_holds(backbone_from(tmp_path / "weights.pth"), state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        ("model_state_dict", ""),
        ("net", "module."),
        ("model_ema", ""),
        ("state_dict", "model."),
        ("state_dict", "module.encoder_q."),
        ("teacher", "backbone."),
        (None, "shufflenet."),
    ],
)
def test_other_nestings_and_one_common_prefix(
    tmp_path: Path, state: dict[str, torch.Tensor], wrap: str | None, prefix: str
) -> None:
    saved: dict[str, Any] = {prefix + name: tensor for name, tensor in state.items()} | {"queue": torch.zeros(3)}
    if prefix in ("", "module."):
        del saved["queue"]
    torch.save({wrap: saved, "optimizer_state_dict": {}, "loss": 0.4} if wrap else saved, tmp_path / "last.ckpt")
    part = backbone_from(tmp_path / "last.ckpt")
    assert_holds(part, state)


@pytest.mark.slow
def test_of_two_networks_in_a_file_the_one_taken_is_reported(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "both.pth"
    torch.save({"state_dict_ema": {k: v * 2 for k, v in state.items()}, "state_dict": state}, file)
    assert_holds(backbone_from(file), state)
    assert part_read(file) == "its 'state_dict', not its 'state_dict_ema'"
    twice = {f"{place}.{name}": tensor for place in ("online", "target") for name, tensor in state.items()}
    torch.save(twice, file)
    with pytest.raises(UserError, match=r"several times, below 'online\.', 'target\.'; save one of them alone"):
        backbone_from(file)
    moco = {f"encoder_{place}.{name}": tensor * (place == "q") for place in "qk" for name, tensor in state.items()}
    torch.save(moco, file)
    assert_holds(backbone_from(file), state)


@pytest.mark.slow
def test_a_name_that_is_a_file_here_is_a_file(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("last.ckpt", "weights"):
        torch.save(state, name)
        assert is_path(name)
        assert_holds(backbone_from(Path(name)), state)
    assert is_path("absent.ckpt"), "then it is said to be absent"
    assert not is_path("IMAGENET1K_V1")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(UserError, match="a git-lfs pointer, not the file itself; run git lfs pull"):
            read_weights(tmp_path / name)


def test_safetensors_of_a_network_with_other_classes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    seven = state | {"fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}
    save_file(seven, tmp_path / "weights.safetensors")
    assert_holds(backbone_from(tmp_path / "weights.safetensors"), state)


def test_old_files_without_batch_counters_load(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    torch.save(old, tmp_path / "old.pth")
    assert_holds(backbone_from(tmp_path / "old.pth"), state)


def test_a_file_of_another_network_is_reported_with_counts_and_names(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "other.pth")
    message = problem_with(tmp_path / "other.pth")
    assert "other.pth does not fit the network" in message
    assert "missing (conv1.0.weight" in message
    assert "52 unexpected (features.0.weight" in message


def test_missing_unexpected_and_misshaped_tensors_are_reported_at_once(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    del state["conv5.0.weight"]
    state["conv1.0.weight"] = torch.zeros(24, 1, 3, 3)
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "damaged.pth")
    message = problem_with(tmp_path / "damaged.pth")
    assert "1 missing (conv5.0.weight)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (conv1.0.weight (24, 1, 3, 3) for (24, 3, 3, 3))" in message


def test_values_that_are_not_finite_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["conv1.0.weight"] = torch.full((24, 3, 3, 3), float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    assert "not finite: 1 tensor (conv1.0.weight)" in problem_with(tmp_path / "nan.pth")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this ran while weights were read",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "model": Evil()}, tmp_path / "evil.pth")
    assert "holds Python objects" in problem_with(tmp_path / "evil.pth")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_cut_off_file_is_named(tmp_path: Path, state: dict[str, torch.Tensor], suffix: str, keep: float) -> None:
    file = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep) if keep < 1 else int(keep)])
    message = problem_with(file)
    assert str(file) in message
    assert "broken" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"epoch": 3, "lr": 0.1}, "holds no state dict: epoch, lr are not tensors"),
        ([torch.zeros(1)], "holds no state dict but a list"),
        ({}, "holds no state dict but a dict"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, expected: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert expected in problem_with(tmp_path / "weights.pt")


def test_other_files_and_absent_files(tmp_path: Path) -> None:
    for content in (b"<html>404</html>", b"abc", b"\x80\x02h\x05."):
        (tmp_path / "weights.bin").write_bytes(content)
        assert "broken or no weights file" in problem_with(tmp_path / "weights.bin")
    assert "no such file" in problem_with(tmp_path / "absent.pth")
    assert "no such file" in problem_with("absent.safetensors")


def write_run(folder: Path, state: dict[str, torch.Tensor], network: dict[str, Any], **preprocess: Any) -> None:
    final = folder / "final"
    final.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, final / "model.safetensors")
    (final / "model.json").write_text(json.dumps(network))
    if preprocess:
        (final / "preprocess.json").write_text(json.dumps(preprocess))


def test_an_earlier_run(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    described = Torchvision(name="shufflenet_v2_x0_5", weights=None).plain()
    write_run(tmp_path / "run", state, described, image_size=96, resize_size=110, mean=[0.5] * 3, std=[0.5] * 3)
    assert_holds(backbone_from(tmp_path / "run"), state)
    assert_holds(backbone_from(tmp_path / "run" / "final"), state)
    preprocessing = Torchvision(name="shufflenet_v2_x0_5", weights=str(tmp_path / "run")).preprocessing()
    assert (preprocessing.image_size, preprocessing.resize_size, preprocessing.mean) == (96, 110, (0.5, 0.5, 0.5))
    message = problem_with(tmp_path / "run", name="resnet18")
    assert "is a torchvision shufflenet_v2_x0_5, not a torchvision resnet18" in message


def test_folders_that_are_no_finished_run(tmp_path: Path) -> None:
    assert "has no final/model.safetensors; wanted" in problem_with(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    assert "that run has not ended" in problem_with(tmp_path)


@pytest.mark.slow
def test_published_weights_that_are_absent_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: as a machine without network
    part = Torchvision(name="resnet50", weights="DEFAULT")
    for step in (part.check, part.fetch, part.build):
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            step()
        assert time.monotonic() - started < 15
        message = str(caught.value)
        assert "resnet50-11ad3fa6.pth is not in " + str(tmp_path / "hub" / "checkpoints") in message
        assert "https://download.pytorch.org/models/resnet50-11ad3fa6.pth" in message
        assert "backbone.weights=PATH" in message
        assert "backbone.weights=none" in message


def test_a_published_file_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    file = torch_hub_file(published.url)
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    part = Torchvision(name="shufflenet_v2_x0_5")
    assert part.resolved_weights() == "IMAGENET1K_V1"
    assert_holds(part.build(), state)
    # `check` compares the hash that the file's name ends in: what lies there is not what torchvision publishes.
    with pytest.raises(UserError, match=r"shufflenetv2_x0\.5-f707e7126e\.pth is broken"):
        part.check()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"shufflenetv2_x0\.5-f707e7126e\.pth is broken"):
        part.build()
