"""The user's own code: neighbours, changes, names that collide, pickling by value, and a sentence for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import ray  # noqa: F401, which changes sys.path when it is first imported

from raysel.cluster.code import PREFIX, load_function, load_module, load_object, user_modules
from raysel.core.fingerprint import fingerprint
from raysel.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_else_changes():
    path, names = list(sys.path), {name for name in sys.modules if not name.startswith(PREFIX)}
    yield
    assert sys.path == path
    new = {name for name in sys.modules if not name.startswith(PREFIX)} - names
    assert not new & {"layers", "models", "parts", "pkg", "mine"}


def test_any_attribute_and_the_same_module_as_long_as_nothing_changes(write, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write("models.py", "class Net: pass\nnet = Net()\ndef make(): return net\n")
    Net, net, make = (load_object(f"{path}:{name}", "key") for name in ("Net", "net", "make"))
    assert make() is net and type(net) is Net
    assert load_object(f"{path}:Net", "key") is Net
    os.utime(path)
    assert load_object(f"{path}:Net", "key") is Net
    assert not (path.parent / "__pycache__").exists()
    assert sys.modules[Net.__module__].Net is Net and Net.__module__.startswith(PREFIX)


@pytest.mark.parametrize(
    "line",
    [
        "from layers import width",
        "import layers; width = layers.width",
        "import layers as l; width = l.width",
        "from layers import *",
        "from .layers import width",
        "from . import layers; width = layers.width",
        "from parts.deep import width",
        "import parts.deep; width = parts.deep.width",
        "from parts import deep; width = deep.width",
        "from parts import shared as width",
    ],
)
def test_a_neighbour_is_imported_and_its_change_noticed(write, monkeypatch, line):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write("models.py", f"{line}\n")
    write("layers.py", "width = 1\n")
    write("parts/__init__.py", "from .deep import width as shared\n")
    write("parts/deep.py", "from layers import width\n")
    assert load_object(f"{path}:width", "key") == 1
    before = load_module(str(path), "key")
    assert load_module(str(path), "key") is before
    write("layers.py", "width = 2\n")  # as long, and in the same second
    assert load_object(f"{path}:width", "key") == 2
    write("other.py", "1 / 0\n")
    assert load_module(str(path), "key") is load_module(str(path), "key") is not before
    (path.parent / "layers.py").unlink()
    with pytest.raises(ConfigError, match=r"No module named|cannot import name"):
        load_object(f"{path}:width", "key")


def test_what_does_not_import_a_changed_file_stays_as_it_is(write):
    one, two = write("one.py", "class A: pass\n"), write("two.py", "import layers\nclass B: pass\n")
    write("layers.py", "")
    A, B = load_object(f"{one}:A", "key"), load_object(f"{two}:B", "key")
    write("layers.py", "pass\n")
    assert load_object(f"{one}:A", "key") is A
    assert load_object(f"{two}:B", "key") is not B


def test_a_package_is_executed_again_with_its_modules(write):
    path = write("models.py", "import parts.deep\ndef net(): return parts.x, parts.deep.y\n")
    write("parts/__init__.py", "x = 1\n")
    write("parts/deep.py", "y = 1\n")
    assert load_function(f"{path}:net", "key")() == (1, 1)
    write("parts/__init__.py", "x = 2\n")
    assert load_function(f"{path}:net", "key")() == (2, 1)


def test_files_of_one_folder_share_their_neighbours(write):
    task, model = (
        write("task.py", "from layers import Block\n"),
        write("net.py", "from layers import Block\n"),
    )
    write("layers.py", "class Block: pass\n")
    assert load_object(f"{task}:Block", "key") is load_object(f"{model}:Block", "key")


def test_an_import_in_a_function_finds_the_neighbour(write):
    path = write("models.py", "def net():\n    import layers\n    return layers.width\n")
    write("layers.py", "width = 3\n")
    assert load_function(f"{path}:net", "key")() == 3


def test_files_of_the_same_name_do_not_collide(write):
    found = []
    for folder in "ab":
        write(f"{folder}/same/layers.py", f"name = '{folder}'\n")
        path = write(f"{folder}/same/models.py", "import layers\ndef net(): return layers.name\n")
        found.append(load_function(f"{path}:net", "key"))
    odd = write("a/my-net.v2.py", "def net(): return 'odd'\n")
    write("a/my_net/__init__.py", "")
    package = write("a/my_net.py", "def net(): return 'the file'\n")
    found += [load_function(f"{odd}:net", "key"), load_function(f"{package}:net", "key")]
    assert [net() for net in found] == ["a", "b", "odd", "the file"]


def test_neighbours_hide_installed_modules_from_the_users_files_alone(write):
    """A folder may hold a random.py, or a file that is called like the library that it uses."""
    path = write(
        "colorsys.py",  # imports the module of its own name; nothing else in this process has imported it
        """
        import colorsys, random, data, fractions, raysel, os
        from raysel.errors import DataError
        import statistics  # of the standard library, which imports random
        mine = random.mine
        def check():
            return fractions.Fraction, colorsys.rgb_to_hsv, os.getcwd, raysel.errors.DataError is DataError
        """,
    )
    write("random.py", "mine = True\n")
    write("os.py", "1 / 0\n")  # which Python itself would not find either
    write("raysel/__init__.py", "1 / 0\n")
    write("data/pool.txt", "")  # a folder of data is a namespace package, as for Python,
    write("fractions/pool.txt", "")  # and hides nothing
    code = f"""
import sys
from raysel.cluster.code import load_object
sys.modules.pop("statistics", None)
ok = load_object({str(path)!r} + ":check", "key")()[-1] and load_object({str(path)!r} + ":mine", "key")
import random, statistics
print(ok, hasattr(random, "mine"), statistics.random is random)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_an_installed_package_in_the_folder_is_itself_and_not_a_copy(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("firmly_installed/__init__.py", "class Base: pass\n")
    path = write("models.py", "from firmly_installed import Base\n")
    assert load_object(f"{path}:Base", "key").__module__.startswith(PREFIX)  # only lies on the path
    from raysel.cluster import code

    monkeypatch.setattr(code, "_installed", lambda: {"firmly_installed": ["firmly-installed"]})
    sys.modules.pop(load_object(f"{path}:Base", "key").__module__)
    write("models.py", "from firmly_installed import Base as Base\n")
    assert load_object(f"{path}:Base", "key").__module__ == "firmly_installed"


def test_user_modules_are_the_file_and_what_it_imports(write):
    path = write("models.py", "import json, layers\n")
    write("layers.py", "from parts import deep\n")
    write("parts/__init__.py", "")
    write("parts/deep.py", "")
    write("unused.py", "")
    names = [module.__name__.partition(".")[2] for module in user_modules(load_module(str(path), "key"))]
    assert names == ["layers", "models", "parts", "parts.deep"]
    assert user_modules(os) == []


def test_modules_of_the_current_directory_are_found_first(write, tmp_path, monkeypatch):
    write("models.py", "from pkg.layers import width\n")
    write("pkg/layers.py", "width = 5\n")  # without __init__.py
    write("calendar.py", "width = 6\n")
    with pytest.raises(ConfigError, match=r"key: models cannot be loaded .ModuleNotFoundError: No module"):
        load_object("models:width", "key")
    monkeypatch.chdir(tmp_path)
    for path in (["/nowhere"], ["", *sys.path]):  # as in a console script, and as in ``python -c``
        monkeypatch.setattr(sys, "path", [*path, *sys.path])
        assert [load_object(f"{place}:width", "key") for place in ("models", "pkg.layers", "calendar")] == [
            5,
            5,
            6,
        ]
    write("pkg/layers.py", "width = 7\n")
    assert load_object("models:width", "key") == load_object("models.py:width", "key") == 7
    import json

    assert load_object("json.decoder:JSONDecoder", "key") is json.decoder.JSONDecoder


def test_a_module_that_the_program_has_imported_is_used_as_it_is(write, tmp_path, monkeypatch):
    write("mine.py", "class Policy: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    import mine

    assert load_object("mine:Policy", "key") is mine.Policy
    del sys.modules["mine"]


@pytest.mark.parametrize(
    ("text", "spec", "sentence"),
    [
        ("", "models.py", r"^key: 'models.py' does not name a policy; write file.py:Name or package.module:Name.$"),
        ("", ":f", "':f' does not name a policy"),
        ("", "models.py:", "'models.py:' does not name a policy"),
        ("", "a b:f", "'a b:f' does not name a policy"),
        ("", ".models:f", "'.models:f' does not name a policy"),
        ("", "none.py:f", r"^key: The file /.*/none.py does not exist.$"),
        ("", "no.such:f", r"^key: no.such cannot be loaded \(ModuleNotFoundError: No module named 'no'\)\.$"),
        ("def linear(): pass\n", "models.py:liner", r"models.py has no policy 'liner'. Did you mean linear\?$"),
        ("a = b = c = d = 0\n", "models.py:none", r"models.py has no policy 'none'. It contains these names: a, b, c and 1 more\.$"),
        ("", "models.py:f", "It contains these names: none.$"),
        ("\n\n1 / 0\n", "models.py:f", r"^key: /.*/models.py cannot be loaded \(ZeroDivisionError in line 3 of models.py: division by zero\)\.$"),
        ("\ndef f(:\n", "models.py:f", r"\(SyntaxError in line 2 of models.py: \w"),
        ("import json\n\njson.loads('{')\n", "models.py:f", r"\(JSONDecodeError in line 3 of models.py: Expecting"),
        ("raise ValueError('one\\ntwo')\n", "models.py:f", r"\(ValueError in line 1 of models.py: one\)"),
        ("import sys\nsys.exit(2)\n", "models.py:f", r"\(SystemExit in line 2 of models.py: 2\)"),
        ("from raysel.errors import ConfigError\nraise ConfigError('x')\n", "models.py:f", r"^key: .*\(ConfigError in line 2"),
        ("import broken\n", "models.py:f", r"models.py cannot be loaded \(KeyError in line 2 of broken.py: 'x'\)"),
        ("import nosuch\n", "models.py:f", r"in line 1 of models.py: No module named 'nosuch'\)"),
        ("from parts import x\n", "models.py:f", r"cannot import name 'x' from 'parts' "),
        ("import parts.nosuch\n", "models.py:f", r"in line 1 of models.py: No module named 'parts.nosuch'\)"),
        ("import broken.part\n", "models.py:f", r"KeyError in line 2 of broken.py"),
        ("def __getattr__(name): raise OSError('later')\n", "models.py:f", r"models.py:f cannot be loaded \(OSError in line 1 .*: later"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said_in_a_sentence(write, tmp_path, monkeypatch, text, spec, sentence):
    write("models.py", text)
    write("broken.py", "\n{}['x']\n")
    write("parts/__init__.py", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_object(spec, "key", "policy")
    assert "\n" not in str(caught.value)
    write("models.py", "f = 1\n")
    assert load_object("models.py:f", "key") == 1
    with pytest.raises(ConfigError, match=r"'models.py:f' is not a function but a value of type int"):
        load_function("models.py:f", "key")


def test_it_is_pickled_by_value(write):
    """In a process that has not the files: functions, classes and instances, of neighbours too, and whole modules."""
    from ray import cloudpickle

    path = write(
        "models.py",
        """
        import dataclasses, layers
        from parts.deep import Block
        @dataclasses.dataclass(frozen=True)
        class Policy:
            share: float = 0.5
            def plan(self): return layers.scale(self.share), Block().size
        def make(share): return Policy(share)
        """,
    )
    layers = write("layers.py", "from parts import deep\ndef scale(x): return x * deep.Block.size\n")
    write("parts/__init__.py", "")
    write("parts/deep.py", "class Block:\n    size = 4\n")
    made = cloudpickle.dumps([load_object(f"{path}:make", "key"), load_object(f"{path}:Policy", "key")(2.0)])
    old = load_object(f"{path}:Policy", "key")
    layers.write_text(layers.read_text() + "\n")
    assert load_object(f"{path}:Policy", "key") is not old
    made = [
        made,
        cloudpickle.dumps([load_object(f"{path}:make", "key"), old(2.0)]),
    ]  # one from before a change
    for file in (path, layers, path.parent / "parts/__init__.py", path.parent / "parts/deep.py"):
        file.unlink()
    code = """
import sys
from ray import cloudpickle
for each in cloudpickle.loads(sys.stdin.buffer.read()):
    make, policy = cloudpickle.loads(each)
    make, policy = cloudpickle.loads(cloudpickle.dumps([make, policy]))  # handed on to another task
    print(make(3.0).plan(), policy.plan())
"""
    done = subprocess.run([sys.executable, "-c", code], input=cloudpickle.dumps(made), capture_output=True)
    assert done.stdout.decode().splitlines() == ["(12.0, 4) (8.0, 4)"] * 2, done.stderr.decode()


def test_tasks_run_the_users_code(cluster, write):
    path = write("models.py", "import layers\ndef net(x): return layers.scale(x)\n")
    layers = write("layers.py", "def scale(x): return 2 * x\n")
    task = cluster.remote(num_cpus=1)(lambda f, x: f(x))
    net = load_function(f"{path}:net", "key")
    path.unlink(), layers.unlink()
    assert cluster.get(task.remote(net, 4)) == 8


def test_a_neighbour_that_is_imported_for_its_effect_counts(tmp_path):
    """The neighbour has another name in this process than its import statement says."""

    def found(value, **files):
        for name, text in {
            "model.py": "import torch\nimport patches\nfrom deep import inner\ndef net(x): return torch.nn.Bilinear(x, x, 1)\n",
            "patches.py": f"import torch\ndef init(self): self.k = {value}\ntorch.nn.Bilinear.reset_parameters = init\n",
            "deep/__init__.py": "",
            "deep/inner.py": "K = 1\n",
            **files,
        }.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return fingerprint(load_object(f"{tmp_path}/model.py:net", "train.model"))

    import torch

    kept = torch.nn.Bilinear.reset_parameters
    try:
        one = found(1)
        assert one != found(2)
        assert one == found(1, **{"deep/inner.py": "K = 2\n"})
        assert one != found(1, **{"deep/inner.py": "import sys\nsys.k = 2\n"})
    finally:
        torch.nn.Bilinear.reset_parameters = kept
        vars(sys).pop("k", None)
