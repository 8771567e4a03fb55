"""Selection: the rows of a pool to train on, with the weight, score and reason of each row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.core.arrays import positions
from raysel.data.identity import PoolIdentity, identity, row_ids
from raysel.data.row_index import ID
from raysel.errors import COLUMNS, ConfigError, DataError, RunError, first, reason_of, shown

if TYPE_CHECKING:
    from ray.data import Dataset

_TABLE, _DROPPED, _INFO = "selection.parquet", "dropped.parquet", "selection.json"
_FORMAT = 1
_WEIGHT = "weight"
_APPLIED = "raysel.weights"  # in the context of a Dataset that has weights
_COLUMNS = (ID, _WEIGHT, "score", "reason")


@dataclass(frozen=True)
class Selection:
    """Rows of a pool to train on, with the weight, score and reason of each row.

    Parameters
    ----------
    table : pyarrow.Table
        One row per selected row, in ascending order of ``sample_id`` (int64), with ``weight`` (float32, at
        least 0), ``score`` (float64; ``info["score"]`` has its meaning) and ``reason`` (text). A method may
        add columns.
    dropped : pyarrow.Table, optional
        The other rows of the pool: ``sample_id`` and ``reason``. None if the method does not list them.
    info : dict
        The method, its parameters and ``pool_rows``, the number of rows that were selected from.
    pool : PoolIdentity, optional
        Identity of the pool: its files and the number of rows of each file, from which the ids were counted. None if it is not known, for example if the ids come from a column
        ``sample_id`` of the data. Such a selection is compared with a dataset by its ids alone.

    Raises
    ------
    DataError
        If a column is missing or has another type, no row is selected, ids repeat or do not ascend, or a
        weight is negative or not finite.

    Examples
    --------
    >>> chosen = raysel.Selection.of(np.array([4, 1]), reason="picked by hand", pool=rows)   # rows: 10 rows
    >>> len(chosen), chosen.ids.tolist(), chosen.weights.tolist()
    (2, [1, 4], [1.0, 1.0])
    """

    table: pa.Table
    dropped: pa.Table | None = None
    info: dict[str, Any] = field(default_factory=dict)
    pool: PoolIdentity | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.table, pa.Table):
            raise DataError(
                f"Selection(table=...) needs an Arrow table, not {shown(self.table)}; to make a Selection from ids, call "
                "raysel.Selection.of(ids)."
            )
        if not isinstance(self.dropped, (pa.Table, type(None))):
            raise DataError(
                f"Selection(dropped=...) must be an Arrow table with the columns {ID} and reason, not {shown(self.dropped)}."
            )
        _check_table(self.table, "A selection", _COLUMNS)
        if self.dropped is not None:
            _check_table(self.dropped, "A selection's table of dropped rows", (ID, "reason"))
        if not isinstance(self.info, dict):
            raise ConfigError(f"info: {shown(self.info)} should be a dict.")
        if not isinstance(self.pool, (PoolIdentity, type(None))):
            raise ConfigError(
                f"pool: {shown(self.pool)} should be a PoolIdentity; to give a Dataset, use Selection.of(ids, "
                "pool=rows)."
            )
        ids = self.ids
        if len(ids) == 0:
            raise DataError("The selection has no rows: there would be nothing to train on.")
        if (np.diff(ids) <= 0).any() or ids[0] < 0:
            raise DataError(
                "A selection's sample_id must be in ascending order, without repeats, and at least 0."
            )
        if not (np.isfinite(self.weights) & (self.weights >= 0)).all():
            raise DataError("A selection's weights must be finite and not negative.")

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        pool = self.info.get("pool_rows")
        of = f" of {pool:,}" if isinstance(pool, int) else ""
        return f"<Selection of {len(self):,}{of} rows by {self.info.get('method') or 'hand'}>"

    @property
    def ids(self) -> np.ndarray:
        """The selected ``sample_id``: int64, ascending."""
        return self.table[ID].to_numpy()

    @property
    def weights(self) -> np.ndarray:
        """The weight of each selected row, float32."""
        return self.table["weight"].to_numpy()

    def digest(self) -> str:
        """Return a digest of the selected ids and their weights.

        Returns
        -------
        str
            32 hexadecimal digits.

        Examples
        --------
        >>> one, other = (raysel.Random(budget=0.3, seed=seed).select(rows) for seed in (0, 1))
        >>> one.digest() == other.digest()
        False
        """
        digest = hashlib.blake2b(np.ascontiguousarray(self.ids).data, digest_size=16)
        digest.update(np.ascontiguousarray(self.weights).data)
        return digest.hexdigest()

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        *,
        score: np.ndarray | float = 0.0,
        reason: str | pa.Array = "",
        weight: np.ndarray | float = 1.0,
        dropped: pa.Table | None = None,
        info: dict[str, Any] | None = None,
        columns: dict[str, np.ndarray] | None = None,
        pool: Dataset | PoolIdentity | None = None,
    ) -> Selection:
        """Make a selection from ids in any order.

        Parameters
        ----------
        ids : array of int, shape (n,)
            The selected ``sample_id``.
        score : array of float, shape (n,), or float
            Score of each row; one number is used for all rows.
        reason : pyarrow.Array of length n, or str
            Reason of each row; one text is used for all rows.
        weight : array of float, shape (n,), or float
            Weight of each row; one number is used for all rows.
        dropped : pyarrow.Table, optional
            The other rows of the pool: ``sample_id`` and ``reason``.
        info : dict, optional
            The method, its parameters and ``pool_rows``.
        columns : dict of str to array, shape (n,), optional
            More columns of the table.
        pool : ray.data.Dataset or PoolIdentity, optional
            The rows that were selected from.

        Returns
        -------
        Selection
            The rows in ascending order of their ids.

        Raises
        ------
        DataError
            As for `Selection`.

        Examples
        --------
        >>> raysel.Selection.of(np.array([7, 3]), weight=np.array([1.0, 2.0])).weights.tolist()
        [2.0, 1.0]
        """
        ids = as_ids(ids, "ids")
        order = np.argsort(ids, kind="stable")
        reasons = constant_text(reason, len(ids)) if isinstance(reason, str) else pa.array(reason)
        if len(reasons) != len(ids):
            raise DataError(
                f"reason: There are {len(reasons):,} reasons for {len(ids):,} ids; give one per id."
            )
        table = {
            ID: pa.array(ids[order]),
            "weight": pa.array(_per_row(weight, "weight", np.float32, len(ids))[order]),
            "score": pa.array(_per_row(score, "score", np.float64, len(ids))[order]),
            "reason": reasons.take(pa.array(order)),
        }
        for name, values in (columns or {}).items():
            if name in _COLUMNS:
                raise DataError(
                    f"columns: Every selection has a column '{name}' already; give your column another name."
                )
            table[name] = pa.array(_per_row(values, f"columns['{name}']", None, len(ids))[order])
        known = pool if pool is None or isinstance(pool, PoolIdentity) else identity(pool)
        return cls(pa.table(table), dropped, info or {}, known)

    def after(self, before: Selection) -> Selection:
        """Join this selection with the earlier selection from whose rows it was made.

        Parameters
        ----------
        before : Selection
            The earlier selection. ``before.info["pool_rows"]`` is needed.

        Returns
        -------
        Selection
            The rows of this selection as a selection from the pool of ``before``. Weights are the product of
            both. Every dropped row has the reason of the selection that dropped it. ``info["before"]`` is the
            ``info`` of ``before``.

        Raises
        ------
        DataError
            If this selection has rows that ``before`` does not have, or was made from another pool.

        Examples
        --------
        >>> half = raysel.Random(budget=0.5).select(rows)
        >>> quarter = raysel.Random(budget=2, seed=1).select(half.rows(rows)).after(half)
        >>> len(quarter), quarter.info["pool_rows"]
        (2, 10)
        """
        check_selection(before, "before")
        if before.pool is not None and self.pool is not None:
            before.pool.check(self.pool)
        place, found = positions(before.ids, self.ids)
        if not found.all():
            raise DataError(
                "This selection holds rows that the earlier selection left out; select from the rows of the earlier selection."
            )
        at = self.table.schema.get_field_index("weight")
        table = self.table.set_column(at, "weight", pa.array(self.weights * before.weights[place]))
        left = np.setdiff1d(before.ids, self.ids)
        here = self.dropped or pa.table(
            {
                ID: left,
                "reason": constant_text(
                    f"left out by {self.info.get('method', 'the later choice')}", len(left)
                ),
            }
        )
        encoded = pa.schema([(ID, pa.int64()), ("reason", pa.dictionary(pa.int32(), pa.string()))])
        parts = [d.select(encoded.names).cast(encoded) for d in (before.dropped, here) if d is not None]
        dropped = pa.concat_tables(parts).unify_dictionaries().sort_by(ID)
        info = {**self.info, "before": before.info}
        info |= {"pool_rows": before.info["pool_rows"]} if "pool_rows" in before.info else {}
        return Selection(table, dropped, info, before.pool or self.pool)

    def check_pool(self, dataset: Dataset) -> None:
        """Check that a dataset has the rows that this selection was made from.

        The files of the selection's pool must be the first files of the dataset. If the identity of one of the two pools is not known, every selected id must be in the dataset. The ids
        are looked up only in Ray's object store and in Parquet files, because everything else would execute the
        transformations of the dataset.

        Parameters
        ----------
        dataset : ray.data.Dataset
            Rows with ``sample_id``.

        Raises
        ------
        DataError
            If the dataset has other rows.

        Examples
        --------
        >>> chosen = raysel.Random(budget=0.3).select(rows)
        >>> chosen.check_pool(rows)
        """
        here = identity(dataset)
        if self.pool is not None and here is not None:
            self.pool.check(here)
        elif here is not None and self.ids[-1] >= here.rows:
            raise DataError(
                f"This selection was made from other rows: it holds sample_id {self.ids[-1]}, but the last id of the pool is "
                f"{here.rows - 1}. Apply the selection to the rows that it was made from."
            )
        elif here is None:
            self._check_ids(dataset)

    def _check_ids(self, dataset: Dataset) -> None:
        from raysel.cluster.blocks import stream_blocks
        from raysel.data.datasource import at_rest

        if not at_rest(dataset):
            return
        found = [np.empty(0, np.int64), *stream_blocks(dataset, [ID], "dataset", _chosen, self.ids)]
        missing = np.setdiff1d(self.ids, np.concatenate(found))
        if len(missing):
            raise DataError(
                f"This selection was made from other rows: the dataset lacks {len(missing):,} of its {len(self):,} rows "
                f"(sample_id {first(missing)}). Apply the selection to the rows that it was made from."
            )

    def apply(self, dataset: Dataset) -> Dataset:
        """Return the selected rows of a dataset, with their weights as the column ``weight``.

        The result is lazy. Rows are matched by ``sample_id`` and keep their order. A dataset that already has a column
        ``weight``, such as the result of an earlier ``apply``, raises an error: the meaning of its column would
        otherwise change silently. To apply two selections, join them with :meth:`after`, which multiplies their
        weights, and apply the joined selection. :meth:`rows` returns the rows without the weights.

        Parameters
        ----------
        dataset : ray.data.Dataset
            The rows that this selection was made from.

        Returns
        -------
        ray.data.Dataset
            The selected rows, with the column ``weight`` (float32).

        Raises
        ------
        DataError
            If the dataset has other rows (see :meth:`check_pool`), no ``sample_id``, or already a column
            ``weight``.

        Examples
        --------
        >>> raysel.Random(budget=0.3).select(rows).apply(rows).count()
        3
        """
        return self._apply(dataset, weight=True)

    def rows(self, dataset: Dataset) -> Dataset:
        """Return the selected rows of a dataset as :meth:`apply` does, without their weights.

        Parameters
        ----------
        dataset : ray.data.Dataset
            The rows that this selection was made from.

        Returns
        -------
        ray.data.Dataset
            The selected rows.

        Raises
        ------
        DataError
            If the dataset has other rows (see :meth:`check_pool`), or no ``sample_id``.

        Examples
        --------
        >>> raysel.Random(budget=0.3).select(rows).rows(rows).count()
        3
        """
        return self._apply(dataset, weight=False)

    def _apply(self, dataset: Dataset, weight: bool) -> Dataset:
        import ray

        from raysel.cluster.blocks import column_names, plain_errors

        self.check_pool(dataset)
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None:
            _check_columns(schema.names, weight)
        elif weight and dataset.context.get_config(_APPLIED):  # a later step may have dropped the weights
            _check_columns(column_names(dataset), weight)
        chosen = ray.put((self.ids, self.weights if weight else None))
        applied = dataset.map_batches(_keep, fn_args=(chosen,), batch_format="pyarrow", batch_size=None)
        if weight:
            applied.context.set_config(_APPLIED, True)
        return plain_errors(applied)

    def export(
        self,
        dataset: Dataset,
        path: str | os.PathLike[str],
        format: Literal["parquet", "jsonl", "webdataset"] = "parquet",
        *,
        dropped: bool = False,
    ) -> None:
        """Write the selected rows of a dataset as files for other tools, with a data card.

        The weights of the rows are written as the column ``weight``. If the dataset has a column ``weight`` of its own, this
        column is written instead, but only if all weights of the selection are 1.

        Parameters
        ----------
        dataset : ray.data.Dataset
            The rows that this selection was made from.
        path : path
            The directory, which must not exist. Files ``data-00000`` and so on are written to it, in the order of the dataset, and the
            data card ``README.md``: how and from which files the rows were selected, and the number of rows per reason.
        format : {"parquet", "jsonl", "webdataset"}
            Parquet, JSON lines, or tar files with a member per column of bytes and one of JSON per row.
        dropped : bool
            Write the dropped rows of the dataset too, for tools that show them next to the selected rows. Every row then
            has the columns ``status`` ("selected" or "dropped"), ``score`` and ``reason`` instead of ``weight``. The
            score and the reason of a dropped row are null if the method does not list them.

        Raises
        ------
        ConfigError
            For an unknown format.
        DataError
            If the dataset has other rows, a column with the name of a column that export adds, or values that JSON cannot
            hold.
        RunError
            If ``path`` exists or cannot be written.

        Examples
        --------
        >>> raysel.Random(budget=0.3).select(rows).export(rows, "exported")
        >>> len(raysel.read("exported/data-00000.parquet").take_all())
        3
        """
        from raysel.export import export

        export(self, dataset, path, format, dropped)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a directory of Parquet and JSON files.

        The directory appears under its name only when it is complete. Saving the same selection again writes
        the same bytes.

        Parameters
        ----------
        path : path
            Directory to create, as a path or a URI: ``file://``, ``s3://``, ``gs://`` or ``abfs://``.

        Raises
        ------
        ConfigError
            If ``path`` exists, or cannot be written to.
        DataError
            If ``info`` holds a value that cannot be written as JSON.

        Examples
        --------
        >>> raysel.Random(budget=0.3).select(rows).save("chosen")
        >>> len(raysel.Selection.load("chosen"))
        3
        """
        place = storage.output(path)
        if storage.exists(place):
            raise ConfigError(f"{place} exists already; remove it, or save the selection under another name.")
        about = {
            "format": _FORMAT,
            "info": self.info,
            "pool": None if self.pool is None else self.pool.to_list(),
        }
        try:
            text = json.dumps(about, indent=1, sort_keys=True, default=_json)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"info cannot be saved as JSON ({reason_of(error)}); give only text, numbers, lists and dicts."
            ) from error
        with storage.new_folder(place) as folder:
            folder.write(_TABLE, _parquet(self.table))
            if self.dropped is not None:
                folder.write(_DROPPED, _parquet(self.dropped))
            folder.write(_INFO, f"{text}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read a selection that :meth:`save` wrote.

        Parameters
        ----------
        path : path
            The directory.

        Returns
        -------
        Selection
            The saved selection.

        Raises
        ------
        DataError
            If the directory is missing, damaged or of another format.

        Examples
        --------
        >>> chosen = raysel.Random(budget=0.3).select(rows)
        >>> chosen.save("saved")
        >>> raysel.Selection.load("saved").digest() == chosen.digest()
        True
        """
        folder = storage.Folder(path)
        if fault := folder.fault():
            raise DataError(f"{folder.path} is not a saved selection ({fault}).")
        try:
            table, *dropped = (
                pq.read_table(pa.BufferReader(storage.read_bytes(folder.file(name))))
                for name in (_TABLE, _DROPPED)
                if name in folder.names()
            )
            about = storage.read_json(folder.file(_INFO))
            if about.get("format") != _FORMAT:
                raise DataError(
                    f"{folder.path} is a selection of format {about.get('format')}, but this version of raysel reads format "
                    f"{_FORMAT}; select again."
                )
            files = about["pool"]
            pool = None if files is None else PoolIdentity.from_list(files)
            return cls(table, dropped[0] if dropped else None, about["info"], pool)
        except RunError:  # of an object store that cannot be read
            raise
        except DataError as error:
            text = str(error)
            raise DataError(
                text if folder.path in text else f"{folder.path} is not a saved selection ({text})."
            ) from error
        except Exception as error:  # of files that another program has written, anything can be wrong
            raise DataError(f"{folder.path} is not a saved selection ({reason_of(error)}).") from error


def as_ids(ids: Any, what: str) -> np.ndarray:
    """Return ids that a user gives as int64; DataError for other values than integers."""
    try:
        array = np.asarray(ids)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{what}: {shown(ids)} is not a list of sample_id.") from error
    if not array.size:
        return np.empty(0, np.int64)
    if array.dtype.kind == "b":
        raise DataError(
            f"{what}: A mask of True and False is not a list of sample_id; give numpy.flatnonzero(mask)."
        )
    if array.ndim != 1 or array.dtype.kind not in "iu" or int(array.max()) >= 2**63:
        raise DataError(f"{what}: {shown(ids)} is not a list of sample_id; give one integer per row.")
    return array.astype(np.int64, copy=False)


def check_selection(value: object, what: str) -> None:
    """Raise ConfigError unless ``value`` is a Selection, with what to write instead."""
    if isinstance(value, Selection):
        return
    advice = "pass a Selection, such as the result of a selector's select or of raysel.Selection.load"
    if hasattr(value, "__len__") or hasattr(value, "map_batches"):
        advice = "make one with raysel.Selection.of(ids, pool=rows)"
    raise ConfigError(f"{what}: {shown(value)} is not a Selection; {advice}.")


def _check_table(table: pa.Table, what: str, columns: Sequence[str]) -> None:
    """Raise DataError unless a selection can have the table."""
    names = table.column_names
    for name in (*columns, *names):
        if name not in names:
            raise DataError(f"{what} needs the column '{name}'; it has {first(names, COLUMNS) or 'none'}.")
        if names.count(name) > 1:
            raise DataError(f"{what} has more than one column '{name}'; rename or drop the others.")
    for name, kind in ((ID, pa.int64()), (_WEIGHT, pa.float32()), ("score", pa.float64())):
        if name in columns and (table[name].type != kind or table[name].null_count):
            raise DataError(
                f"{what}'s column '{name}' must be {kind} without nulls, but it is {table[name].type} with "
                f"{table[name].null_count:,} nulls."
            )
    of = table["reason"].type
    if (of.value_type if pa.types.is_dictionary(of) else of) not in (pa.string(), pa.large_string()):
        raise DataError(f"{what}'s column 'reason' must be text, not {of}.")


def _per_row(values: Any, name: str, dtype: Any, count: int) -> np.ndarray:
    """Return one value per row, from as many values or from a single one."""
    try:
        array = np.asarray(values, dtype)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: {shown(values)} should be {'numbers' if dtype else 'an array'}.") from error
    if array.ndim == 0 and dtype is not None:
        return np.broadcast_to(array, count)
    if array.shape != (count,):
        raise DataError(
            f"{name}: An array of shape {array.shape} does not hold one value for each of {count:,} ids."
        )
    return array


def _json(value: Any) -> Any:
    """Return a number or an array of NumPy as JSON types; TypeError for anything else."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"It holds {shown(value)}.")


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def constant_text(text: str, count: int) -> pa.Array:
    """Return ``text`` repeated ``count`` times, stored once (a dictionary column)."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def coded_text(codes: np.ndarray, texts: list[str]) -> pa.Array:
    """Return ``texts[code]`` for each code, each text that occurs stored once (a dictionary column)."""
    used, places = np.unique(codes, return_inverse=True)
    texts = [texts[code] for code in used]
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(texts, pa.string()))


def _keep(table: pa.Table, chosen: Any) -> pa.Table:
    import ray

    ids, weights = ray.get(chosen) if isinstance(chosen, ray.ObjectRef) else chosen
    _check_columns(table.column_names, weights is not None)
    place, found = positions(ids, row_ids(table, "the dataset"))
    taken = np.flatnonzero(found)
    kept = table.take(pa.array(taken))
    return kept if weights is None else kept.append_column(_WEIGHT, pa.array(weights[place[taken]]))


def _check_columns(names: list[str], weight: bool) -> None:
    if ID not in names:
        raise DataError(f"The dataset has no column '{ID}'; read it with raysel.read.")
    if weight and _WEIGHT in names:
        raise DataError(
            f"The dataset already has a column '{_WEIGHT}', in which apply and export write the weights of the selected rows. Rename "
            f"it first, for example with dataset.rename_columns({{'{_WEIGHT}': 'old_weight'}}), or take the rows without weights "
            "with rows(); if the column is from an earlier apply, join the selections with later.after(earlier) instead."
        )


def _chosen(table: pa.Table, ids: np.ndarray) -> np.ndarray:
    """Return the ids that the table holds."""
    return np.intersect1d(row_ids(table, "the dataset"), ids)
