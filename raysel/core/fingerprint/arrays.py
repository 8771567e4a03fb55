"""Arrays, tables, tensors and networks by content, as trees for the graph of :mod:`raysel.core.fingerprint.objects`."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np

from raysel.core.fingerprint.names import attributes_of, dtype_text
from raysel.core.fingerprint.trees import Tree, content_digest, pack, text_bytes

if TYPE_CHECKING:
    from raysel.core.fingerprint.objects import Graph, Path


def array(graph: Graph, value: Any, path: Path) -> Tree | None:
    """Values of NumPy, torch, pandas and Arrow by content."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        extra = [graph.tree(np.ma.getmaskarray(value), path)] if isinstance(value, np.ma.MaskedArray) else []
        plain = (
            value.filled(0)
            if isinstance(value, np.ma.MaskedArray) and value.dtype != object
            else np.asarray(value)
        )
        name = "ndarray" if kind is np.memmap else kind.__name__
        head = [text_bytes(name), text_bytes(dtype_text(value.dtype)), graph.tree(value.shape, path), *extra]
        if value.dtype.hasobject or value.dtype.kind == "T":
            return pack(b"array", [*head, *graph.each(plain.ravel().tolist(), path)])
        return pack(b"array", [*head, content_digest(np.ascontiguousarray(plain))])
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return pack(b"scalar", [text_bytes(dtype_text(value.dtype)), value.tobytes()])
    if isinstance(value, np.dtype):
        return text_bytes(f"dtype {dtype_text(value)}")
    library = kind.__module__.partition(".")[0]
    if (torch := sys.modules.get("torch")) is not None:
        if isinstance(value, torch.Tensor):
            return _tensor(graph, value, path, torch)
        if isinstance(value, torch.nn.Module):
            return _network(graph, value, path, torch)
    if library == "pyarrow":
        return _arrow(graph, value, path)
    if library == "pandas":
        return _pandas(graph, value, path)
    return None


def _tensor(graph: Graph, value: Any, path: Path, torch: types.ModuleType) -> Tree:
    dense = value.detach()
    if dense.is_meta or dense.is_quantized or dense.is_nested:
        raise graph.fail(value, path)
    if dense.layout != torch.strided:
        parts = dense.to_sparse_coo().coalesce()
        return pack(b"sparse", graph.each((tuple(dense.shape), parts.indices(), parts.values()), path))
    plain = dense.resolve_conj().resolve_neg().cpu().contiguous().flatten()
    content = content_digest(plain.view(torch.uint8).numpy()) if plain.numel() else b""
    return pack(b"tensor", [text_bytes(str(dense.dtype)), graph.tree(tuple(dense.shape), path), content])


def _network(graph: Graph, network: Any, path: Path, torch: types.ModuleType) -> Tree:
    """Return a network by its classes, weights, buffers, attributes, hooks, and ordered submodules."""
    if isinstance(network, torch.jit.ScriptModule):
        code = [(name, getattr(part, "code", "")) for name, part in network.named_modules()]
        values = [*network.named_parameters(), *network.named_buffers()]
        return pack(
            b"script",
            [graph.tree(network.training, path), graph.tree(code, path), graph.pairs(values, path)],
        )
    original = network.__dict__.get("_modules", {}).get("_orig_mod")
    if original is not None:  # torch.compile
        return graph.tree(original, path)
    try:
        state = network.__getstate__() if hasattr(network, "__getstate__") else network.__dict__
    except RuntimeError:  # a parametrized network refuses to be pickled
        state = network.__dict__
    if not isinstance(state, dict):
        return graph.instance(network, path)
    rest, parts = {}, [graph.tree(type(network), (path, "its class"))]
    for name, value in state.items():
        if name == "_modules":
            parts.append(graph.pairs(value.items(), path, ordered=True))
        elif name.endswith("hooks") and isinstance(value, dict):  # under numbers that count up in a process
            parts += [text_bytes(name), *graph.each(value.values(), path, f"{name}")]
        elif "_hooks_" not in name and name not in ("_compiled_call_impl", "_is_torch_compile"):
            rest[name] = value
    return pack(b"network", [*parts, graph.attributes(attributes_of(network, rest), path)])


def _arrow(graph: Graph, value: Any, path: Path) -> Tree | None:
    import pyarrow as pa

    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Table):
        columns = [
            pack(b"column", [text_bytes(name), _arrow(graph, value[i], path)])
            for i, name in enumerate(value.column_names)
        ]
        return pack(b"table", columns)
    if isinstance(value, pa.Array):
        value = pa.chunked_array([value])
    if isinstance(value, pa.ChunkedArray):
        parts = [text_bytes(str(value.type))]
        if isinstance(value.type, pa.BaseExtensionType):
            value = pa.chunked_array([c.storage for c in value.chunks], value.type.storage_type)
        if pa.types.is_dictionary(value.type):
            value = value.cast(value.type.value_type)
        if value.null_count:
            parts.append(content_digest(np.ascontiguousarray(value.is_null().to_numpy(zero_copy_only=False))))
            value = value.drop_null()
        table = pa.table({"": value}).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            for batch in table.to_batches():
                stream.write_batch(batch)
        return pack(b"values", [*parts, content_digest(sink.getvalue())])
    if isinstance(value, (pa.DataType, pa.Field, pa.Schema)):
        return text_bytes(f"{type(value).__name__} {value}")
    if isinstance(value, pa.Scalar):
        return pack(b"scalar", [text_bytes(str(value.type)), graph.tree(value.as_py(), path)])
    if isinstance(value, pa.Buffer):
        return pack(b"buffer", [content_digest(value)])
    return None


def _pandas(graph: Graph, value: Any, path: Path) -> Tree | None:
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        columns = [graph.tree(value.iloc[:, i], path) for i in range(value.shape[1])]
        return pack(b"frame", [graph.tree(value.columns, path), graph.tree(value.index, path), *columns])
    if isinstance(value, pd.Series):
        return pack(
            b"series",
            [graph.tree(value.name, path), graph.tree(value.index, path), graph.tree(value.array, path)],
        )
    if isinstance(value, pd.MultiIndex):
        return pack(b"index", [graph.tree(list(value.names), path), *graph.each(value.tolist(), path)])
    if isinstance(value, pd.RangeIndex):  # equal to an index of the same numbers
        return pack(
            b"index",
            [graph.tree(value.name, path), text_bytes(str(value.dtype)), graph.tree(value.to_numpy(), path)],
        )
    if isinstance(value, pd.Index):
        return pack(
            b"index",
            [
                graph.tree(value.name, path),
                text_bytes(str(value.dtype)),
                graph.tree(value.array if value.dtype.kind == "O" else value.to_numpy(), path),
            ],
        )
    if isinstance(value, pd.Categorical):
        return pack(b"category", graph.each((value.codes, value.categories, value.ordered), path))
    if isinstance(value, pd.api.extensions.ExtensionArray):
        plain: Any
        try:
            plain = value.to_numpy()
        except (TypeError, ValueError):
            plain = value.astype(object)
        return pack(b"values", [text_bytes(str(value.dtype)), graph.tree(np.asarray(plain), path)])
    if value is pd.NA or value is pd.NaT:
        return text_bytes(f"pandas {value}")
    return None
