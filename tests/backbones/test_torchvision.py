"""What is particular to single torchvision networks: auxiliary heads, image sizes, presets, names of old files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.backbones import Torchvision, plain_state_dict
from launcher.errors import UserError
from launcher.recipe.protocols import Preprocessing


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small images: more threads only wait for one another (3x slower on a busy machine).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_importing_a_recipe_does_not_import_torch() -> None:
    code = "import sys, launcher.backbones as b; b.Torchvision(name='resnet18'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 75)])
def test_auxiliary_heads_go_and_inputs_are_as_the_weights_demand(tmp_path: Path, name: str, size: int) -> None:
    # As published: with auxiliary heads, and made for inputs that the network transforms itself.
    original = torchvision.models.get_model(name, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(original.state_dict(), tmp_path / "published.pth")
    part = Torchvision(name=name, weights=str(tmp_path / "published.pth"))
    backbone = part.build()
    assert not [key for key in backbone.state_dict() if key.startswith(("aux", "Aux"))]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = original(images)
        features = backbone.eval()(images)
        assert torch.equal(original.fc(features), expected)
        assert isinstance(backbone.train()(images), torch.Tensor)
    assert part.plain()["kwargs"]["transform_input"] is True
    assert Torchvision(name=name, weights=None).plain()["kwargs"]["transform_input"] is False


@pytest.mark.slow
def test_a_vision_transformer_for_another_size(tmp_path: Path) -> None:
    original = torchvision.models.vit_b_32(image_size=224).eval()
    nn.init.normal_(original.heads.head.weight)
    save_file(original.state_dict(), tmp_path / "vit.safetensors")
    same = Torchvision(name="vit_b_32", weights=str(tmp_path / "vit.safetensors")).build()
    assert torch.equal(same.encoder.pos_embedding, original.encoder.pos_embedding)  # type: ignore[arg-type]
    part = Torchvision(name="vit_b_32", weights=str(tmp_path / "vit.safetensors"), image_size=96)
    assert (part.preprocessing().image_size, part.preprocessing().resize_size) == (96, 110)  # 256 * 96 / 224
    smaller = part.build()
    assert smaller.encoder.pos_embedding.shape == (1, 3 * 3 + 1, 768)
    # The class token's stays; the others are torchvision's interpolation, whose mean follows the original's.
    assert torch.equal(smaller.encoder.pos_embedding[:, 0], original.encoder.pos_embedding[:, 0])
    assert smaller(torch.rand(1, 3, 96, 96)).shape == (1, 768)
    plain = torchvision.models.get_model("vit_b_32", num_classes=7, **part.plain()["kwargs"])
    head = nn.Linear(768, 7)
    plain.load_state_dict(plain_state_dict(smaller, smaller.state_dict(), head.state_dict()), strict=True)


@pytest.mark.slow
def test_a_vision_transformer_of_another_size_is_not_adjusted_unasked(tmp_path: Path) -> None:
    save_file(torchvision.models.vit_b_32(image_size=64).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(
        UserError, match=r"was trained at 64 px, vit_b_32 is built for 224 px: give backbone.image_size=64"
    ):
        Torchvision(name="vit_b_32", weights=str(tmp_path / "vit.safetensors")).build()


@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [
        ("vit_b_16", 100, "vit_b_16 needs a multiple of 16 pixels, such as 96 or 112"),
        ("vit_h_14", 10, "vit_h_14 needs a multiple of 14 pixels, such as 14"),
        ("maxvit_t", 256, "maxvit_t needs a multiple of 224 pixels, such as 224 or 448"),
        ("swin_t", 128, "swin_t needs at least 224 pixels"),
        ("swin_v2_t", 224, "swin_v2_t needs at least 256 pixels"),
        ("inception_v3", 64, "inception_v3 needs at least 75 pixels"),
        ("vgg16", 31, "vgg16 needs at least 32 pixels"),
    ],
)
def test_sizes_that_cannot_work(name: str, image_size: int, expected: str) -> None:
    part = Torchvision(name=name, weights=None, image_size=image_size)
    for step in (part.check, part.preprocessing, part.build):
        with pytest.raises(UserError) as caught:
            step()
        assert str(caught.value) == f"backbone.image_size={image_size}: {expected}"


@pytest.mark.slow
def test_maxvit_at_twice_its_size() -> None:
    part = Torchvision(name="maxvit_t", weights=None, image_size=448)
    backbone = part.build().eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 448, 448)).shape == (1, 512)
    plain = torchvision.models.get_model("maxvit_t", num_classes=7, **part.plain()["kwargs"])
    head = nn.Linear(512, 7, bias=backbone.classifier_has_bias)  # type: ignore[arg-type]
    plain.load_state_dict(plain_state_dict(backbone, backbone.state_dict(), head.state_dict()), strict=True)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Torchvision(name="resnet50", weights="IMAGENET1K_V1"), Preprocessing(image_size=224, resize_size=256)),
        (Torchvision(name="resnet50", weights="IMAGENET1K_V2"), Preprocessing(image_size=224, resize_size=232)),
        (Torchvision(name="resnet50"), Preprocessing(image_size=224, resize_size=232)),
        (Torchvision(name="resnet50", weights=None), Preprocessing(image_size=224, resize_size=232)),
        (Torchvision(name="resnet50", image_size=448), Preprocessing(image_size=448, resize_size=464)),
        (
            Torchvision(name="efficientnet_v2_l"),
            Preprocessing(image_size=480, resize_size=480, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"),
        ),
        (
            Torchvision(name="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1"),
            Preprocessing(image_size=384, resize_size=384, interpolation="bicubic"),
        ),
    ],
)
def test_preprocessing_is_that_of_the_weights(part: Torchvision, expected: Preprocessing) -> None:
    assert part.preprocessing() == expected


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_published_preset_is_read(name: str) -> None:
    for weights in torchvision.models.get_model_weights(name):
        if weights.meta["categories"] is None:
            continue
        part = Torchvision(name=name, weights=weights.name)
        assert part.resolved_weights() == weights.name
        preset = weights.transforms()
        read = part.preprocessing()
        assert [read.image_size] == preset.crop_size
        assert [read.resize_size] == preset.resize_size
        assert read.interpolation == preset.interpolation.value


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Torchvision(name="resnet51"), "backbone.name='resnet51'.*did you mean 'resnet50'"),
        (Torchvision(name="fcn_resnet50"), "no such classification network"),
        (Torchvision(name="resnet50", weights="IMAGENET1K_V3"), "there are: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2"),
        (Torchvision(name="vgg16", weights="IMAGENET1K_FEATURES"), "all other layers of vgg16 are not numbers"),
    ],
)
def test_names_that_do_not_exist(part: Torchvision, expected: str) -> None:
    for step in (part.check, part.preprocessing, part.build, part.plain, part.resolved_weights):
        with pytest.raises(UserError, match=expected):
            step()


def test_all_problems_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Torchvision(name="resnet50", weights="absent.pth", image_size=2).check()
    assert len(caught.value.problems) == 1  # a ResNet takes any size
    with pytest.raises(UserError) as caught:
        Torchvision(name="vgg11", weights="absent.pth", image_size=2).check()
    assert len(caught.value.problems) == 2


def test_squeezenet_says_how_to_get_its_outputs_and_that_is_true() -> None:
    part = Torchvision(name="squeezenet1_1", weights=None)
    backbone, head = part.build().eval(), nn.Linear(512, 7)
    plain = torchvision.models.squeezenet1_1(num_classes=7).eval()
    plain.load_state_dict(plain_state_dict(backbone, backbone.state_dict(), head.state_dict()), strict=True)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        outputs = head(backbone(images))
        assert (outputs < 0).any()
        assert not torch.allclose(plain(images), outputs, atol=1e-5)
        assert "network.classifier[2] = torch.nn.Identity()" in part.plain()["note"]
        plain.classifier[2] = nn.Identity()
        # Mean of the products for product of the mean: equal up to rounding.
        torch.testing.assert_close(plain(images), outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_mnasnet_says_how_it_loads_and_that_is_true(tmp_path: Path) -> None:
    part = Torchvision(name="mnasnet0_5", weights=None)
    backbone, head = part.build(), nn.Linear(1280, 7)
    save_file(plain_state_dict(backbone, backbone.state_dict(), head.state_dict()), tmp_path / "model.safetensors")
    plain = torchvision.models.mnasnet0_5(num_classes=7)
    with pytest.raises(ValueError, match="version"):
        plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    names: dict[str, Any] = {"state": load_file(tmp_path / "model.safetensors")}
    exec("import collections; " + part.plain()["note"].partition("before load_state_dict: ")[2], names)  # noqa: S102
    plain.load_state_dict(names["state"], strict=True)
    again = Torchvision(name="mnasnet0_5", weights=str(tmp_path / "model.safetensors")).build()
    assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.slow
def test_densenet_files_with_the_names_of_old(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    layers = ("norm", "conv")
    old = {}
    for name, tensor in state.items():
        for layer in layers:
            for number in "12":
                if ".denselayer" in name:
                    name = name.replace(f".{layer}{number}.", f".{layer}.{number}.")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    own = Torchvision(name="densenet121", weights=str(tmp_path / "densenet.pth")).build().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


def test_heads_of_other_shapes_keep_their_names() -> None:
    backbone = Torchvision(name="shufflenet_v2_x0_5", weights=None).build()
    mlp = nn.Sequential(nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 7))
    joined = plain_state_dict(backbone, backbone.state_dict(), mlp.state_dict())
    assert set(joined) - set(backbone.state_dict()) == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}
    own_network = nn.Linear(2, 2)
    joined = plain_state_dict(own_network, own_network.state_dict(), {"weight": torch.zeros(1)})
    assert set(joined) == {"backbone.weight", "backbone.bias", "head.weight"}
