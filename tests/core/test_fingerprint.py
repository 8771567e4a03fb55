"""Fingerprints: every change that decides a result changes them, and nothing else does."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import importlib.util
import linecache
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysel.core.fingerprint import fingerprint, library_versions
from raysel.core.fingerprint.code import instructions
from raysel.errors import ConfigError

COUNT = iter(range(10**9))


def load(tmp_path: Path, source: str, name: str = "f", file: str = "mine.py"):
    """Object ``name`` of a module with this source, loaded as new."""
    path = tmp_path / f"{next(COUNT)}" / file
    path.parent.mkdir()
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(f"fp_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def same(tmp_path: Path, one: str, other: str, name: str = "f") -> bool:
    return fingerprint(load(tmp_path, one, name)) == fingerprint(load(tmp_path, other, name))


# ---- code ------------------------------------------------------------------------------------------------------------

KEPT = {
    "lines moved": ("def f(x): return x + 1", "\n\n# above\n\ndef f(x): return x + 1"),
    "comment inside": ("def f(x):\n    return x + 1", "def f(x):\n    # why\n\n    return x + 1  # so"),
    "docstring": ("def f(x):\n    return x + 1", "def f(x):\n    '''What it does.'''\n    return x + 1"),
    "formatting": ("def f(x):\n    return g(x, 1)\ndef g(*a): return a",
                   "def f(x):\n    return (\n        g(\n            x,\n            1,\n        )\n    )\ndef g(*a):\n    return a"),
    "an unrelated global": ("A = 1\ndef f(x): return x", "A = 2\nB = open\ndef f(x): return x"),
    "order of definitions": ("A = 1\nB = 2\ndef g(x): return x + B\ndef f(x): return g(x) + A",
                             "B = 2\ndef f(x): return g(x) + A\ndef g(x): return x + B\nA = 1"),
    "order of a dict": ("D = {'a': 1, 'b': 2}\ndef f(x): return D", "D = {'b': 2, 'a': 1}\ndef f(x): return D"),
    "another method's docstring": ("class f:\n    def __call__(self, x): return x",
                                   "class f:\n    '''Text.'''\n    def __call__(self, x):\n        '''T.'''\n        return x"),
    "quotes": ("def f(x): return 'a'", 'def f(x): return "a"'),
    "another lambda on the line": ("f = lambda x: x + 1", "g, f = lambda x: x + 2, lambda x: x + 1"),
    "cache of a function": ("import functools\n@functools.lru_cache\ndef f(x): return x",
                            "import functools\n@functools.lru_cache\ndef f(x): return x\nf(1)"),
    "logger": ("import logging\nlog = logging.getLogger('a')\ndef f(x): log.info(x)",
               "import logging\nlog = logging.getLogger('b')\nlog.setLevel(10)\ndef f(x): log.info(x)"),
    "unused attribute of a module": ("import types\nm = types.ModuleType('m')\nm.a, m.b = 1, 2\ndef f(x): return m.a",
                                     "import types\nm = types.ModuleType('m')\nm.a, m.b = 1, 3\ndef f(x): return m.a"),
}  # fmt: skip

CHANGED = {
    "body": ("def f(x): return x + 1", "def f(x): return x + 2"),
    "type of a constant": ("def f(x): return x + 1", "def f(x): return x + 1.0"),
    "sign of zero": ("def f(x): return 0.0", "def f(x): return -0.0"),
    "default": ("K = 1\ndef f(x, k=K): return k", "K = 2\ndef f(x, k=K): return k"),
    "keyword default": ("K = 1\ndef f(x, *, k=K): return k", "K = 2\ndef f(x, *, k=K): return k"),
    "global": ("A = 1\ndef f(x): return x + A", "A = 2\ndef f(x): return x + A"),
    "global of a global function": ("A = 1\ndef g(x): return x + A\ndef f(x): return g(x)",
                                    "A = 2\ndef g(x): return x + A\ndef f(x): return g(x)"),
    "global in a nested function": ("A = 1\ndef f(x):\n    def g(): return A\n    return g()",
                                    "A = 2\ndef f(x):\n    def g(): return A\n    return g()"),
    "global in a comprehension": ("A = 1\ndef f(x): return [y + A for y in x]", "A = 2\ndef f(x): return [y + A for y in x]"),
    "global in a generator": ("A = 1\ndef f(x): return sum(y + A for y in x)", "A = 2\ndef f(x): return sum(y + A for y in x)"),
    "global in a class in a function": ("A = 1\ndef f(x):\n    class C:\n        a = A\n    return C.a",
                                        "A = 2\ndef f(x):\n    class C:\n        a = A\n    return C.a"),
    "closure": ("def make(k):\n    return lambda x: x + k\nf = make(1)", "def make(k):\n    return lambda x: x + k\nf = make(2)"),
    "closure of a nested function": ("def make(k):\n    def f(x):\n        return (lambda: k)()\n    return f\nf = make(1)",
                                     "def make(k):\n    def f(x):\n        return (lambda: k)()\n    return f\nf = make(2)"),
    "element of a set": ("S = {'a', 'b'}\ndef f(x): return S", "S = {'a', 'c'}\ndef f(x): return S"),
    "element of a constant set": ("def f(x): return x in {'a', 'b'}", "def f(x): return x in {'a', 'c'}"),
    "partial": ("import functools\nf = functools.partial(lambda x, k: k, k=1)", "import functools\nf = functools.partial(lambda x, k: k, k=2)"),
    "lambda on one line": ("g, f = lambda x: x + 1, lambda x: x + 2", "g, f = lambda x: x + 1, lambda x: x + 3"),
    "wrapped function": ("import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(x): return g(x)\n    return w\n@deco\ndef f(x): return x + 1",
                         "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(x): return g(x)\n    return w\n@deco\ndef f(x): return x + 2"),
    "decorator": ("import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(x): return g(x)\n    return w\n@deco\ndef f(x): return x",
                  "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(x): return g(x) + 1\n    return w\n@deco\ndef f(x): return x"),
    "installed decorator": ("import torch\n@torch.no_grad()\ndef f(x): return x + 1", "import torch\n@torch.no_grad()\ndef f(x): return x + 2"),
    "lru_cache": ("import functools\n@functools.lru_cache\ndef f(x): return x + 1", "import functools\n@functools.lru_cache\ndef f(x): return x + 2"),
    "singledispatch": ("import functools\n@functools.singledispatch\ndef f(x): return x\n@f.register\ndef _(x: int): return 1",
                       "import functools\n@functools.singledispatch\ndef f(x): return x\n@f.register\ndef _(x: int): return 2"),
    "attribute of a module": ("import types\nm = types.ModuleType('m')\nm.a = 1\ndef f(x): return m.a",
                              "import types\nm = types.ModuleType('m')\nm.a = 2\ndef f(x): return m.a"),
    "method": ("class C:\n    def __call__(self, x): return x + 1\nf = C()", "class C:\n    def __call__(self, x): return x + 2\nf = C()"),
    "method that is called": ("class C:\n    def __call__(self, x): return self.g(x)\n    def g(self, x): return x\nf = C()",
                              "class C:\n    def __call__(self, x): return self.g(x)\n    def g(self, x): return -x\nf = C()"),
    "property": ("class C:\n    @property\n    def k(self): return 1\nf = C()", "class C:\n    @property\n    def k(self): return 2\nf = C()"),
    "staticmethod": ("class C:\n    @staticmethod\n    def k(): return 1\nf = C()", "class C:\n    @staticmethod\n    def k(): return 2\nf = C()"),
    "classmethod": ("class C:\n    @classmethod\n    def k(cls): return 1\nf = C()", "class C:\n    @classmethod\n    def k(cls): return 2\nf = C()"),
    "class attribute": ("class C:\n    k = 1\nf = C()", "class C:\n    k = 2\nf = C()"),
    "base class": ("class B:\n    def k(self): return 1\nclass C(B): pass\nf = C()", "class B:\n    def k(self): return 2\nclass C(B): pass\nf = C()"),
    "global read by a class body": ("A = 1\nclass C:\n    k = A * 2\nf = C", "A = 2\nclass C:\n    k = A * 2\nf = C"),
    "instance attribute": ("class C:\n    def __init__(self): self.k = 1\nf = C()", "class C:\n    def __init__(self, k=2): self.k = k\nf = C()"),
    "slot": ("class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\nf = C(1)", "class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\nf = C(2)"),
    "bound method": ("class C:\n    def __init__(self, k): self.k = k\n    def m(self, x): return self.k\nf = C(1).m",
                     "class C:\n    def __init__(self, k): self.k = k\n    def m(self, x): return self.k\nf = C(2).m"),
    "default of a dataclass": ("import dataclasses\n@dataclasses.dataclass\nclass f:\n    k: int = 1", "import dataclasses\n@dataclasses.dataclass\nclass f:\n    k: int = 2"),
    "member of an enum": ("import enum\nclass E(enum.Enum):\n    A = 1\nf = E.A", "import enum\nclass E(enum.Enum):\n    A = 2\nf = E.A"),
    "recursion": ("def f(x): return g(x) + 1\ndef g(x): return f(x) if x else 0", "def f(x): return g(x) + 1\ndef g(x): return f(x) if x else 1"),
    "far away in a cycle": ("def f(x): return g(x)\ndef g(x): return h(x)\ndef h(x): return i(x)\ndef i(x): return f(x) if x else K\nK = 1",
                            "def f(x): return g(x)\ndef g(x): return h(x)\ndef h(x): return i(x)\ndef i(x): return f(x) if x else K\nK = 2"),
    "ufunc": ("import numpy\ng = numpy.sin\ndef f(x): return g(x)", "import numpy\ng = numpy.cos\ndef f(x): return g(x)"),
    "torch function": ("import torch\ng = torch.relu\ndef f(x): return g(x)", "import torch\ng = torch.sigmoid\ndef f(x): return g(x)"),
    "pattern": ("import re\nP = re.compile('a')\ndef f(x): return P.match(x)", "import re\nP = re.compile('b')\ndef f(x): return P.match(x)"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_decides_nothing_keeps_the_fingerprint(tmp_path, case):
    assert same(tmp_path, *KEPT[case])


@pytest.mark.parametrize("case", CHANGED)
def test_what_decides_a_result_changes_the_fingerprint(tmp_path, case):
    one, other = CHANGED[case]
    assert not same(tmp_path, one, other)
    assert same(tmp_path, one, one)


@pytest.mark.parametrize("case", [*KEPT, *CHANGED])
def test_code_without_source(case):
    """Executed text has no source: its instructions take the place, with the same differences."""
    found = []
    for text in (KEPT | CHANGED)[case]:
        names = {"__name__": "__main__"}
        exec(compile(textwrap.dedent(text), f"<text {next(COUNT)}>", "exec"), names)
        found.append(fingerprint(names["f"]))
    if case != "formatting":  # a multi-line expression may compile to other instructions
        assert (found[0] == found[1]) == (case in KEPT)


def test_a_notebook_cell_counts_by_its_source():
    def cell(text: str, number: int):
        name = f"<ipython-input-{number}-{next(COUNT)}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        names = {"__name__": "__main__"}
        exec(compile(text, name, "exec"), names)
        return fingerprint(names["f"])

    one = cell("def f(x):\n    return x + 1\n", 1)
    assert one == cell("# moved\n\ndef f(x):\n    '''Text.'''\n    return (x +\n        1)\n", 7)
    assert one != cell("def f(x):\n    return x + 2\n", 8)


def test_source_that_changed_after_the_import_is_not_the_code_that_runs(tmp_path):
    f = load(tmp_path, "def f(x): return x + 1")
    before = fingerprint(f)
    path = Path(f.__code__.co_filename)
    path.write_text("def f(x): return x + 2")
    after = fingerprint(f)
    path.write_text("def f(x): return x + 300")
    assert len({before, after, fingerprint(f)}) == 3  # what other processes import is the file's code
    for text in ("def f(x): return x + 1", "# moved\n\ndef f(x):\n    return x + 1\nOTHER = 2"):
        path.write_text(text)
        assert fingerprint(f) == before


# ---- modules ---------------------------------------------------------------------------------------------------------

CHILD = """
import importlib, sys
sys.path[:0] = [sys.argv[1]]
from raysel.core.fingerprint import fingerprint
for name in sys.argv[3:]:
    importlib.import_module(name)
module, _, name = sys.argv[2].partition(":")
print(fingerprint(getattr(importlib.import_module(module), name)))
"""


def in_process(folder: Path, what: str, *before: str, seed: str = "0", cwd: Path | None = None) -> str:
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), what, *before],
        env=env, cwd=cwd or folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


PROJECT = {
    "pack/__init__.py": "",
    "pack/deep.py": "SCALE = 2\nUNUSED = 3\ndef scaled(x): return x * SCALE\n",
    "layers.py": "from pack import deep\ndef block(x): return deep.scaled(x)\ndef other(x): return x\n",
    "late.py": "def late(x): return x\n",
    "model.py": (
        "import numpy as np\nimport layers\nfrom layers import block as renamed\n"
        "STOP = {'the', 'and', 'of', 'to'}\n"
        "def net(x):\n    import late\n    from pack import deep as below\n"
        "    return renamed(np.abs(x)) + late.late(x) + len(STOP) + below.scaled(x)\n"
    ),
}


@pytest.fixture
def project(tmp_path):
    for name, text in PROJECT.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(text)
    return tmp_path / "p"


def test_another_process_directory_seed_and_order_of_imports(project, tmp_path):
    one = in_process(project, "model:net")
    assert one == in_process(project, "model:net", "late", "pack.deep", "pandas", seed="7", cwd=tmp_path)
    moved = tmp_path / "elsewhere"
    project.rename(moved)
    assert one == in_process(moved, "model:net", seed="8")


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("pack/deep.py", "SCALE = 2", "SCALE = 5", True),
        ("pack/deep.py", "x * SCALE", "x + SCALE", True),
        ("late.py", "return x", "return -x", True),
        ("layers.py", "return deep.scaled(x)", "return 1 + deep.scaled(x)", True),
        ("model.py", "'of'", "'off'", True),
        ("pack/deep.py", "UNUSED = 3", "UNUSED = 4", False),
        ("layers.py", "def other(x): return x", "def other(x): return -x", False),
        ("late.py", "def late", "# a comment\ndef late", False),
    ],
)
def test_the_users_own_modules_are_followed(project, file, old, new, changes):
    one = in_process(project, "model:net")
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))
    assert (in_process(project, "model:net") != one) == changes


def test_a_module_read_as_a_whole(tmp_path):
    (tmp_path / "whole.py").write_text("A = 1\ndef g(x): return x\n")
    (tmp_path / "use.py").write_text("import whole\ndef f(name): return getattr(whole, name)\n")
    one = in_process(tmp_path, "use:f")
    (tmp_path / "whole.py").write_text("A = 1\ndef g(x): return -x\n")
    assert in_process(tmp_path, "use:f") != one


def test_a_script_and_a_module_with_the_same_function(tmp_path):
    (tmp_path / "script.py").write_text(
        "from raysel.core.fingerprint import fingerprint\nimport os\nif __name__ == '__main__': os.chdir('/')\n"
        "def f(x): return x + 1\nif __name__ == '__main__': print(fingerprint(f))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = lambda *a: subprocess.run([sys.executable, *a], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)  # noqa: E731 # fmt: skip
    assert run("script.py").stdout.strip() == in_process(tmp_path, "script:f")


def test_installed_packages_count_by_version(monkeypatch):
    from raysel.core.fingerprint import origin

    def f(x):
        return np.abs(x)

    one = fingerprint(f)
    monkeypatch.setattr(origin, "_package", lambda top: f"{top}==0.0")
    assert fingerprint(f) != one
    assert library_versions("numpy", "no-such-library") == {"numpy": np.__version__}


# ---- values ----------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def copied(value):
    """An equal value that shares nothing, with dicts in the reverse order."""
    if isinstance(value, dict):
        return {copied(key): copied(held) for key, held in reversed(value.items())}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(held) for held in value)
    return (
        bytes(bytearray(value))
        if isinstance(value, bytes)
        else "".join(list(value))
        if isinstance(value, str)
        else value
    )


@given(plain)
def test_equal_values_have_one_fingerprint(value):
    assert fingerprint(value) == fingerprint(copied(value)) == fingerprint(copied(copied(value)))


@given(plain, plain)
def test_different_values_differ(one, other):
    exact = lambda value: repr(sorted_dicts(value))  # noqa: E731
    assert (fingerprint(one) == fingerprint(other)) == (exact(one) == exact(other))


def sorted_dicts(value):
    if isinstance(value, dict):
        return {key: sorted_dicts(value[key]) for key in sorted(value)}
    return type(value)(map(sorted_dicts, value)) if isinstance(value, (list, tuple)) else value


@given(st.sets(st.text(max_size=4)))
def test_sets_have_no_order(values):
    order = sorted(values)
    assert fingerprint(set(order)) == fingerprint(set(reversed(order))) == fingerprint(frozenset(order))


def test_sharing_does_not_count():
    one, other = ["x"], ["x"]
    assert fingerprint([one, one]) == fingerprint([one, other])
    first: list = []
    first.append(first)
    second: list = []
    second.append([second])
    assert fingerprint(first) == fingerprint(second)  # both unfold to the same tree
    third: list = [1]
    third.append(third)
    assert fingerprint(first) != fingerprint(third)


@dataclasses.dataclass
class Point:
    x: object
    y: object = 0


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


class Cached:
    def __init__(self, k):
        self.k = k

    @functools.cached_property
    def slow(self):
        return object()


class Network(torch.nn.Module):
    def __init__(self, p=0.1, scale=1.0, names=("a", "b")):
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.parts = torch.nn.Sequential(collections.OrderedDict((n, torch.nn.Linear(2, 2)) for n in names))
        self.drop = torch.nn.Dropout(p)
        self.register_buffer("kept", torch.zeros(2), persistent=True)
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.memory = torch.nn.LSTM(2, 2)

    def forward(self, x):
        return self.drop(self.parts(x)) * self.scale


def changed(edit):
    network = Network()
    edit(network)
    return network


class Color(enum.Enum):
    RED = 1
    BLUE = 2


VALUES = [
    0, 0.0, -0.0, float("nan"), False, None, "0", b"0", 0j, Decimal("0"), Decimal("0.0"), ..., range(3), slice(3),
    (), [], {}, set(), (0,), [0], [[]], [[], []], {0: 1}, {0: 2}, {0}, {(0, 1)}, {(1, 0)}, bytearray(b"0"),
    collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), dict(a=1, b=2), collections.Counter("ab"),
    collections.deque([1]), collections.deque([1], maxlen=2), datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1),
    Path("a"), Path("b"), re.compile("a"), re.compile("a", re.I), Color.RED, Color.BLUE, Color,
    Point(1), Point(2), Point([1]), Slots(1), Slots(2), Cached(1), Cached(2),
    np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.array([0.0, 1.0]), np.array([0.0, -0.0]), np.float64(0), np.float32(0),
    np.array([1, "a"], object), np.array([1, "b"], object), np.array(["a"]), np.array([(1, 2.0)], "i4,f8"),
    np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0]), np.dtype("f4"), np.dtype("f8"),
    np.random.default_rng(0), np.random.default_rng(1), np.sin, np.cos, np.abs, len, "a".upper, "b".upper, str.upper, str.lower,
    torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, 1), torch.ones(2), torch.tensor(1.0), torch.float32, torch.device("cpu"),
    torch.eye(2).to_sparse(), torch.nn.functional.relu, torch.relu,
    Network(), changed(lambda n: n.eval()), Network(p=0.2), Network(scale=2.0), Network(names=("b", "a")),
    changed(lambda n: n.kept.add_(1)), changed(lambda n: n.passing.add_(1)), changed(lambda n: n.parts.a.weight.data.add_(1)),
    changed(lambda n: n.register_forward_hook(lambda *a: None)), changed(lambda n: setattr(n, "drop", torch.nn.Identity())),
    pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"b": [1, 2]}), pd.DataFrame({"a": [1, 3]}), pd.DataFrame({"a": [1, 2]}, index=[1, 2]),
    pd.Series([1, 2]), pd.Series(["a", None]), pd.Series(["a", "b"]).astype("category"), pd.Timestamp(0), pd.NA, pd.NaT, pd.Series([1, None], dtype="Int64"),
    pa.table({"a": [1, 2]}), pa.table({"a": [1, 3]}), pa.table({"b": [1, 2]}), pa.array([1, None]), pa.array([None, 1]), pa.array(["a"]), pa.scalar(1), pa.int64(),
    functools.partial(len), functools.partial(len, []), Point, int, list[int],
]  # fmt: skip


def test_values_of_every_kind_differ():
    found = collections.defaultdict(list)
    for value in VALUES:
        found[fingerprint(value)].append(value)
    assert [group for group in found.values() if len(group) > 1] == []


def test_values_of_every_kind_are_the_same_again():
    import copy
    import pickle

    for value in VALUES:
        for again in (copy.deepcopy(value), value):
            assert fingerprint(again) == fingerprint(value), value
    for value in (
        Network(),
        Point([np.zeros(2)]),
        pd.DataFrame({"a": [1, 2]}),
        pa.table({"a": [1, None]}),
        Color.RED,
    ):
        assert fingerprint(pickle.loads(pickle.dumps(value))) == fingerprint(value), value


def test_how_a_value_lies_in_memory_does_not_count():
    table = pa.table({"a": [9, 1, None, 3], "b": ["x", "y", None, "z"]})
    chunked = pa.concat_tables([table.slice(1, 1), table.slice(2)])
    assert fingerprint(table.slice(1)) == fingerprint(chunked)
    assert fingerprint(np.arange(6).reshape(2, 3).T) == fingerprint(np.arange(6).reshape(2, 3).T.copy())
    assert fingerprint(torch.arange(6)[::2]) == fingerprint(torch.tensor([0, 2, 4]))
    used = Cached(1)
    assert used.slow is used.slow and fingerprint(used) == fingerprint(Cached(1))


def test_a_network_with_another_forward(tmp_path):
    text = "import torch\nclass f(torch.nn.Module):\n    def forward(self, x): return self.g(x) * {}\n    def g(self, x): return x\n"
    one, again, other = (load(tmp_path, text.format(k))() for k in (1, 1, 3))
    inside = [fingerprint(torch.nn.Sequential(torch.nn.ReLU(), part)) for part in (one, again, other)]
    assert inside[0] == inside[1] != inside[2]


def test_networks_that_torch_made_of_networks():
    script = torch.jit.script(torch.nn.Linear(2, 2))
    assert fingerprint(script) == fingerprint(script)
    assert fingerprint(torch.compile(changed(lambda n: None))) == fingerprint(Network())
    compiled = torch.compile(Point.__init__)
    assert fingerprint(compiled) == fingerprint(Point.__init__)


FITTED = """
import numpy as np, torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

def double(v): return v * 2

x = np.random.default_rng(0).random((50, 3))
text = TfidfVectorizer().fit(["a word other", "many words here and there"])
numbers = make_pipeline(StandardScaler(), FunctionTransformer(double)).fit(x)
normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))
for value in normed.parameters(): torch.nn.init.ones_(value)

class Own:
    def __call__(self, x): return text, numbers, normed
own = Own()
"""


@pytest.mark.slow
def test_objects_of_installed_packages(tmp_path):
    changes = [("* 2", "* 3"), ("many", "few"), ("default_rng(0)", "default_rng(1)"), ("ones_", "zeros_")]
    texts = [FITTED, FITTED, *(FITTED.replace(old, new) for old, new in changes)]

    def found(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "fitted.py").write_text(texts[number])
        first = ("pandas",) if number == 1 else ()
        return in_process(folder, "fitted:own", *first, seed="3" if number == 1 else "0")

    with ThreadPoolExecutor(2) as pool:  # each imports libraries for some seconds
        one, again, *others = pool.map(found, range(len(texts)))
    assert again == one
    assert len({one, *others}) == 1 + len(changes)


def test_instructions_hold_no_positions():
    def made(text):
        names: dict = {}
        exec(text, names)
        return instructions(names["f"].__code__)

    assert made("def f(x):\n    return x if x else 1") == made(
        "\n\ndef f(x):\n    '''Doc.'''\n\n\n    return x if x else 1"
    )


# ---- what cannot be fingerprinted ------------------------------------------------------------------------------------

conn = sqlite3.connect(":memory:")
lock = threading.Lock()


def reads_conn(x):
    return conn.execute(x)


def calls_reads_conn(x):
    return reads_conn(x)


class HoldsLock:
    def __init__(self, guard):
        self.inner = Point({"guard": guard})

    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: reads_conn, r"Embedder 'e' reads the global 'conn' \(sqlite3\.Connection\)\. .* cannot detect whether the content of this object changes; give version="),
        (lambda: calls_reads_conn, r"reads the global 'conn' of the global 'reads_conn' \(sqlite3\.Connection\)"),
        (lambda: HoldsLock(lock), r"reads the value of 'guard' of the attribute 'x' of the attribute 'inner' \(_thread\.lock\)"),
        (lambda: functools.partial(len, lock), r"reads the partial argument 0 \(_thread\.lock\)"),
        (lambda: lock, r"Embedder 'e' is a _thread\.lock"),
        (lambda: (i for i in range(3)), "is a generator"),
        (lambda: weakref.ref(HoldsLock), "weakref"),
        (lambda: sys.__stderr__, "TextIOWrapper"),
        (lambda: np.frompyfunc(len, 1, 1), "ufunc"),
        (lambda: torch.zeros(2, device="meta"), "Tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_fingerprinted_is_named(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fingerprint(make(), "embedder 'e'")


def test_a_version_or_digest_of_the_users_own():
    class Own:
        def __init__(self, **given):
            self.lock = lock
            self.__dict__.update(given)

    with pytest.raises(ConfigError):
        fingerprint(Own())
    assert fingerprint(Own(version="1")) == fingerprint(Own(version="1")) != fingerprint(Own(version="2"))
    assert fingerprint(Own(digest="1")) == fingerprint(Own(digest="1", k=2)) != fingerprint(Own(digest="2"))
    assert fingerprint(Point(1)) != fingerprint(Point(2))
    with_version = [Point(1), Point(2)]
    for point in with_version:
        point.version = "1"  # a version does not hide what can be compared
    assert fingerprint(with_version[0]) != fingerprint(with_version[1])


def test_pickling_an_instance_changes_neither_its_fingerprint_nor_that_of_its_class():
    """Pickling leaves ``__slotnames__`` on the class, so that a step run in the same process would have another key."""

    class Kept:
        def __init__(self):
            self.power = 0.5

    made = Kept()
    before = fingerprint(Kept), fingerprint(made)
    made.__reduce_ex__(2)
    assert "__slotnames__" in vars(Kept)
    assert (fingerprint(Kept), fingerprint(made)) == before
