"""Folders of images: ids by path, classes by folder or file, and images of any mode and size as an embedder gets them."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import raysel
from raysel.cluster.blocks import gather
from raysel.core.storage import resolve
from raysel.data.decode import decode
from raysel.data.formats.images import list_images
from raysel.data.row_index import ID
from raysel.data.sources import paths_beside
from raysel.data.vectors import EMBEDDING, to_column, to_numpy
from raysel.errors import DataError


def encoded(mode="RGB", size=(5, 4), kind="png", value=100):
    image = Image.new("L", size, value).convert(mode)
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, value in (("cat/b.png", 10), ("cat/a.jpg", 20), ("dog/c.png", 30)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(kind="jpeg" if name.endswith("jpg") else "png", value=value))
    return tmp_path / "images"


def test_classes_by_folder(folder):
    assert list_images(*resolve(folder)).to_pydict() == {
        "path": ["cat/a.jpg", "cat/b.png", "dog/c.png"],
        "label": ["cat", "cat", "dog"],
    }


def test_classes_by_file(folder):
    (folder / "labels.csv").write_text("path,label\ndog/c.png,3\ncat/a.jpg,1\ncat/b.png,2\n")
    assert list_images(*resolve(folder))["label"].to_pylist() == [1, 2, 3]
    (folder / "labels.csv").write_text("path,label\ndog/c.png,3\n")
    with pytest.raises(DataError, match=r"has no class for 2 images \(cat/a.jpg, cat/b.png\)"):
        list_images(*resolve(folder))
    (folder / "labels.csv").write_text("file,label\n")
    with pytest.raises(DataError, match="must have the columns path and label; its columns are file, label"):
        list_images(*resolve(folder))


def test_loose_images(folder):
    (folder / "x.png").write_bytes(encoded())
    with pytest.raises(DataError, match=r"1 images are outside the folders of the classes \(x.png\)"):
        list_images(*resolve(folder))


@pytest.mark.usefixtures("cluster")
def test_a_folder_is_read_and_embedded(folder, tmp_path):
    def brightness(images):
        return np.array([[image.mean(), image.shape[2]] for image in images], np.float32)

    dataset = raysel.read(folder, label="label")
    got = gather(dataset, [ID, "path", "label"], "rows").sort_by(ID)
    assert got[ID].to_pylist() == [0, 1, 2]
    assert got["label"].to_pylist() == ["cat", "cat", "dog"]
    vectors = gather(raysel.embed(dataset, brightness, column="image"), [ID, EMBEDDING], "rows").sort_by(ID)
    assert to_numpy(vectors[EMBEDDING], "v").round().tolist() == [[20, 3], [10, 3], [30, 3]]
    (folder / "cat/b.png").write_bytes(b"not an image")
    made = raysel.embed(dataset, brightness, column="image", on_error="drop", directory=tmp_path / "v")
    assert gather(made, [ID], "rows")[ID].to_pylist() == [0, 2]
    with pytest.raises(
        DataError, match=r"sample_id 1: cat/b\.png is not a readable image \(cannot identify image file"
    ):
        raysel.embed(dataset, brightness, column="image", directory=tmp_path / "w")


@pytest.mark.usefixtures("cluster")
def test_a_directory_without_a_readable_file(tmp_path):
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(DataError, match="holds no"):
        raysel.read(tmp_path)


def rows(column):
    return pa.table({ID: np.arange(len(column)), "image": column})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    kind = "tiff" if mode in ("CMYK",) else "png"
    got = decode(rows([encoded(mode, kind=kind), encoded(size=(9, 2))]), ["image"], "images")
    assert [image.shape for image in got.rows] == [(4, 5, 3), (2, 9, 3)]
    assert all(image.dtype == np.uint8 for image in got.rows)


def test_broken_and_missing_images_are_told_apart():
    whole = encoded(size=(64, 64))
    got = decode(rows(pa.array([whole, None, b"", whole[:90], whole])), ["image"], "images")
    assert got.ids.tolist() == [0, 4] and len(got.rows) == 2
    assert got.rejected[1] == "no value in column 'image'"
    assert got.rejected[2].startswith("not a readable image") and got.rejected[3].startswith(
        "not a readable image"
    )


def test_pixels_and_hugging_faces_struct():
    pixels = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    for shape in ((2, 4, 5), (2, 1, 4, 5), (2, 4, 5, 1)):
        got = decode(rows(to_column(pixels.reshape(shape))), ["image"], "images")
        assert np.array_equal(np.stack(got.rows)[..., 0], pixels)
    struct = pa.array([{"bytes": encoded(value=7), "path": None}])
    assert decode(rows(struct), ["image"], "images").rows[0][0, 0].tolist() == [7, 7, 7]
    with pytest.raises(DataError, match="holds arrays of type float32 and shape"):
        decode(rows(to_column(pixels.astype(np.float32))), ["image"], "images")
    with pytest.raises(DataError, match="holds int64, not text"):
        decode(rows(pa.array([1, 2])), ["image"], "text")


# ---- values ----------------------------------------------------------------------------------------------------------


RAMP = np.arange(0, 65536, 257).astype(np.uint16).reshape(1, -1)


def saved(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def one(data):
    return decode(rows(pa.array([data])), ["image"], "images")


def test_greys_of_16_bits_keep_their_steps():
    deep = Image.fromarray(RAMP)
    for data in (saved(deep, "PNG"), saved(deep, "TIFF"), b"P5 256 1 65535\n" + RAMP.astype(">u2").tobytes()):
        got = one(data).rows[0]
        assert got.shape == (1, 256, 3) and got[0, :, 0].tolist() == list(range(256))
    twelve = b"P5 256 1 4095\n" + (RAMP >> 4).astype(">u2").tobytes()
    assert one(twelve).rows[0][0, :, 0].tolist() == list(range(256))
    odd = Image.fromarray(np.array([[0, 128, 129, 65406, 65407, 65535]], np.uint16))
    assert one(saved(odd, "PNG")).rows[0][0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


def test_pixels_without_a_range_are_left_out_with_the_reason():
    for image, kind in (
        (Image.fromarray(RAMP.astype(np.int32)), "32-bit"),
        (Image.new("F", (2, 2)), "floating-point"),
    ):
        got = one(saved(image, "TIFF"))
        assert not got.rows and got.rejected[0] == (
            f"not a readable image (The {kind} pixels of the image have no fixed range; store the image with 8 or 16 bits per channel)"
        )


def test_palettes_inks_transparency_and_frames():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    colours = [[[10, 20, 30], [200, 100, 50]]]
    for data in (saved(palette, "PNG"), saved(palette, "PNG", transparency=0), saved(palette, "GIF")):
        assert one(data).rows[0].tolist() == colours
    assert one(saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")).rows[0].tolist() == [[[255, 0, 0]]]
    clear = Image.fromarray(np.array([[[5, 0], [9, 255]]], np.uint8), "LA")
    assert one(saved(clear, "PNG")).rows[0][0, :, 0].tolist() == [5, 9]
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    for kind in ("GIF", "PNG", "TIFF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.unique(one(data).rows[0]).tolist() == [10]


def test_a_bad_file_is_named_by_its_path(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    missing = str(tmp_path / "none.png")
    for column in (
        pa.array([str(tmp_path / "bad.png"), missing]),
        pa.array([{"bytes": b"no", "path": str(tmp_path / "bad.png")}, {"bytes": None, "path": missing}]),
    ):
        got = decode(rows(column), ["image"], "images").rejected
        assert got[0].startswith(f"{tmp_path}/bad.png is not a readable image (")
        assert got[1].startswith(f"{missing} is not a readable image (")


def test_bytes_are_named_by_the_column_path():
    table = pa.table(
        {ID: [5, 6, 7], "image": pa.array([b"no", None, encoded()]), "path": ["a/1.png", "b.png", "c.png"]}
    )
    got = decode(table, ["image"], "images")
    assert got.ids.tolist() == [7]
    assert got.rejected[5].startswith("a/1.png is not a readable image (cannot identify")
    assert got.rejected[6] == "no value in column 'image' of b.png"
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    assert paths_beside(kinds, ["image"]) == ["path"] and paths_beside(kinds, ["path"]) == []
    assert paths_beside({"image": pa.binary()}, ["image"]) == []


def test_an_image_that_a_network_cannot_prepare_is_left_out():
    def prepare(image):
        if image.width == 1:
            raise ZeroDivisionError
        return np.asarray(image)

    got = decode(rows([encoded(), encoded(size=(1, 4))]), ["image"], "images", prepare)
    assert got.ids.tolist() == [0]
    assert got.rejected == {
        1: "an image that the preprocessing of the embedder cannot convert (ZeroDivisionError)"
    }


def test_pixels_of_several_sizes_in_one_column():
    from ray.data.extensions import ArrowVariableShapedTensorArray

    images = [
        np.full(shape, value, np.uint8) for value, shape in enumerate([(4, 5, 3), (2, 9, 3), (2, 2, 3)])
    ]
    column = ArrowVariableShapedTensorArray.from_numpy(np.array([*images, None], object)[:3])
    for part in (column, column.slice(1)):
        got = decode(rows(part), ["image"], "images")
        known = images[-len(part) :]
        assert all(np.array_equal(a, b) for a, b in zip(got.rows, known, strict=True))
    with pytest.raises(DataError, match="rows of different shapes: 2x2x3, 2x9x3, 4x5x3"):
        to_numpy(pa.chunked_array([column]), "image")
    same = ArrowVariableShapedTensorArray.from_numpy(np.array([images[0], images[0], None], object)[:2])
    assert to_numpy(same, "image").shape == (2, 4, 5, 3)
