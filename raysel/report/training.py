"""Results of a training that is not part of a workflow, from the history of its session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from raysel.core.fingerprint import library_versions
from raysel.errors import StateError
from raysel.report.goal import Goal, finite
from raysel.report.ledger import Ledger, LedgerEntry
from raysel.report.results import Arm, Data, Epoch, RunResults
from raysel.version import __version__

if TYPE_CHECKING:
    from raysel.train.dynamic import DynamicSelection

_EPOCH = ("epoch", "planned", "trained", "steps", "seconds", "planning_seconds", "nonfinite", "digest")
_OTHER = {*_EPOCH, "observed", "mean_loss", "evaluation_seconds"}


def epoch_of(entry: Mapping[str, Any]) -> Epoch:
    """Return an entry of a session's history as an epoch, with the metrics that are numbers; None if not finite."""
    metrics = {name: value for name, value in entry.items() if name not in _OTHER}
    return Epoch(
        **{name: entry[name] for name in _EPOCH},
        evaluation_seconds=entry.get("evaluation_seconds", 0.0),
        loss=entry["mean_loss"],
        metrics=finite({k: v for k, v in metrics.items() if v is None or isinstance(v, (int, float))}),
    )


def training_results(
    dynamic: DynamicSelection,
    metrics: Mapping[str, float] | None = None,
    *,
    name: str = "training",
    metric: str = "accuracy",
    direction: Literal["max", "min"] = "max",
    history: Sequence[Mapping[str, Any]] | None = None,
) -> RunResults:
    """Return the results of a training outside of workflows, with its ledger.

    Save them with ``results.save("results.json")``; ``raysel report results.json`` then writes the report.

    Parameters
    ----------
    dynamic : DynamicSelection
        The dynamic selection of the training.
    metrics : mapping of str to float, optional
        Metrics on the test rows.
    name : str
        Title of the report.
    metric, direction : str
        The metric that is reported, and whether it should be large ("max") or small ("min").
    history : sequence of dict, optional
        ``session.history``, if the session was in another process, for example in a worker of Ray Train. By default, the
        history of the last session of this process.

    Returns
    -------
    RunResults
        One arm, ``chain``. The time outside of epochs was not measured, so the ledger has no total time.

    Raises
    ------
    StateError
        If no epoch has been trained.

    Examples
    --------
    >>> dynamic = raysel.DynamicSelection.local(raysel.RandomSubset(ratio=0.5), 10, num_epochs=2)
    >>> session = dynamic.session()
    >>> for epoch in session.epochs():
    ...     for batch in session.loader(torch.arange(10.0), batch_size=4):
    ...         mean = session.loss(batch, batch.data)   # the loss of a sample is here its value
    ...     entry = session.report()
    >>> results = raysel.training_results(dynamic, {"accuracy": 0.9})
    >>> results.ledger.saving_samples("chain"), results.score("chain")
    (0.5, 0.9)
    """
    run = dynamic.run
    entries = history if history is not None else dynamic.made.history if dynamic.made else ()
    if not entries:
        raise StateError(
            "training_results: No epoch has ended in this process; call training_results after the training, or give it history=session.history."
        )
    epochs = tuple(map(epoch_of, entries))
    planning = sum(epoch.planning_seconds for epoch in epochs)
    within = sum(epoch.seconds - epoch.evaluation_seconds for epoch in epochs)
    trained, pool = sum(epoch.trained for epoch in epochs), run.pool_rows or run.samples
    arm = Arm("chain", str(run.policy.get("name", "training")), run.samples, epochs, finite(metrics or {}))
    chosen = None if run.chosen else 0.0  # who made a Selection has not said what it cost
    goal = Goal(metric, direction)
    entry = LedgerEntry(
        arm=arm.name,
        title=arm.title,
        rows=arm.rows,
        epochs=len(epochs),
        samples_forward=trained,
        samples_backward=trained,
        steps=sum(epoch.steps for epoch in epochs),
        seconds={
            **dict.fromkeys(("embedding", "metrics", "selection"), chosen),
            "planning": planning,
            "training": max(0.0, within - planning),
        },
        metrics=arm.metrics,
    )
    return RunResults(
        name=name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        raysel=__version__,
        versions=library_versions("numpy", "ray", "torch"),
        seed=run.seed,
        config={"dynamic": dict(run.policy), "epochs": run.num_epochs, "max_steps": run.max_steps},
        data=Data(pool=pool),
        arms={arm.name: arm},
        ledger=Ledger([entry], goal=goal, full_samples=pool * run.num_epochs),
        goal=goal,
    )
