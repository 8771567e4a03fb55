"""Train a sparse autoencoder on the selected rows' vectors, and score every row for RepDiv."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray

import raysel
from raysel.cluster.blocks import gather, plain_errors
from raysel.core.arrays import positions
from raysel.core.fingerprint import library_versions
from raysel.core.storage import Place, write_table
from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING
from raysel.errors import ConfigError
from raysel.factors.distributed import scored
from raysel.workflow.config import Factors as Settings
from raysel.workflow.directory import RunDirectory, digest_of, read_table
from raysel.workflow.inputs import Look
from raysel.workflow.steps.step import Step

_LABEL = "label"  # next to the vectors, whatever the pool calls it
SCORES, RARE = "scores.parquet", "rare.parquet"


@dataclass(frozen=True)
class Factors(Step):
    """The autoencoder, every row's scores, and which rows have the rare units."""

    settings: Settings
    name: str = "factors"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "factors and scores for RepDiv"

    def check(self, look: Look) -> None:
        """Check the number of units, and that no row is left without a vector."""
        settings = self.settings
        if settings.units is not None and settings.k > settings.units:
            raise ConfigError(
                f"factors.k: {settings.k} is more than the autoencoder's {settings.units} units; lower it or raise "
                "factors.units."
            )
        on_error = look.workflow.embed.on_error
        if on_error != "raise":
            raise ConfigError(
                f"embed.on_error: '{on_error}' leaves rows without a vector, but RepDiv needs a score for every row that is "
                "trained on. Use 'raise': if a row has no vector, the run then ends with an error that names the row. Repair or "
                "remove it."
            )

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the settings, vectors, selected rows, labels and seed."""
        return {
            "settings": asdict(self.settings),
            "vectors": run.finished["embed"].directory.name,
            "rows": run.digests("pool"),
            "label": run.workflow.pool.label,
            "selected": digest_of(run.rows),
            "seed": run.workflow.seed,
            "versions": library_versions("numpy", "torch", "scipy"),
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Write the autoencoder, the scores and the pairs of rare units and rows."""
        options = asdict(self.settings)
        top_fraction = options.pop("top_fraction")
        rows = run.vectors("pool")
        label = str(run.workflow.pool.label)
        run.progress.note(self.title, "training the autoencoder")
        autoencoder = raysel.fit_factors(rows, **options, seed=run.workflow.seed)
        autoencoder.save(directory / "autoencoder.safetensors")
        run.progress.note(self.title, "computing the scores")
        labels = gather(run.read("pool"), [ID, label], "pool").sort_by(ID).rename_columns([ID, _LABEL])
        labelled = rows.map_batches(
            _labelled, fn_args=(ray.put(labels),), batch_format="pyarrow", batch_size=None
        )
        found = scored(plain_errors(labelled), autoencoder, EMBEDDING, _LABEL, top_fraction)
        write_table(directory / SCORES, found.table)
        write_table(directory / RARE, found.pairs)
        return {
            "scored": json.loads(found.table.schema.metadata[b"raysel.factors"]),
            "rare_units": found.rare,
            "unexplained": autoencoder.training["report"]["unexplained"],
        }


def scores(run: RunDirectory) -> pa.Table | None:
    """Scores of every selected row, None where the run has no such step."""
    done = run.finished.get("factors")
    return None if done is None else read_table(done.directory / SCORES)


def _labelled(table: pa.Table, labels: Any) -> pa.Table:
    known = ray.get(labels) if isinstance(labels, ray.ObjectRef) else labels
    if not table.num_rows:  # an empty block may come without its columns
        return table
    place, _ = positions(known[ID].to_numpy(), table[ID].to_numpy())
    return table.append_column(_LABEL, known[_LABEL].take(pa.array(place)))
