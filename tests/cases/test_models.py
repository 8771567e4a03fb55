"""The digest of a model, and of a training's code, changes with every file that decides what it computes."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from types import ModuleType

import pytest

import raysel
from raysel.cluster.code import load_function
from raysel.train.settings import Train
from raysel.workflow.steps.train import code_digests


@pytest.fixture
def text_model(tmp_path, monkeypatch):
    """The digest of the model in a folder, without the library, which is only needed to load it."""
    stub = ModuleType("sentence_transformers")
    stub.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    stub.__version__ = "5.0.0"
    monkeypatch.setitem(sys.modules, "sentence_transformers", stub)
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text('{"lower": true}')
    (folder / "1_Pooling" / "config.json").write_text('{"mean": 1}')
    (tmp_path / "elsewhere").mkdir()
    return folder, lambda: raysel.fit_embedder(f"sentence-transformers:{folder}").digest


def test_a_linked_folder(text_model, tmp_path):
    folder, digest = text_model
    before = digest()
    (folder / "2_Dense").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = {before}
    for weights in (b"one", b"two"):
        (tmp_path / "elsewhere" / "model.safetensors").write_bytes(weights)
        found.add(digest())
    (tmp_path / "elsewhere" / "deep").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "elsewhere" / "deep" / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    for weights in (b"three", b"four"):
        (tmp_path / "other" / "weights.bin").write_bytes(weights)
        found.add(digest())
    assert len(found) == 5


def test_a_linked_file_and_a_linked_model(text_model, tmp_path):
    folder, digest = text_model
    target = tmp_path / "elsewhere" / "blob"
    (folder / "vocab.txt").symlink_to(target)
    found = set()
    for words in ("one", "two"):
        target.write_text(words)
        found.add(digest())
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert len(found) == 2 and raysel.fit_embedder(f"sentence-transformers:{link}").digest in found


def test_a_link_in_a_circle_ends(text_model):
    folder, digest = text_model
    (folder / "self").symlink_to(folder, target_is_directory=True)
    assert digest() == digest()


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "config.json", "1_Pooling/config.json", "model.safetensors"]
)
def test_a_file_of_the_same_size_and_time(text_model, file):
    folder, digest = text_model
    before, stat = digest(), (folder / file).stat()
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    os.utime(folder / file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest() != before


def test_a_file_that_was_added_renamed_or_removed(text_model):
    folder, digest = text_model
    found = [digest()]
    (folder / "special_tokens_map.json").write_text("{}")
    found.append(digest())
    (folder / "special_tokens_map.json").rename(folder / "added_tokens.json")
    found.append(digest())
    (folder / "tokenizer.json").unlink()
    found.append(digest())
    assert len(set(found)) == 4


def test_documentation_does_not_count(text_model):
    folder, digest = text_model
    before = digest()
    (folder / "README.md").write_text("A model.")
    assert digest() == before


# ---- the code of a training


MODEL = "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nIMPORT\ndef net(shape, classes): return CALL(shape, classes)\n"
BLOCK = "import torch\nWIDTH = 8\ndef block(shape, classes): return torch.nn.Linear(4, WIDTH)\n"
NEAR = {
    "from m import f": ("from raysel_case_a import block", "block", {"raysel_case_a": BLOCK}),
    "import m": ("import raysel_case_b", "raysel_case_b.block", {"raysel_case_b": BLOCK}),
    "two modules away": (
        "from raysel_case_c import make",
        "make",
        {
            "raysel_case_c": "import raysel_case_d\ndef make(*a): return raysel_case_d.block(*a)\n",
            "raysel_case_d": BLOCK,
        },
    ),
    "in a function": (
        "def make(*a):\n    from raysel_case_e import block\n    return block(*a)",
        "make",
        {"raysel_case_e": BLOCK},
    ),
    "a class": (
        "from raysel_case_f import Net",
        "Net",
        {
            "raysel_case_f": "import torch\nclass Net(torch.nn.Module):\n    def __init__(self, *a): super().__init__()\n"
            "    def forward(self, x): return x * 8\n"
        },
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_module_that_the_models_file_imports(tmp_path, monkeypatch, name):
    """The file itself stays as it is; so does the digest where its neighbours do, below another comment."""
    line, call, modules = NEAR[name]
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "models.py").write_text(MODEL.replace("IMPORT", line).replace("CALL", call))
    found = []
    for old, new in (("8", "8"), ("8", "32")):
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text.replace(old, new))
            sys.modules.pop(module, None)
        found += [code_digests(Train(model=f"{tmp_path}/models.py:net"))["model"] for _ in range(2)]
    for module in modules:
        sys.modules.pop(module, None)
    assert found[0] == found[1] != found[2] == found[3]


def test_a_model_written_again_with_the_same_size_and_time(tmp_path):
    found = []
    for width in ("8", "9"):
        file = tmp_path / "models.py"
        file.write_text(f"def net(shape, classes): return {width}\n")
        os.utime(file, (10**9, 10**9))
        found.append(
            (
                code_digests(Train(model=f"{file}:net"))["model"],
                load_function(f"{file}:net", "train.model")((4,), 2),
            )
        )
    assert found[0][0] != found[1][0] and [made for _, made in found] == [8, 9]
