"""Folders of images: ids by path, classes by folder or file, and images of any mode and size as an embedder gets them."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import raysel
from raysel.cluster.blocks import gather
from raysel.data.decode import decode
from raysel.data.images import list_images
from raysel.data.row_index import ID
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
    assert list_images(str(folder)).to_pydict() == {
        "path": ["cat/a.jpg", "cat/b.png", "dog/c.png"],
        "label": ["cat", "cat", "dog"],
    }


def test_classes_by_file(folder):
    (folder / "labels.csv").write_text("path,label\ndog/c.png,3\ncat/a.jpg,1\ncat/b.png,2\n")
    assert list_images(str(folder))["label"].to_pylist() == [1, 2, 3]
    (folder / "labels.csv").write_text("path,label\ndog/c.png,3\n")
    with pytest.raises(DataError, match=r"has no class for 2 images \(cat/a.jpg, cat/b.png\)"):
        list_images(str(folder))
    (folder / "labels.csv").write_text("file,label\n")
    with pytest.raises(DataError, match="must have the columns path and label; its columns are file, label"):
        list_images(str(folder))


def test_loose_images(folder):
    (folder / "x.png").write_bytes(encoded())
    with pytest.raises(DataError, match=r"1 images are outside the folders of the classes \(x.png\)"):
        list_images(str(folder))


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
    with pytest.raises(DataError, match=r"sample_id 1: not a readable image \(cannot identify image file"):
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
    with pytest.raises(DataError, match="holds float32 of shape"):
        decode(rows(to_column(pixels.astype(np.float32))), ["image"], "images")
    with pytest.raises(DataError, match="holds int64, not text"):
        decode(rows(pa.array([1, 2])), ["image"], "text")
