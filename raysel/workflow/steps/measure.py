"""Measure the information metrics of the pool, and select rows by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
from ray.data import Dataset

import raysel
from raysel.cluster.blocks import gather
from raysel.core.budgets import budget_rows
from raysel.core.fingerprint import fingerprint, library_versions
from raysel.core.parameters import describe
from raysel.core.storage import Place, write_table
from raysel.errors import ConfigError, DataError, RunError
from raysel.gime import Sensitivity, columns, partial, proxy
from raysel.gime.metrics import metric_functions
from raysel.gime.select import check_thresholds, limits_of
from raysel.gime.state import check_target
from raysel.registry import METRICS
from raysel.selection import Selection
from raysel.workflow.config import Gime
from raysel.workflow.directory import RunDirectory
from raysel.workflow.inputs import Look
from raysel.workflow.steps.step import Step


@dataclass(frozen=True)
class Measure(Step):
    """GIME: metrics of pool, target and the rows kept; thresholds from a calibration if the workflow has one."""

    settings: Gime
    name: str = "gime"

    @property
    def selects(self) -> bool:  # type: ignore[override]
        """Whether thresholds leave rows out."""
        return self.settings.selects

    @property
    def about(self) -> str:
        """What the step makes."""
        return "metrics of GIME"

    def check(self, look: Look) -> None:
        """Check the binding's columns, the groups and what a calibration needs."""
        settings, schema = self.settings, look.schemas["pool"]
        try:
            rule = metrics(settings, schema)
            rule.binding.check(schema, "pool")
            check_thresholds(limits_of(settings.thresholds), rule.binding, schema, rule.metrics)
        except (ConfigError, DataError) as error:
            raise type(error)(f"gime: {error}") from None
        if settings.by is not None and settings.days is not None:
            raise ConfigError(
                "gime: Give 'by' or 'days', not both: groups are defined either by a column or by windows of time."
            )
        if settings.by is not None:
            look.check_column("pool", settings.by, "gime.by")
        try:
            partial(empty(schema, columns(rule.binding, groups(settings))), rule.binding, groups(settings))
            if "target" in look.schemas:
                target = look.schemas["target"]
                here = [name for name in rule.binding.columns if name in target.names]
                check_target(rule.binding, empty(target, here))
            if settings.floors and len(rule.binding.classes) != 1:
                raise ConfigError(
                    "floors: Floors are minimum numbers of rows per class; name exactly one class column under "
                    "'gime.binding.classes'."
                )
        except (ConfigError, DataError) as error:
            raise type(error)(f"gime: {error}") from None
        asked = settings.calibrate
        if asked is None:
            return
        if look.workflow.target is None and look.workflow.rows("validation") is None:
            raise ConfigError(
                "The key 'target' is missing: gime.calibrate scores its small models on the rows of 'validation', if it names "
                "files, or of 'target'. Add one of the two."
            )
        label = asked.label or look.workflow.pool.label
        if label is None:
            raise ConfigError(
                "The key 'gime.calibrate.label' is missing: the models need a column to predict."
            )
        scored = "validation" if look.workflow.rows("validation") is not None else "target"
        for role in ("pool", scored):
            for name in (*asked.features, label):
                look.check_column(role, name, "gime.calibrate")
        look.check_column("pool", asked.mix, "gime.calibrate.mix")
        if "pool" not in look.counts:
            return
        try:
            budget_rows(asked.rows, look.counts["pool"])
        except ConfigError as error:
            raise ConfigError(f"gime.calibrate.rows: {error}") from None

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the settings, the rows and the seed."""
        return {
            "settings": describe(replace(self.settings, metrics=[])),
            "metrics": [
                [name, fingerprint(function, f"metric '{name}'", "define it in a file of its own")]
                for name, function in metric_functions(self.settings.metrics).items()
                if name not in METRICS.builtin
            ],
            "label": run.workflow.pool.label if self.settings.calibrate else None,
            "rows": run.digests("pool", "target", *(["validation"] if self.settings.calibrate else [])),
            "validation": run.drawn and run.drawn.key,
            "seed": run.workflow.seed,
            "versions": library_versions("numpy", "pyarrow", "scikit-learn"),
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Write ``sets.parquet`` and, if rows are selected, the selection.

        Raises
        ------
        RunError
            If a calibration shows no threshold and none is given.
        """
        settings = self.settings
        pool = run.pool()
        rule = metrics(settings, pool.schema().base_schema)
        if run.workflow.target is not None:
            rule = rule.aim(run.target())
        answer: dict[str, Any] = {}
        if settings.calibrate is not None:
            run.progress.note(self.title, "training small models to find thresholds")
            found = _calibrate(run, settings, rule, pool)
            for name in ("correlations", "evidence", "subsets"):
                write_table(directory / f"{name}.parquet", getattr(found, name))
            if not found.thresholds and not settings.thresholds:
                raise RunError(
                    "gime.calibrate: No threshold passed the test. A threshold passes if enough of the subsets that satisfy it "
                    f"reach a score of {found.info['floor']:.6g} (the complete pool reaches {found.info['full']:.6g}). Raise "
                    "'tolerance', lower 'share', raise the number of subsets ('count'), or set 'gime.thresholds' yourself."
                )
            rule = replace(rule, thresholds={**found.limits, **limits_of(settings.thresholds)})
            answer["calibration"] = dict(found.info)
        sets = {"pool": rule.measure(pool)}
        if settings.selects:
            run.progress.note(self.title, "selecting rows")
            chosen = rule.select(pool, groups(settings), run.workflow.seed)
            chosen = run.of_the_pool(chosen, run.rows)
            chosen.save(directory / "selection")
            sets["kept"] = rule.measure(run.among(chosen))
            answer |= {
                "kept": len(chosen),
                "thresholds": chosen.info["thresholds"],
                "reached": chosen.info["reached"],
            }
        if run.workflow.target is not None:
            sets["target"] = rule.measure(run.target())
        write_table(directory / "sets.parquet", side_by_side(sets))
        return answer | {"sets": {name: table.to_pylist() for name, table in sets.items()}}


def metrics(settings: Gime, schema: pa.Schema) -> raysel.GIME:
    """Return the metrics that a workflow names; floors have the class column's type. Raise ConfigError."""
    binding = settings.binding
    floors: dict[Any, int] = dict(settings.floors)
    if floors and len(binding.classes) == 1 and binding.classes[0] in schema.names:
        of = schema.field(binding.classes[0]).type
        try:
            floors = {pa.scalar(label).cast(of).as_py(): rows for label, rows in floors.items()}
        except pa.ArrowException as error:
            raise ConfigError(
                f"floors: The classes {', '.join(floors)} must all be {of}, the type of the class column."
            ) from error
    return raysel.GIME(binding, limits_of(settings.thresholds), floors, tuple(settings.metrics))


def empty(schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """Return a table without rows that has these columns."""
    return pa.schema([schema.field(name) for name in names]).empty_table()


def groups(settings: Gime) -> str | timedelta | None:
    """Return what the metrics are grouped by."""
    if settings.days is None:
        return settings.by
    try:
        return timedelta(days=settings.days)
    except OverflowError:
        raise ConfigError(f"days: {settings.days:g} days are too long for a window of time.") from None


def side_by_side(sets: dict[str, pa.Table]) -> pa.Table:
    """Return the metrics of several sets, one below the other, with a column ``set``."""
    return pa.concat_tables(
        [table.add_column(0, "set", pa.array([name] * table.num_rows)) for name, table in sets.items()]
    ).replace_schema_metadata(None)


def _calibrate(run: RunDirectory, settings: Gime, rule: raysel.GIME, pool: Dataset) -> Sensitivity:
    """Thresholds that proxy models show; they are scored on the validation rows, else on the target."""
    asked = settings.calibrate
    assert asked is not None
    label = asked.label or str(run.workflow.pool.label)
    wanted = list(dict.fromkeys([*asked.features, label]))
    test = gather(_scored(run), wanted, "rows that the proxy models are scored on")
    given = asdict(asked)
    rest = {name: given[name] for name in given if name not in ("features", "label", "scoring", "rows")}
    return rule.sensitivity(
        pool,
        proxy(asked.features, label, test, asked.scoring),
        rows=budget_rows(asked.rows, pool.count()),
        columns=wanted,
        seed=run.workflow.seed,
        **rest,
    )


def _scored(run: RunDirectory) -> Dataset:
    if "validation" in run.inputs:
        return run.read("validation")
    if run.drawn is None:
        return run.target()
    return Selection.of(run.drawn.ids).rows(run.read(run.drawn.role))
