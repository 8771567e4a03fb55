"""Selection: the rows of a pool to train on, with the weight, score and reason of each row."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.core.arrays import positions
from raysel.data.identity import PoolIdentity, identity
from raysel.data.row_index import ID
from raysel.errors import ConfigError, DataError, first

if TYPE_CHECKING:
    from ray.data import Dataset

_TABLE, _DROPPED, _INFO = "selection.parquet", "dropped.parquet", "selection.json"
_FORMAT = 1
_WEIGHT = "weight"


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
        What assigned the ids of the pool. None if it is not known, for example if the ids come from a column
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
        missing = [n for n in (ID, "weight", "score", "reason") if n not in self.table.column_names]
        if missing:
            raise DataError(f"A selection needs the column {missing[0]!r}; it has {self.table.column_names}.")
        for name, kind in ((ID, pa.int64()), ("weight", pa.float32())):
            if self.table[name].type != kind or self.table[name].null_count:
                raise DataError(
                    f"A selection's column '{name}' must be {kind} without nulls, not {self.table[name].type}."
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
            As the class raises.

        Examples
        --------
        >>> raysel.Selection.of(np.array([7, 3]), weight=np.array([1.0, 2.0])).weights.tolist()
        [2.0, 1.0]
        """
        ids = np.asarray(ids, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        reasons = reason if isinstance(reason, pa.Array) else constant_text(reason, len(ids))
        table = {
            ID: pa.array(ids[order]),
            "weight": pa.array(np.broadcast_to(np.asarray(weight, np.float32), ids.shape)[order]),
            "score": pa.array(np.broadcast_to(np.asarray(score, np.float64), ids.shape)[order]),
            "reason": reasons.take(pa.array(order)),
        }
        table |= {name: pa.array(np.asarray(values)[order]) for name, values in (columns or {}).items()}
        known = pool if pool is None or isinstance(pool, PoolIdentity) else identity(pool)
        return cls(pa.table(table), dropped, info or {}, known)

    def after(self, before: Selection) -> Selection:
        """Join this selection with the earlier one from whose rows it was made.

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
        if before.pool is not None and self.pool is not None:
            before.pool.check(self.pool)
        place, found = positions(before.ids, self.ids)
        if not found.all():
            raise DataError(
                "This selection holds rows that the earlier one left out; select from the rows of the earlier one."
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

        The files of the selection's pool must be the first files of the dataset's. If what assigned the ids
        of one of them is not known, every selected id must be in the dataset. Ids are then looked up only if
        that runs no step of the dataset: in the object store and in Parquet.

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
                f"{here.rows - 1}. Apply it to the rows that it was made from."
            )
        elif here is None:
            self._check_ids(dataset)

    def _check_ids(self, dataset: Dataset) -> None:
        from raysel.cluster.blocks import stream_blocks
        from raysel.data.read import at_rest

        if not at_rest(dataset):
            return
        found = [np.empty(0, np.int64), *stream_blocks(dataset, [ID], "dataset", _chosen, self.ids)]
        missing = np.setdiff1d(self.ids, np.concatenate(found))
        if len(missing):
            raise DataError(
                f"This selection was made from other rows: the dataset lacks {len(missing):,} of its {len(self):,} rows "
                f"(sample_id {first(missing)}). Apply it to the rows that it was made from."
            )

    def apply(self, dataset: Dataset) -> Dataset:
        """Return the selected rows of a dataset, with their weights as the column ``weight``.

        The result is lazy. Rows are matched by ``sample_id`` and keep their order.

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

        from raysel.cluster.blocks import plain_errors

        self.check_pool(dataset)
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None:
            _check_columns(schema.names, weight)
        chosen = ray.put((self.ids, self.weights if weight else None))
        return plain_errors(
            dataset.map_batches(_keep, fn_args=(chosen,), batch_format="pyarrow", batch_size=None)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a directory of Parquet and JSON files.

        The directory appears under its name only when it is complete. Saving the same selection again writes
        the same bytes.

        Parameters
        ----------
        path : path
            The directory, which must not exist.

        Raises
        ------
        ConfigError
            If ``path`` exists.

        Examples
        --------
        >>> raysel.Random(budget=0.3).select(rows).save("chosen")
        >>> len(raysel.Selection.load("chosen"))
        3
        """
        if storage.exists(path):
            raise ConfigError(
                f"{os.fspath(path)} exists already; remove it, or save the selection under another name."
            )
        with storage.new_folder(path) as folder:
            folder.write(_TABLE, _parquet(self.table))
            if self.dropped is not None:
                folder.write(_DROPPED, _parquet(self.dropped))
            about = {
                "format": _FORMAT,
                "info": self.info,
                "pool": None if self.pool is None else self.pool.to_list(),
            }
            folder.write(_INFO, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())

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
                    f"{folder.path} is a selection of format {about.get('format')}, but this version reads format {_FORMAT}; "
                    "select again."
                )
            files = about["pool"]
            pool = None if files is None else PoolIdentity.from_list(files)
            return cls(table, dropped[0] if dropped else None, about["info"], pool)
        except DataError:
            raise
        except (OSError, ValueError, pa.ArrowException, KeyError, TypeError) as error:
            raise DataError(
                f"{folder.path} is not a saved selection ({str(error).splitlines()[0]})."
            ) from error


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def constant_text(text: str, count: int) -> pa.Array:
    """Return ``text`` repeated ``count`` times, stored once (a dictionary column)."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def coded_text(codes: np.ndarray, texts: list[str]) -> pa.Array:
    """Return ``texts[code]`` for each code, each text stored once (a dictionary column)."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(texts, pa.string()))


def _keep(table: pa.Table, chosen: Any) -> pa.Table:
    import ray

    ids, weights = ray.get(chosen) if isinstance(chosen, ray.ObjectRef) else chosen
    _check_columns(table.column_names, weights is not None)
    place, found = positions(ids, table[ID].to_numpy())
    taken = np.flatnonzero(found)
    kept = table.take(pa.array(taken))
    return kept if weights is None else kept.append_column(_WEIGHT, pa.array(weights[place[taken]]))


def _check_columns(names: list[str], weight: bool) -> None:
    if ID not in names:
        raise DataError(f"The dataset has no column '{ID}'; read it with raysel.read.")
    if weight and _WEIGHT in names:
        raise DataError(
            f"The dataset already has a column '{_WEIGHT}', where apply writes the weights of the selected rows. Rename or "
            f"drop a column of your own; join two selections with later.after(earlier) instead of applying both."
        )


def _chosen(table: pa.Table, ids: np.ndarray) -> np.ndarray:
    """Return the ids that the table holds."""
    return np.intersect1d(table[ID].to_numpy(), ids)
