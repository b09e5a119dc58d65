"""Pixels of awkward files, and the same from every source."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import ROOT
from launcher.data import CsvImages, HuggingFace, ImageFolder, decoding
from launcher.data.decoding import BrokenImageError, open_image, read_pixels, to_rgb
from launcher.data.sources import FileImages, Subset
from launcher.recipe.protocols import ImageSource, Preprocessing, Split
from launcher.recipe.transforms import evaluation


def gradient(height: int = 20, width: int = 30) -> Image.Image:
    """A picture whose every pixel tells where it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 8, columns * 8, (rows + columns) * 4], axis=2).astype(np.uint8))


def awkward_images(folder: Path) -> list[Path]:
    """One file of each kind on which image libraries disagree."""
    folder.mkdir(parents=True)
    rgb = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "exif6.jpg", exif=exif, quality=95)
    rgb.save(folder / "plain.jpg", quality=90)
    rgb.convert("L").save(folder / "grey.jpg", quality=90)
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 109).save(folder / "grey16.png")
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.arange(600).reshape(20, 30).astype(np.uint8)))
    rgba.save(folder / "rgba.png")
    palette = rgb.quantize(16)
    palette.save(folder / "palette.png")
    palette.save(folder / "palette_transparent.png", transparency=3)
    rgb.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    rgb.convert("L").save(folder / "grey.png")
    grey = rgb.convert("LA")
    grey.putalpha(rgba.getchannel("A"))
    grey.save(folder / "grey_alpha.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", rgb.size, "red")])
    rgb.save(folder / "plain.webp", lossless=True)
    return sorted(folder.iterdir())


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(image))


def test_exif_orientation_is_applied_once() -> None:
    upright = gradient()
    for orientation, stored in {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.rotate(180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.rotate(90, expand=True),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.rotate(-90, expand=True),
    }.items():
        for format_ in ("PNG", "TIFF"):
            buffer = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored.save(buffer, format_, exif=exif)
            opened = to_rgb(open_image(buffer.getvalue()))
            assert np.array_equal(np.asarray(opened), np.asarray(upright)), (orientation, format_)
            assert np.array_equal(pixels(opened), np.asarray(upright)), "decoding twice must not turn it again"


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65407, 65408, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 1, 1], [128, 255, 255, 255]]
    opened = open_image(tmp_path / "grey.png")
    assert opened.mode.startswith("I")
    for image in (opened, Image.fromarray(values.astype(np.int32))):
        assert np.array_equal(pixels(image), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "values",
    [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32)],
    ids=["float", "too large", "negative"],
)
def test_pixels_without_a_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no stated range; store the image with 8 or 16 bits"):
        to_rgb(Image.fromarray(values))


def test_transparency_shows_white_not_hidden_colours() -> None:
    hidden_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert np.array_equal(pixels(hidden_red), np.full((2, 2, 3), 255))
    half = pixels(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert half.tolist() == [[[127, 127, 127]]]
    assert pixels(Image.new("LA", (1, 1), (10, 0))).tolist() == [[[255, 255, 255]]]
    assert pixels(Image.new("RGBa", (1, 1), (0, 0, 0, 0))).tolist() == [[[255, 255, 255]]]


def test_palette_and_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(image).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    image.save(tmp_path / "key.png", transparency=0)
    assert pixels(open_image(tmp_path / "key.png")).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    Image.fromarray(np.array([[0, 65535 // 2]], dtype=np.uint16)).save(tmp_path / "key16.png", transparency=0)
    assert pixels(open_image(tmp_path / "key16.png")).tolist() == [[[255, 255, 255], [127, 127, 127]]]


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 20))
    red.convert("CMYK").save(tmp_path / "adobe.jpg", quality=100)  # Pillow writes CMYK as Adobe does: inverted
    assert np.abs(pixels(open_image(tmp_path / "adobe.jpg")).astype(int) - (220, 30, 20)).max() <= 4


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(open_image(tmp_path / "a.gif"))[0, 0].tolist() == [0, 0, 255]


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    gradient().save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    for name, broken, reason in (
        ("short.jpg", content[: len(content) // 2], "[Tt]runcated"),
        ("empty.jpg", b"", "empty"),
        ("page.jpg", b"<html>404</html>", "not an image that Pillow can read"),
    ):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(BrokenImageError, match=reason) as of_file:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(of_file.value)
        with pytest.raises(BrokenImageError, match=rf"^row 3: .*{reason}"):
            open_image(broken, name="row 3")
        assert str(pickle.loads(pickle.dumps(of_file.value))) == str(of_file.value)  # noqa: S301 - our own bytes
    with pytest.raises(BrokenImageError, match="no such file"):
        open_image(tmp_path / "absent.jpg")


def test_a_decompression_bomb_is_a_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match="exceeds limit"):
        open_image(tmp_path / "a.png")


@pytest.mark.slow
def test_every_source_gives_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files through folders, a CSV file, parquet with bytes, and a folder that only `datasets` reads."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    files = awkward_images(images / "train" / "things")
    awkward_images(images / "val" / "things")
    listed = tmp_path / "listed"  # an image folder with metadata, which only `datasets` reads
    for split in ("train", "validation"):
        awkward_images(listed / split)
        lines = [json.dumps({"file_name": file.name, "label": "things"}) for file in files]
        (listed / split / "metadata.jsonl").write_text("\n".join(lines))

    with (images / "all.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["path", "label", "split"])
        for split in ("train", "val"):
            writer.writerows([f"{split}/things/{file.name}", "things", split] for file in files)

    rows = {"picture": [{"bytes": file.read_bytes(), "path": file.name} for file in files], "label": [0] * len(files)}
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["things"])})
    (tmp_path / "parquet").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "parquet" / f"{split}-0.parquet")

    parts = {
        "folder": ImageFolder(root=str(images)),
        "csv": CsvImages(path=str(images / "all.csv"), split_column="split"),
        "parquet": HuggingFace(path=str(tmp_path / "parquet")),
        "folder by another name": HuggingFace(path=str(images)),
        "folder with metadata": HuggingFace(path=str(listed)),
    }
    transform = evaluation(Preprocessing(image_size=16, resize_size=18))

    def tensors(split: Split) -> dict[str, bytes]:
        found = {}
        for index in range(len(split)):
            name = split.images.name(index)
            file = next(file.name for file in files if file.name in name)
            found[file] = transform(to_rgb(split.images.read(index))).numpy().tobytes()
            pixels = transform.pixels(read_pixels(split.images, index))
            assert transform.normalise(pixels[None])[0].numpy().tobytes() == found[file], name
        return found

    expected = {file.name: transform(to_rgb(open_image(file))).numpy().tobytes() for file in files}
    assert len(set(expected.values())) == len(files), "the files differ, so equal tensors mean something"
    for name, part in parts.items():
        splits = part.build("class", seed=0)  # type: ignore[attr-defined]
        assert splits.names == ("things",)
        for split in (splits.train, splits.val):
            assert tensors(split) == expected, name


class OnlyRead:
    """A source of a user's own."""

    def __init__(self, images: ImageSource) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Image.Image:
        return self._images.read(index)

    def name(self, index: int) -> str:
        return self._images.name(index)


def assert_same_pixels(images: FileImages) -> None:
    """Through the faster way for JPEGs, and through `read` alone."""
    for index in range(len(images)):
        expected = np.asarray(to_rgb(images.read(index)))
        last = Subset(images, np.array([index]))
        for pixels in (read_pixels(images, index), read_pixels(OnlyRead(images), index), read_pixels(last, 0)):
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected), images.name(index)
        assert np.array_equal(read_pixels(Subset(OnlyRead(images), np.array([index])), 0).permute(1, 2, 0), expected)


def test_jpegs_of_every_kind_have_the_same_pixels_either_way(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8))
    for width, height in ((64, 48), (61, 47), (8, 8), (1, 1), (17, 130)):
        picture = noise.resize((width, height), Image.Resampling.BICUBIC)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                name = f"{width}x{height} {subsampling} {progressive}.jpg"
                picture.save(tmp_path / name, subsampling=subsampling, progressive=progressive, quality=80)
        picture.convert("L").save(tmp_path / f"{width}x{height} grey.jpg")
        picture.save(tmp_path / f"{width}x{height} rgb.jpg", keep_rgb=True)  # not YCbCr inside
        for orientation in (1, 3, 8, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture.save(tmp_path / f"{width}x{height} turned {orientation}.jpg", exif=exif)
    assert_same_pixels(FileImages(tmp_path, sorted(path.name for path in tmp_path.iterdir())))


@pytest.mark.slow
def test_photographs_have_the_same_pixels_either_way() -> None:
    folder = ROOT.parent / "shared" / "data" / "hymenoptera" / "val"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    assert_same_pixels(FileImages(folder, sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))[::3]))


def test_simplejpeg_is_taken_for_plain_jpegs_alone(tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="the extra `fast` is not installed")
    taken = [
        file.name for file in awkward_images(tmp_path / "images") if decoding._plain_jpeg(file.read_bytes()) is not None
    ]
    assert taken == ["grey.jpg", "plain.jpg"]


def test_jpegs_decoded_smaller_have_the_same_pixels_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8))
    for width, height in ((640, 480), (333, 251), (100, 9)):
        picture = noise.resize((width, height), Image.Resampling.BICUBIC)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            name = f"{width}x{height} {subsampling}.jpg"
            picture.save(tmp_path / name, subsampling=subsampling, progressive=width == 333, quality=80)
        picture.convert("L").save(tmp_path / f"{width}x{height} grey.jpg")
    images = FileImages(tmp_path, sorted(path.name for path in tmp_path.iterdir()))

    def all_pixels() -> list[torch.Tensor]:
        jpegs = [decoding.Decoder(images).plain_jpeg(index) for index in range(len(images))]
        return [jpeg.pixels(by) for jpeg in jpegs if jpeg for by in (1, 2, 4, 8)]

    found = all_pixels()
    assert len(found) == 4 * len(images)
    assert {tuple(pixels.shape[1:]) for pixels in found if pixels.shape[2] < 100} >= {(60, 80), (32, 42), (2, 13)}
    monkeypatch.setattr(decoding, "_faster_decoder", lambda: None)
    assert all(torch.equal(one, other) for one, other in zip(found, all_pixels(), strict=True))


@pytest.mark.slow
def test_a_jpeg_is_broken_either_way_or_not_at_all(tmp_path: Path) -> None:
    """Cut short anywhere, or with other bytes in it: where Pillow refuses it, so does the faster way, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 80)).save(tmp_path / "whole.jpg", quality=90)
    whole = (tmp_path / "whole.jpg").read_bytes()
    draw = np.random.default_rng(1)
    contents = [whole[:end] for end in range(0, len(whole), 97)]
    for _ in range(150):
        content = bytearray(whole)
        content[int(draw.integers(len(whole)))] = int(draw.integers(256))
        contents.append(bytes(content))
    refused = 0
    for content in contents:  # type: ignore[assignment]
        (tmp_path / "broken.jpg").write_bytes(content)
        images = FileImages(tmp_path, ["broken.jpg"])
        try:
            expected = np.asarray(to_rgb(images.read(0)))
        except (OSError, ValueError):
            refused += 1
            with pytest.raises((OSError, ValueError)):
                read_pixels(images, 0)
        else:
            assert np.array_equal(read_pixels(images, 0).permute(1, 2, 0), expected)
    assert 30 < refused < len(contents) - 30
    (tmp_path / "broken.jpg").unlink()
    with pytest.raises(BrokenImageError, match=r"broken\.jpg: no such file"):
        read_pixels(images, 0)
