"""The fingerprint of a user's code changes with everything that decides what it computes, and with nothing else.

Every case is a module with a function ``make``, in two versions. All modules of one version are fingerprinted in one
process, each version in a folder and a process of its own, so that the comparison is that of two runs.
"""

from __future__ import annotations

import json
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from raysel.core.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[2]

# NEW is 2 in the first version and 30 in the second. Files after the first are the modules that it imports.
CHANGED = {
    "body": "def f(x): return x * NEW\ndef make(): return f",
    "an operator": "def f(x): return x SIGN 2\ndef make(): return f",
    "closure": """
        def outer(k):
            def f(x): return x * k
            return f
        def make(): return outer(NEW)
        """,
    "closure over a function": """
        def outer(g):
            def f(x): return g(x)
            return f
        def double(x): return x * NEW
        def make(): return outer(double)
        """,
    "default argument": "def f(x, k=NEW): return x * k\ndef make(): return f",
    "default computed": "K = NEW\ndef f(x, k=K): return x * k\ndef make(): return f",
    "keyword-only default": "def f(x, *, k=NEW): return x * k\ndef make(): return f",
    "global constant": "K = NEW\ndef f(x): return x * K\ndef make(): return f",
    "global read in a comprehension": "K = NEW\ndef f(x): return [K * y for y in x]\ndef make(): return f",
    "global read in a nested function": """
        K = NEW
        def f(x):
            def g(y):
                return y * K
            return g(x)
        def make(): return f
        """,
    "global dict": "K = {'a': [1, {'b': NEW}]}\ndef f(x): return x * K['a'][1]['b']\ndef make(): return f",
    "global set": "K = {'a', 'b', 'NEW'}\ndef f(x): return x in K\ndef make(): return f",
    "global pattern": "import re\nK = re.compile('aNEW')\ndef f(x): return K.match(x)\ndef make(): return f",
    "global enum": """
        import enum
        class Kind(enum.Enum):
            ONE = NEW
        def f(x): return x * Kind.ONE.value
        def make(): return f
        """,
    "global named tuple": """
        from typing import NamedTuple
        class Sizes(NamedTuple):
            height: int = NEW
        K = Sizes()
        def f(x): return x * K.height
        def make(): return f
        """,
    "global array": "import numpy as np\nK = np.array([1.0, NEW])\ndef f(x): return x * K\ndef make(): return f",
    "one element of a large array": """
        import numpy as np
        K = np.zeros(100_000)
        K[50_000] = NEW
        def f(x): return x * K.sum()
        def make(): return f
        """,
    "strides of an array": """
        import numpy as np
        K = np.arange(60.0)[::NEW][:2]
        def f(x): return x * K
        def make(): return f
        """,
    "dtype of an array": """
        import numpy as np
        K = np.zeros(4, np.int32 if NEW == 2 else np.float32)
        def f(x): return x + K
        def make(): return f
        """,
    "array of objects": """
        import numpy as np
        K = np.array([1, "NEW"], dtype=object)
        def f(x): return K[1]
        def make(): return f
        """,
    "partial argument": """
        import functools
        def f(x, k): return x * k
        def make(): return functools.partial(f, k=NEW)
        """,
    "partial positional argument": """
        import functools
        def f(k, x): return x * k
        def make(): return functools.partial(f, NEW)
        """,
    "partial of a changed function": """
        import functools
        def f(k, x): return x * k * NEW
        def make(): return functools.partial(f, 1)
        """,
    "lambda": "def make(): return lambda x: x * NEW",
    "one of two lambdas in a line": "K = (lambda x: x * 1, lambda x: x * NEW)\ndef make(): return K[1]",
    "bound method": """
        class Emb:
            def __init__(self, k): self.k = k
            def run(self, x): return x * self.k
        def make(): return Emb(NEW).run
        """,
    "attribute of an instance": """
        class Emb:
            def __init__(self, k): self.parts = [{"k": k}]
            def __call__(self, x): return x * self.parts[0]["k"]
        def make(): return Emb(NEW)
        """,
    "attribute in slots": """
        class Emb:
            __slots__ = ("k",)
            def __init__(self, k): self.k = k
            def __call__(self, x): return x * self.k
        def make(): return Emb(NEW)
        """,
    "field of a dataclass": """
        from dataclasses import dataclass
        @dataclass(frozen=True)
        class Emb:
            k: int
            def __call__(self, x): return x * self.k
        def make(): return Emb(NEW)
        """,
    "method of a class": """
        class Emb:
            def __call__(self, x): return self.run(x)
            def run(self, x): return x * NEW
        def make(): return Emb()
        """,
    "attribute of a class": """
        class Emb:
            k = NEW
            def __call__(self, x): return x * self.k
        def make(): return Emb()
        """,
    "class itself": """
        class Emb:
            def __call__(self, x): return x * NEW
        def make(): return Emb
        """,
    "base class": """
        class Root:
            def run(self, x): return x * NEW
        class Base(Root): pass
        class Emb(Base):
            def __call__(self, x): return self.run(x)
        def make(): return Emb()
        """,
    "another base class": """
        class Two:
            def run(self, x): return x
        class Thirty:
            def run(self, x): return -x
        class Emb(Two if NEW == 2 else Thirty):
            def __call__(self, x): return self.run(x)
        def make(): return Emb()
        """,
    "static method, class method and property": """
        class Emb:
            @staticmethod
            def one(x): return x
            @classmethod
            def two(cls, x): return cls.one(x)
            @property
            def k(self): return NEW
            def __call__(self, x): return self.two(x) * self.k
        def make(): return Emb()
        """,
    "class that a function makes": """
        class Helper:
            def run(self, x): return x * NEW
        def f(x): return Helper().run(x)
        def make(): return f
        """,
    "decorated": """
        import functools
        def logged(g):
            @functools.wraps(g)
            def inner(*args): return g(*args)
            return inner
        @logged
        def f(x): return x * NEW
        def make(): return f
        """,
    "decorator": """
        import functools
        def scaled(g):
            @functools.wraps(g)
            def inner(*args): return g(*args) * NEW
            return inner
        @scaled
        def f(x): return x
        def make(): return f
        """,
    "cached": "import functools\n@functools.lru_cache\ndef f(x): return x * NEW\ndef make(): return f",
    "helper that calls a helper": """
        def h(x): return x * NEW
        def g(x): return h(x)
        def f(x): return g(x)
        def make(): return f
        """,
    "function in a global list": """
        def g(x): return x * NEW
        STEPS = [g]
        def f(x): return STEPS[0](x)
        def make(): return f
        """,
    "zero and minus zero": "K = 0.0 if NEW == 2 else -0.0\ndef f(x): return x / K\ndef make(): return f",
    "one and True": "K = 1 if NEW == 2 else True\ndef f(x): return str(K)\ndef make(): return f",
    "a constant 1 and 1.0": "def f(x): return x * FLOAT\ndef make(): return f",
    "a global 1 and 1.0": "K = FLOAT\ndef f(x): return x * K\ndef make(): return f",
    "a function of NumPy": "import numpy as np\ndef f(x): return np.FUNCTION(x)\ndef make(): return f",
    "an alias of a function of NumPy": "from numpy import FUNCTION as g\ndef f(x): return g(x)\ndef make(): return f",
    "attribute of a function": "def f(x): return x * f.k\nf.k = NEW\ndef make(): return f",
    "list in a closure": """
        def outer():
            k = [1]
            def f(x): return x * k[-1]
            k.append(NEW)
            return f
        def make(): return outer()
        """,
    "method replaced later": """
        class Emb:
            def run(self, x): return x
            def __call__(self, x): return self.run(x)
        Emb.run = lambda self, x: x * NEW
        def make(): return Emb()
        """,
    "method of one instance": """
        class Emb:
            def run(self, x): return x
            def __call__(self, x): return self.run(x)
        def make():
            made = Emb()
            made.run = lambda x: x * NEW
            return made
        """,
    "default of a dataclass": """
        from dataclasses import dataclass, field
        @dataclass
        class Emb:
            k: list = field(default_factory=lambda: [NEW])
            def __call__(self, x): return x * self.k[0]
        def make(): return Emb
        """,
    "metaclass": """
        class Meta(type):
            def scale(cls, x): return x * NEW
        class Emb(metaclass=Meta):
            def __call__(self, x): return type(self).scale(x)
        def make(): return Emb()
        """,
    "descriptor": """
        class Scale:
            def __get__(self, made, owner): return NEW
        class Emb:
            k = Scale()
            def __call__(self, x): return x * self.k
        def make(): return Emb()
        """,
    "an object that pickles itself": """
        class Emb:
            def __init__(self, k): self.k = k
            def __reduce__(self): return Emb, (self.k,)
            def __call__(self, x): return x * self.k
        def make(): return Emb(NEW)
        """,
    "item getter": "import operator\ndef make(): return operator.itemgetter(NEW)",
    "vectorised": "import numpy as np\ndef g(x): return x * NEW\ndef make(): return np.vectorize(g)",
    "method of a type": "g = str.lower if NEW == 2 else str.upper\ndef f(x): return g(x)\ndef make(): return f",
    "function of the standard library": "import math\ndef f(x): return math.FUNCTION(x)\ndef make(): return f",
    "bound method of a value": "g = {NEW: 1}.get\ndef f(x): return g(x)\ndef make(): return f",
    "deque, counter and default dict": """
        import collections
        K = [collections.deque([1]), collections.Counter("ab"), collections.defaultdict(int, {"a": NEW})]
        def f(x): return x * K[2]["a"]
        def make(): return f
        """,
    "default of a default dict": """
        import collections
        K = collections.defaultdict(lambda: NEW)
        def f(x): return K[x]
        def make(): return f
        """,
    "date, path and decimal": """
        import datetime, decimal, pathlib
        K = [datetime.date(2020, 1, NEW), pathlib.Path("a"), decimal.Decimal("1.5")]
        def f(x): return K
        def make(): return f
        """,
    "path": "import pathlib\nK = pathlib.Path('NEW')\ndef f(x): return x / K\ndef make(): return f",
    "decimal": "import decimal\nK = decimal.Decimal('NEW')\ndef f(x): return x * K\ndef make(): return f",
    "range, slice, bytes and complex": """
        K = [range(9), slice(1), b"a", 1 + 2j, NEW + 2j]
        def f(x): return K
        def make(): return f
        """,
    "data frame": """
        import pandas as pd
        K = pd.DataFrame({"a": [1, NEW], "b": ["x", "y"]})
        def f(x): return K.loc[x]
        def make(): return f
        """,
    "arrow table": """
        import pyarrow as pa
        K = pa.table({"a": [1, NEW]})
        def f(x): return K
        def make(): return f
        """,
    "fitted estimator": """
        import numpy as np
        from sklearn.preprocessing import StandardScaler
        K = StandardScaler().fit(np.array([[1.0], [NEW]]))
        def f(x): return K.transform(x)
        def make(): return f
        """,
    "setting of an estimator": """
        from sklearn.feature_extraction.text import HashingVectorizer
        def make(): return HashingVectorizer(n_features=NEW).transform
        """,
    "sparse matrix": """
        import scipy.sparse
        K = scipy.sparse.csr_matrix([[1.0, 0.0], [0.0, NEW]])
        def f(x): return K @ x
        def make(): return f
        """,
    "masked array": """
        import numpy as np
        K = np.ma.array([1, 2], mask=[False, NEW == 2])
        def f(x): return K.sum()
        def make(): return f
        """,
    "structured array": """
        import numpy as np
        K = np.array([(1, NEW)], dtype=[("a", "i4"), ("b", "i4")])
        def f(x): return K["b"]
        def make(): return f
        """,
    # modules of the user's own
    "imported module": [
        "import near_1\ndef f(x): return near_1.g(x)\ndef make(): return f",
        "near_1.py", "def g(x): return x * NEW",
    ],
    "constant of an imported module": [
        "import near_2 as other\ndef f(x): return x * other.K\ndef make(): return f",
        "near_2.py", "K = NEW",
    ],
    "name from a module": [
        "from near_3 import g\ndef f(x): return g(x)\ndef make(): return f",
        "near_3.py", "def g(x): return x * NEW",
    ],
    "constant from a module": [
        "from near_4 import K\ndef f(x): return x * K\ndef make(): return f",
        "near_4.py", "K = NEW",
    ],
    "two modules away": [
        "from near_5 import g\ndef f(x): return g(x)\ndef make(): return f",
        "near_5.py", "import near_6\ndef g(x): return near_6.h(x)",
        "near_6.py", "from near_7 import K\ndef h(x): return x * K",
        "near_7.py", "K = NEW",
    ],
    "import in the body": [
        "def f(x):\n    from near_8 import g\n    return g(x)\ndef make(): return f",
        "near_8.py", "def g(x): return x * NEW",
    ],
    "module of a package": [
        "from pack_1.inner import g\ndef f(x): return g(x)\ndef make(): return f",
        "pack_1/__init__.py", "",
        "pack_1/inner.py", "from .deep import h\ndef g(x): return h(x)",
        "pack_1/deep.py", "def h(x): return x * NEW",
    ],
    "dotted module of a package": [
        "import pack_2.inner\ndef f(x): return pack_2.inner.g(x)\ndef make(): return f",
        "pack_2/__init__.py", "",
        "pack_2/inner.py", "def g(x): return x * NEW",
    ],
    "imported object itself": [
        "from near_9 import g as make_it\ndef make(): return make_it",
        "near_9.py", "def g(x): return x * NEW",
    ],
    "lambda that calls a module": [
        "import near_10\ndef make(): return lambda x: near_10.g(x)",
        "near_10.py", "def g(x): return h(x)\nh = lambda x: x * NEW",
    ],
    "base class in a module": [
        "import near_11\nclass Emb(near_11.Base):\n    def __call__(self, x): return self.run(x)\ndef make(): return Emb()",
        "near_11.py", "class Base:\n    def run(self, x): return x * NEW",
    ],
    "instance in a module": [
        "from near_12 import made\ndef f(x): return made.run(x)\ndef make(): return f",
        "near_12.py", "class C:\n    def __init__(self, k): self.k = k\n    def run(self, x): return x * self.k\nmade = C(NEW)",
    ],
    "everything from a module": [
        "from near_13 import *\ndef f(x): return g(x)\ndef make(): return f",
        "near_13.py", "def g(x): return x * NEW",
    ],
    "attribute of a package": [
        "import pack_3\ndef f(x): return pack_3.inner.K * x\ndef make(): return f",
        "pack_3/__init__.py", "from . import inner",
        "pack_3/inner.py", "K = NEW",
    ],
    "name that a package passes on": [
        "import pack_4\ndef f(x): return pack_4.g(x)\ndef make(): return f",
        "pack_4/__init__.py", "from .inner import g",
        "pack_4/inner.py", "def g(x): return x * NEW",
    ],
    "module under a global name": [
        "import near_14\nTOOLS = {'m': near_14}\ndef f(x): return TOOLS['m'].g(x)\ndef make(): return f",
        "near_14.py", "def g(x): return x * NEW",
    ],
    "module under a local name": [
        "import near_15\ndef f(x):\n    m = near_15\n    return m.g(x)\ndef make(): return f",
        "near_15.py", "def g(x): return x * NEW",
    ],
    "attribute by its name": [
        "import near_16\ndef f(x): return getattr(near_16, 'g')(x)\ndef make(): return f",
        "near_16.py", "def g(x): return x * NEW",
    ],
    # what modules of the user's own do when they are imported
    "module imported for its effect": [
        "import torch\nimport patch_1\ndef f(x): return torch.nn.Bilinear(x, x, 2)\ndef make(): return f",
        "patch_1.py", "import torch\ndef init(self): self.k = NEW\ntorch.nn.Bilinear.reset_parameters = init",
    ],
    "effect two modules away": [
        "import patch_2\ndef f(x): return x\ndef make(): return f",
        "patch_2.py", "try:\n    import patch_3\nexcept ImportError:\n    pass",
        "patch_3.py", "import numpy as np\nnp.set_printoptions(precision=NEW)",
    ],
    "effect of a package": [
        "from pack_5.inner import g\ndef f(x): return g(x)\ndef make(): return f",
        "pack_5/__init__.py", "import numpy as np\nnp.set_printoptions(precision=NEW)",
        "pack_5/inner.py", "def g(x): return x",
    ],
    "relative import for its effect": [
        "from pack_6.inner import g\ndef f(x): return g(x)\ndef make(): return f",
        "pack_6/__init__.py", "", "pack_6/inner.py", "from . import patch\ndef g(x): return x",
        "pack_6/patch.py", "import numpy as np\nnp.set_printoptions(precision=NEW)",
    ],
    "effect of the module of a constant": [
        "from near_17 import K\ndef f(x): return x * K\ndef make(): return f",
        "near_17.py", "import numpy as np\nnp.set_printoptions(precision=NEW)\nK = 1",
    ],
    "effect of the module of a class": [
        "def make():\n    from near_18 import E\n    return E()",
        "near_18.py", "import numpy as np\nnp.set_printoptions(precision=NEW)\nclass E: pass",
    ],
    "effect of a module in a list": [
        "import near_19\nK = [near_19]\ndef f(x): return K\ndef make(): return f",
        "near_19.py", "import patch_6", "patch_6.py", "import numpy as np\nnp.set_printoptions(precision=NEW)",
    ],
    "import in the body for its effect": [
        "def f(x):\n    import patch_4\n    return x\ndef make(): return f",
        "patch_4.py", "import numpy as np\nnp.set_printoptions(precision=NEW)",
    ],
    "value that an effect reads": """
        import numpy as np
        K = NEW
        np.set_printoptions(precision=K)
        def f(x): return x
        def make(): return f
        """,
    "loop that acts": """
        import colorsys
        for name in ("one", "two"):
            setattr(colorsys, name, NEW)
        def f(x): return x
        def make(): return f
        """,
    "condition of what acts": """
        import colorsys
        if NEW > 1:
            colorsys.three = 1
        def f(x): return x
        def make(): return f
        """,
    "what is assigned to _ for its effect": """
        import numpy as np
        _ = np.set_printoptions(precision=NEW)
        def f(x): return x
        def make(): return f
        """,
    "else of a main block": """
        import colorsys
        if __name__ == "__main__":
            pass
        else:
            colorsys.four = NEW
        def f(x): return x
        def make(): return f
        """,
    "search path": "import sys\nsys.path.append('/NEW')\ndef f(x): return x\ndef make(): return f",
    # names that are found at run time
    "name in globals": "def act(x): return x * NEW\ndef f(x): return globals()['act'](x)\ndef make(): return f",
    "name in vars": "def act(x): return x * NEW\ndef f(x): return vars(x), act_0\nact_0 = 1\ndef make(): return f",
    "evaluated name": "K = NEW\ndef f(x): return eval('K')\ndef make(): return f",
    "executed name": "K = NEW\ndef f(x): exec('print(K)')\ndef make(): return f",
    "attribute of this module": """
        import sys
        def act(x): return x * NEW
        def f(x): return getattr(sys.modules[__name__], "act")(x)
        def make(): return f
        """,
    "modules under another name": """
        from sys import modules as held
        def act(x): return x * NEW
        def f(x): return held[__name__].act(x)
        def make(): return f
        """,
    "module of a computed name": """
        import importlib
        NAMES = {1: "math", 2: "NEW"}
        def choose(): return NAMES[1]
        def f(x): return importlib.import_module(x)
        def make(): return f
        """,
    "subclasses": """
        class Base: pass
        class Emb(Base): k = NEW
        def f(x): return Base.__subclasses__()[0].k
        def make(): return f
        """,
    "name in globals from a neighbour": [
        "from near_21 import g\ndef f(x): return globals()['g'](x)\ndef make(): return f",
        "near_21.py", "def g(x): return x * NEW",
    ],
    "docstring that is read": "def f(x):\n    'It is NEW.'\n    return f.__doc__\ndef make(): return f",
    "docstring of another module that is read": [
        "import near_22\ndef f(x): return near_22.E.__doc__\ndef make(): return f",
        "near_22.py", "class E:\n    'It is NEW.'",
    ],
    "source that is read": """
        import inspect
        def g(x):
            "It is NEW."
        def f(x): return inspect.getsource(g)
        def make(): return f
        """,
    # environment variables; the value of this one is that of NEW
    "variable by its name": "import os\ndef f(x): return os.environ['RAYSEL_CASE']\ndef make(): return f",
    "variable with a default": "import os\ndef f(x): return os.environ.get('RAYSEL_CASE', 1)\ndef make(): return f",
    "variable by getenv": "import os\ndef f(x): return os.getenv('RAYSEL_CASE')\ndef make(): return f",
    "variable of an imported mapping": (
        "from os import environ as e\ndef f(x): return e['RAYSEL_CASE']\ndef make(): return f"
    ),
    "variable in a nested function": (
        "def f(x):\n    import os\n    return [lambda: os.getenv('RAYSEL_CASE')]\ndef make(): return f"
    ),
    # networks
    "forward of a network": [
        "from net_1 import Net\ndef make(): return Net(2, 1.0)", "net_1.py", "NETWORK * NEW",
    ],
    "weight of a network": ["from net_2 import Net\ndef make(): return Net(NEW, 1.0)", "net_2.py", "NETWORK"],
    "attribute of a network": ["from net_3 import Net\ndef make(): return Net(2, NEW)", "net_3.py", "NETWORK * self.k"],
    "buffer of a network": [
        "import torch\nfrom net_4 import Net\ndef make():\n    net = Net(2, 1.0)\n"
        "    net.register_buffer('b', torch.tensor([NEW]))\n    return net",
        "net_4.py", "NETWORK * self.b",
    ],
    "buffer that is not saved": [
        "import torch\nfrom net_5 import Net\ndef make():\n    net = Net(2, 1.0)\n"
        "    net.register_buffer('b', torch.tensor([NEW]), persistent=False)\n    return net",
        "net_5.py", "NETWORK * self.b",
    ],
    "module inside a network": [
        "import torch\nfrom net_6 import Net\ndef make(): return torch.nn.Sequential(torch.nn.ReLU(), Net(2, 1.0))",
        "net_6.py", "NETWORK * NEW",
    ],
    "function that calls a network": [
        "import torch\nfrom net_7 import Net\nnet = Net(NEW, 1.0)\ndef f(x): return net(torch.as_tensor(x)).numpy()\n"
        "def make(): return f",
        "net_7.py", "NETWORK",
    ],
    "setting of a torch module": "import torch\ndef make(): return torch.nn.Sequential(torch.nn.LeakyReLU(1 / NEW))",
    "dtype of a network": [
        "import torch\nfrom net_8 import Net\ndef make(): return Net(2, 1.0).to(torch.TYPE)", "net_8.py", "NETWORK",
    ],
    "forward replaced on one network": [
        "from net_9 import Net\ndef make():\n    net = Net(2, 1.0)\n    net.forward = lambda x: x * NEW\n    return net",
        "net_9.py", "NETWORK",
    ],
    "hook of a network": [
        "from net_10 import Net\ndef make():\n    net = Net(2, 1.0)\n"
        "    net.register_forward_hook(lambda net, args, out: out * NEW)\n    return net",
        "net_10.py", "NETWORK",
    ],
    "function that a network's module calls": [
        "from net_11 import Net\ndef make(): return Net(2, 1.0)",
        "net_11.py", "from net_12 import scale\nNETWORK * scale(x)",
        "net_12.py", "def scale(x): return NEW",
    ],
    "training mode": "import torch\ndef make(): return torch.nn.Dropout(0.5).train(NEW == 2)",
    "tensor": "import torch\nK = torch.tensor([1.0, NEW])\ndef f(x): return x * K\ndef make(): return f",
}  # fmt: skip

NETWORK = """
import torch
class Net(torch.nn.Module):
    def __init__(self, weight, k):
        super().__init__()
        self.k, self.fc = k, torch.nn.Linear(4, 2)
        torch.nn.init.constant_(self.fc.weight, weight), torch.nn.init.zeros_(self.fc.bias)
    def forward(self, x): return self.fc(x.float())"""

# A pair of versions that compute the same.
PLAIN = "def f(x, k=3):\n    return x * k\ndef make(): return f"
CLASS = "class Emb:\n    def __init__(self): self.k = 3\n    def __call__(self, x): return x * self.k\ndef make(): return Emb()"
UNCHANGED = {
    "same": (PLAIN, PLAIN),
    "comment above": (PLAIN, "# a comment\n\n\n" + PLAIN),
    "docstring of the module": (PLAIN, '"""What this module is for."""\n' + PLAIN),
    "comment inside": (PLAIN, PLAIN.replace("    return", "    # a comment\n    return  ")),
    "blank line inside": (PLAIN, PLAIN.replace("    return", "\n    return")),
    "another function": (PLAIN, "import os\ndef other(y): return os.fspath(y)\nOTHER = 7\n" + PLAIN),
    "class": (CLASS, CLASS),
    "comment above a class": (CLASS, "# a comment\n\n" + CLASS),
    "comment in a class": (CLASS, CLASS.replace("    def __call__", "\n    # a comment\n    def __call__")),
    "lambda moved": ("def make(): return lambda x: x * 2", "\n\n# here\ndef make(): return lambda x: x * 2"),
    "a set of text": ("K = {'the', 'and', 'of', 'to'}\ndef f(x): return x in K\ndef make(): return f",) * 2,
    "a set of text in another order": (
        "K = {'the', 'and', 'of', 'to'}\ndef f(x): return x in K\ndef make(): return f",
        "K = {'to', 'of', 'and', 'the'}\ndef f(x): return x in K\ndef make(): return f",
    ),
    "a set of mixed types": ("K = {'the', 1, None, (2, 'b')}\ndef f(x): return x in K\ndef make(): return f",) * 2,
    "a set in the code": ("def f(x): return x in {'the', 'and', 'of', 'to'}\ndef make(): return f",) * 2,
    "a set in an instance": (
        "class E:\n    def __init__(self): self.s = frozenset('the and of to'.split())\n    def __call__(self, x): return x\n"
        "def make(): return E()",
    ) * 2,
    "recursive": ("def f(x): return x and f(x - 1)\ndef make(): return f",) * 2,
    "mutually recursive": ("def f(x): return x and g(x)\ndef g(x): return f(x - 1)\ndef make(): return f",) * 2,
    "super": (
        "class A:\n    def run(self): return 1\nclass B(A):\n    def run(self): return super().run()\ndef make(): return B()",
    ) * 2,
    "an object that holds itself": (
        "class E:\n    def __init__(self): self.me = self\n    def __call__(self, x): return self.me is self\n"
        "def make(): return E()",
    ) * 2,
    "a list that holds itself": ("K = [1]\nK.append(K)\ndef f(x): return K\ndef make(): return f",) * 2,
    "an instance without attributes": ("class E: pass\nK = E()\ndef f(x): return K\ndef make(): return f",) * 2,
    "cached, called before": (
        "import functools\n@functools.lru_cache\ndef f(x): return x\ndef make(): return f",
        "import functools\n@functools.lru_cache\ndef f(x): return x\nf(1)\ndef make(): return f",
    ),
    "method cached, called before": (
        "import functools\nclass E:\n    @functools.cached_property\n    def k(self): return 3\n"
        "    def __call__(self, x): return x * self.k\ndef make(): return E().__call__",
    ) * 2,
    "logger": ("import logging\nlog = logging.getLogger(__name__)\ndef f(x): log.info('x')\ndef make(): return f",) * 2,
    "function of C": ("g = str.lower\nimport math\ndef f(x): return g(x), math.sin(1), print\ndef make(): return f",) * 2,
    "torch types": (
        "import torch\nK = (torch.float32, torch.device('cpu'))\ndef f(x): return K\ndef make(): return f",
    ) * 2,
    "sets in a class, a default and a dict": (
        "class E:\n    s = set('abcdef')\n    def __call__(self, x, y=frozenset('uvwxyz')): return x in self.s\n"
        "K = {'k': {('a', 1), ('b', 2), ('c', 3)}}\ndef f(x): return E()(x), K\ndef make(): return f",
    ) * 2,
    "annotations": (
        "from __future__ import annotations\nimport numpy as np\ndef f(x: np.ndarray) -> list[int]: return x\n"
        "def make(): return f",
    ) * 2,
    "class in a function": (
        "def outer():\n    class E:\n        def __call__(self, x): return x\n    return E()\ndef make(): return outer()",
    ) * 2,
    "fitted estimator": (
        "import numpy as np\nfrom sklearn.preprocessing import StandardScaler\n"
        "K = StandardScaler().fit(np.array([[1.0], [3.0]]))\ndef f(x): return K.transform(x)\ndef make(): return f",
    ) * 2,
    "data frame": (
        "import pandas as pd\nK = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})\ndef f(x): return K\ndef make(): return f",
    ) * 2,
    "array of objects": (
        "import numpy as np\nK = np.array([1, 'two', None], dtype=object)\ndef f(x): return K\ndef make(): return f",
    ) * 2,
    "array that is a view": (
        "import numpy as np\nK = np.arange(10)[2:6]\ndef f(x): return K\ndef make(): return f",
        "import numpy as np\nK = np.array([2, 3, 4, 5])\ndef f(x): return K\ndef make(): return f",
    ),
    "a network moved below a comment": (
        ["from net_21 import Net\ndef make(): return Net(2, 1.0)", "net_21.py", "NETWORK"],
        ["from net_21 import Net\ndef make(): return Net(2, 1.0)", "net_21.py", "# moved\nNETWORK"],
    ),
    "decorated class of data": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass E:\n    k: int = 3\n"
        "    def __call__(self, x): return x\ndef make(): return E()",
    ) * 2,
    "a network": ("from net_20 import Net\ndef make(): return Net(2, 1.0)",) * 2,
    "global that is not read": (
        "K = 1\ndef f(x): return x\ndef g(x): return K\ndef make(): return f",
        "K = 2\ndef f(x): return x\ndef g(x): return K\ndef make(): return f",
    ),
    "a function of NumPy": ("import numpy as np\ndef f(x): return np.asarray(x, np.float32)\ndef make(): return f",) * 2,
    "generator and comprehension": (
        "def f(x): return sum(y for y in x) + len([lambda: z for z in x])\ndef make(): return f",
    ) * 2,
    "comment above a helper in a module": (
        ["from near_20 import g\ndef f(x): return g(x)\ndef make(): return f", "near_20.py", "def g(x): return x"],
        ["from near_20 import g\ndef f(x): return g(x)\ndef make(): return f", "near_20.py", "# a\n\ndef g(x): return x"],
    ),
    "comment and docstring of what acts": (
        "import colorsys\ndef g():\n    return 1\nif g():\n    colorsys.five = g\ndef f(x): return x\ndef make(): return f",
        "# a\nimport colorsys\ndef g():\n    'Text.'\n    return 1\nif g():  # a\n\n    colorsys.five = (\n        g)\n"
        "def f(x): return x\ndef make(): return f",
    ),
    "main block and names for type checkers": (
        "import typing\ndef f(x): return x\ndef make(): return f",
        "import typing\nif typing.TYPE_CHECKING:\n    import no_such\n    print(1)\ndef f(x): return x\ndef make(): return f\n"
        "if __name__ == '__main__':\n    import no_such\n    print(f(1))",
    ),
    "names of an imported module that are not read": (
        ["from near_23 import g\ndef f(x): return g(x)\ndef make(): return f", "near_23.py", "def g(x): return x"],
        ["from near_23 import g\ndef f(x): return g(x)\ndef make(): return f", "near_23.py",
         "import os\ntry:\n    import no_such\nexcept ImportError:\n    no_such = None\nK: int = 1\nK += 1\n"
         "with open(os.devnull) as file:\n    TEXT = file.read()\ndef g(x): return x\ndef h(x): return K\n"
         "class E:\n    k = 1\nE.k, (h.k, *E.rest) = 2, (3, 4)"],
    ),
    "folder on the search path": (
        "import os, pathlib, sys\nROOT = os.path.dirname(os.path.abspath(__file__))\nsys.path.append(ROOT)\n"
        "UP = pathlib.Path(__file__).resolve().parents[1]\nsys.path.append(str(UP))\ndef f(x): return x\n"
        "def make(): return f",
    ) * 2,
    "lock that importing takes": (
        "import threading\nlock = threading.Lock()\nlock.acquire()\ndef f(x): return x\ndef make(): return f",
    ) * 2,
    "methods called eval and globals": (
        "import torch\ndef f(x): return torch.nn.Identity().eval(), x.globals(), x.exec\ndef make(): return f",
        "import torch\ndef f(x): return torch.nn.Identity().eval(), x.globals(), x.exec\ndef make(): return f\nK = 1",
    ),
    "a function of one's own called eval": (
        "def eval(x): return x\ndef f(x): return eval(x)\ndef make(): return f",
        "def eval(x): return x\ndef f(x): return eval(x)\ndef make(): return f\nK = 1",
    ),
    "docstring that is not read": (
        "def f(x):\n    return globals()['f']\ndef make(): return f",
        "def f(x):\n    'Text.'\n    return globals()['f']\ndef make(): return f",
    ),
    "variable of a computed name": (
        "import os\nNAME = 'RAYSEL_' + 'CASE'\ndef f(x): return os.environ.get(NAME)\ndef make(): return f",
    ) * 2,
    "another use of the environment": (
        "import os\ndef f(x): return dict(os.environ), os.path.join('RAYSEL_CASE')\ndef make(): return f",
    ) * 2,
}  # fmt: skip


def _version(text: str, new: bool) -> str:
    text = dedent(text).replace("NETWORK", NETWORK)
    for name, (old, other) in {
        "NEW": ("2", "30"),
        "FLOAT": ("1", "1.0"),
        "FUNCTION": ("sin", "cos"),
        "TYPE": ("float32", "float64"),
        "SIGN": ("+", "-"),
    }.items():
        text = re.sub(rf"\b{name}\b|(?<=a){name}\b", other if new else old, text)
    return text


def _module(name: str) -> str:
    return "case_" + re.sub(r"\W+", "_", name)


def _write(folder: Path, name: str, parts: str | list[str], new: bool) -> None:
    first, *others = [parts] if isinstance(parts, str) else parts
    for file, text in [(_module(name) + ".py", first), *zip(others[::2], others[1::2], strict=True)]:
        (folder / file).parent.mkdir(exist_ok=True, parents=True)
        (folder / file).write_text(_version(text, new) + "\n")


def _fingerprints(script: Path, folder: Path, hash_seed: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": hash_seed,
        "RAYSEL_CASE": hash_seed,
    }
    return subprocess.Popen(
        [sys.executable, script, folder], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """The fingerprints of both versions, each computed by a process with a hash seed of its own."""
    started = []
    script = Path(__file__).with_name("fingerprints.py")
    for new in (False, True):
        folder = tmp_path_factory.mktemp(f"version_{int(new)}")
        for name, parts in CHANGED.items():
            _write(folder, "changed " + name, parts, new)
        for name, pair in UNCHANGED.items():
            _write(folder, "same " + name, pair[new], new)
        (folder / "net_20.py").write_text(NETWORK + "\n")
        moved = folder / "script.py"
        text = script.read_text()
        if new:  # what a script does besides its functions does not count
            text = "# moved\n\n" + text.replace("STOP = ", "json.loads('1')\nSTOP = ")
        moved.write_text(text)
        started.append(_fingerprints(moved, folder, str(new + 1)))
    found = [one.communicate(timeout=240)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0]
    return [json.loads(text) for text in found]


@pytest.mark.parametrize("name", CHANGED)
def test_the_fingerprint_changes_with(versions, name):
    before, after = (version[_module("changed " + name)] for version in versions)
    assert "Error" not in before + after
    assert before != after


@pytest.mark.parametrize("name", UNCHANGED)
def test_the_fingerprint_stays_with(versions, name):
    before, after = (version[_module("same " + name)] for version in versions)
    assert "Error" not in before + after
    assert before == after


@pytest.mark.parametrize("name", ["function", "class"])
def test_the_fingerprint_stays_for_a_script_whose_lines_moved(versions, name):
    before, after = (version["script: " + name] for version in versions)
    assert before == after


def _cell(text: str, name: str, kept: bool):
    """``f`` of a notebook's cell, whose text IPython keeps where tracebacks find it; or of ``python -c``."""
    linecache.cache.pop(name, None)
    if kept:
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace = {"__name__": "__main__"}
    exec(compile(text, name, "exec", dont_inherit=True), namespace)
    return namespace["f"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_cell_that_is_run_again_has_the_fingerprint_and_a_changed_one_another(kept):
    text = "K = 2\ndef g(x): return x * K\nf = lambda x: g(x)\n"
    first = fingerprint(_cell(text, "<ipython-input-1-aa>", kept))
    assert first == fingerprint(_cell("# again\n" + text, "<ipython-input-2-bb>", kept))
    assert first != fingerprint(_cell(text.replace("2", "3"), "<ipython-input-3-cc>", kept))
    assert first != fingerprint(_cell(text.replace("x * K", "x + K"), "<ipython-input-3-cc>", kept))


@pytest.mark.parametrize("kept", [True, False])
def test_a_cell_that_finds_names_at_run_time_counts_with_the_names_of_the_notebook(kept):
    text = "K = 2\ndef g(x): return x * 4\ndef f(x): return eval('K * g(x)')\n_i1 = 5\n"
    first = fingerprint(_cell(text, "<ipython-input-5-ee>", kept))
    assert first == fingerprint(_cell("# again\n" + text.replace("5", "6"), "<ipython-input-6-ff>", kept))
    assert first != fingerprint(_cell(text.replace("2", "3"), "<ipython-input-7-gg>", kept))
    assert first != fingerprint(_cell(text.replace("x * 4", "x + 4"), "<ipython-input-8-hh>", kept))


def test_a_value_that_is_assigned_later_counts():
    """A function reads its globals when it runs, so its fingerprint is that of the moment."""
    f = _cell("K = 2\ndef f(x): return x * K\n", "<ipython-input-4-dd>", True)
    before = fingerprint(f)
    f.__globals__["K"] = 3
    assert fingerprint(f) != before
    f.__globals__["K"] = 2
    assert fingerprint(f) == before
