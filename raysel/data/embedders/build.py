"""Embedders by name: made, and fitted on rows if they learn from data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.cluster.code import load_object
from raysel.data.decode import Takes, decode, is_bytes, is_text
from raysel.data.embedders.embedder import FITTED_ON, Embedder, FunctionEmbedder, Learner
from raysel.data.identity import check_dataset
from raysel.data.row_index import ID
from raysel.data.vectors import is_list, is_tensor
from raysel.errors import ConfigError, DataError, shown
from raysel.registry import EMBEDDERS


def fit_embedder(
    spec: str | Embedder | Learner,
    dataset: Dataset | None = None,
    *,
    column: str | Sequence[str] | None = None,
) -> Embedder:
    """Make the embedder that ``spec`` names, and fit it on ``dataset`` if it learns from data.

    Use one fitted embedder for pool and target: vectors of two embedders that were fitted separately cannot be compared.

    Parameters
    ----------
    spec : str or object
        One of

        - ``column``: the column holds vectors already;
        - ``pca:N``: N principal components of all rows, the same bits for any number of blocks;
        - ``hash:N``: words and pairs of words of text, hashed into N elements;
        - ``table``: numbers scaled to 0..1 and hashed categories of the columns;
        - ``sentence-transformers:NAME_OR_PATH``, ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME``:
          pretrained networks, from local weights;
        - ``torch:file.py:factory``, ``torch:module:factory``: a network of your own; with ``:penultimate``
          appended, the input of its last linear layer;
        - ``file.py:Name``, ``package.module:Name``: an embedder of your own, whose code is run;
        - an embedder object, which is fitted if it has a method ``fit(dataset, columns)``.
    dataset : ray.data.Dataset, optional
        Rows to learn from.
    column : str or list of str, optional
        Columns to learn from.

    Returns
    -------
    Embedder
        A callable with a name, which `raysel.embed` applies.

    Raises
    ------
    ConfigError
        If the name is unknown or the model is not available.
    DataError
        If the column has no usable values.

    Examples
    --------
    >>> embedder = raysel.fit_embedder("pca:2", rows, column="embedding")
    >>> embedder.name
    'pca:2'
    """
    made = make_embedder(spec) if isinstance(spec, str) else spec
    check_object(made)
    if hasattr(made, "fit"):
        name = spec if isinstance(spec, str) else getattr(made, "name", type(made).__name__)
        return as_embedder(made.fit(*_fitted_on(made, name, dataset, column)))
    return as_embedder(made)


def make_embedder(spec: str, where: str = "embedder") -> Any:
    """Return the embedder that ``spec`` names, not fitted yet; its ConfigErrors begin with ``where``."""
    found = named_embedder(spec, where)
    if found is None:
        found = EMBEDDERS.find(spec, where, load_object)
        found = found() if isinstance(found, type) else found
    return found.open() if hasattr(found, "open") else found


def named_embedder(spec: str, where: str = "embedder") -> Any:
    """Return what the registry makes of ``spec``: the name is checked, nothing of raysel's own is loaded yet.

    None if the name is not in the registry.
    """
    kind, _, argument = spec.partition(":")
    return EMBEDDERS.find(kind, where, load_object)(spec, argument) if kind in EMBEDDERS.names() else None


def as_embedder(embedder: Embedder | Callable[[Any], np.ndarray]) -> Embedder:
    """Return ``embedder``; a plain function becomes an embedder with the function's name."""
    if isinstance(getattr(embedder, "name", None), str):
        return embedder  # type: ignore[return-value]
    check_object(embedder)
    if not callable(embedder):
        raise ConfigError(
            f"embedder: {shown(embedder)} is neither the name of an embedder nor a function of rows; the names are "
            f"{', '.join(EMBEDDERS.names())}."
        )
    return FunctionEmbedder(getattr(embedder, "__qualname__", type(embedder).__name__), embedder)


def check_object(embedder: object) -> None:
    """Raise ConfigError for objects of other libraries that are called or fitted in another way than embedders."""
    kind = type(embedder)
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "torch" in packages and not isinstance(getattr(embedder, "name", None), str):
        raise ConfigError(
            f"embedder: The network {kind.__name__} takes tensors, but an embedder is called with arrays; write torch:FILE.py:FACTORY "
            "or torch:MODULE:FACTORY, where FACTORY() returns the network."
        )
    if "sklearn" in packages:
        raise ConfigError(
            f"embedder: A {kind.__name__} of scikit-learn is not an embedder; fit it, and give a function of rows, such as "
            "lambda rows: model.transform(rows).astype('float32')."
        )


def _fitted_on(
    made: Any, spec: str, dataset: Dataset | None, column: str | Sequence[str] | None
) -> tuple[Dataset, list[str]]:
    if dataset is None or column is None:
        raise ConfigError(
            f"embedder: '{spec}' must be fitted on data; give the dataset and the column to fit it on."
        )
    names = column_names(column)
    check_dataset(dataset, FITTED_ON)
    schema = getattr(dataset.schema(fetch_if_missing=False), "base_schema", None)
    if isinstance(schema, pa.Schema) and set(names) <= set(schema.names) and hasattr(made, "takes"):
        check_types(schema, made, names)
    return dataset, names


def column_names(column: Any) -> list[str]:
    """Return the columns to embed; raise ConfigError for what is neither a name nor a list of names."""
    names = [column] if isinstance(column, str) else list(column) if isinstance(column, Sequence) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"column: {column!r} is neither the name of a column nor a list of names.")
    return names


def check_columns_of(embedder: Any, name: str, columns: Sequence[str]) -> None:
    """Raise ConfigError if an embedder of one column is to embed several."""
    if len(columns) > 1 and getattr(embedder, "takes", "any") != "table":
        raise ConfigError(
            f"column: Embedder {name} takes one column, not {len(columns)} ({', '.join(columns)}); the embedder "
            "'table' takes several."
        )


def check_types(schema: pa.Schema, embedder: Any, columns: Sequence[str]) -> None:
    """Raise DataError for columns whose type the embedder, fitted or not, cannot use."""
    takes: Takes = getattr(embedder, "takes", "any")
    none = schema.empty_table().select(columns)
    if any(map(pa.types.is_null, none.schema.types)):  # of the first blocks alone, perhaps
        return
    numbered = none if ID in columns else none.append_column(ID, pa.array([], pa.int64()))
    try:
        decode(numbered, columns, takes)
    except DataError as error:
        kind = none.schema.field(0).type
        if is_text(kind):
            advice = " Choose an embedder of text: hash:N or sentence-transformers:NAME."
        elif is_bytes(kind):
            advice = (
                " Choose an embedder of images: timm:NAME, torchvision:NAME or open_clip:NAME/PRETRAINED."
            )
        elif takes == "text" and (is_list(kind) or is_tensor(kind)):
            advice = " Choose an embedder of numbers: column or pca:N."
        else:
            advice = ""
        raise DataError(f"{error}{advice}") from None
    if hasattr(embedder, "check_type"):
        for name in columns:
            embedder.check_type(none.schema.field(name).type, name)
