"""Run a workflow in a run directory: finished steps are reused, a killed run goes on, two runs never mix.

run/
  manifest.json            the configuration, versions, seed and input digests; whose run this is
  index/                   the order of the input files, which fixes every row's id
  steps/NAME-KEY/          one folder a step; KEY hangs on its configuration and inputs; done.json comes last
  results.json             everything the report shows
  compare.json, .md, .png, .html   what `raysel compare` leaves, in the same directory and from the same steps
  ledger.json, report.html
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raysel
from raysel.cluster.connect import connect as connect
from raysel.cluster.connect import quiet as quiet
from raysel.data.embed import weights_digest
from raysel.errors import RunError
from raysel.report.ledger import Ledger, LedgerEntry
from raysel.selection import Selection
from raysel.workflow import steps
from raysel.workflow.config import Factors, Workflow, digest, factors_of

_MANIFEST, DONE = "manifest.json", "done.json"
DYNAMICS = {
    "infobatch": "InfoBatch",
    "repdiv": "RepDiv",
    "random_prune": "random pruning",
    "random_subset": "random subsets",
    "round_robin": "round robin",
    "full": "",
}


class Progress:
    """One line a step on stderr: live in a terminal, only the finished steps elsewhere."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()

    def note(self, name: str, text: str) -> None:
        if self._live:
            self._stream.write(f"\r\x1b[2K  {name:<14} {text}")
            self._stream.flush()

    def done(self, name: str, text: str) -> None:
        self._stream.write(f"{chr(13) + chr(27) + '[2K' if self._live else ''}  {name:<14} {text}\n")
        self._stream.flush()


@dataclass
class RunDirectory:
    """A run directory that is this process's: the workflow, where its steps go, who is told of them."""

    workflow: Workflow
    out: Path
    progress: Progress
    created: str = ""
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def index(self) -> Path:
        return self.out / "index"

    def place(self, name: str, key: Any) -> tuple[Path, dict[str, Any] | None]:
        """The folder of a step and the answer that it left when it finished, None if it has not."""
        directory = self.out / "steps" / f"{name}-{digest([raysel.__version__, name, key])}"
        finished = directory / DONE
        return directory, json.loads(finished.read_text()) if finished.exists() else None

    def step(
        self, name: str, key: Any, work: Callable[[Path], dict[str, Any]]
    ) -> tuple[Path, dict[str, Any]]:
        """The folder and the answer of a step, from an earlier run if it was finished there.

        ``work`` fills the folder and answers something JSON can hold. Its seconds are kept with the answer, so
        that a reused step still costs in the ledger what it cost.
        """
        directory, finished = self.place(name, key)
        if finished is not None:
            self.progress.done(name, "reused")
            return directory, finished
        for left in directory.glob(
            "*"
        ):  # a step that did not finish starts anew; training keeps its checkpoints
            if left.name not in ("ray", "vectors"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        directory.mkdir(parents=True, exist_ok=True)
        self.progress.note(name, "...")
        began = time.perf_counter()
        answer = work(directory)
        answer["seconds"] = time.perf_counter() - began
        steps.write_json(directory / DONE, answer)
        self.progress.done(name, f"{answer['seconds']:.1f} s")
        return directory, answer


def run(
    workflow: Workflow, out: str | os.PathLike[str] | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Run ``workflow`` and return the results that the report shows; Ray must be up (see :func:`connect`).

    out: the run directory, by default ``runs/NAME``. Raises RunError if it holds another run, and the errors of
    the steps. Running again with the same workflow and directory does only what is missing.
    """
    counts = steps.check(workflow)
    train = workflow.train
    steps.check_room(
        train.workers, train.cpus_per_worker, train.gpus_per_worker
    )  # not after an hour of embedding
    with open_run(workflow, out, progress) as this:
        return _run(this, counts)


@contextmanager
def open_run(
    workflow: Workflow, out: str | os.PathLike[str] | None, progress: Progress | None
) -> Iterator[RunDirectory]:
    """Hold the run directory ``out`` (by default ``runs/NAME``) for this workflow, its inputs' rows numbered.

    RunError if it is another's, or another process is at work in it.
    """
    directory = Path(out) if out is not None else Path("runs") / workflow.name
    this = RunDirectory(workflow, directory.resolve(), progress or Progress())
    this.created = _claim(this)
    with _alone(this.out):
        this.digests = steps.number(workflow, this.index)
        yield this


@dataclass(frozen=True)
class Choice:
    """What a workflow trains on, and what choosing it took.

    rows: a Selection, or all so many rows. seconds: by stage of the ledger. metrics: the answer of that step, if they were
    measured. scored: the folder with the rows' scores where a policy needs them, and factors the answer of that step.
    """

    rows: Selection | int
    seconds: dict[str, float]
    metrics: dict[str, Any] | None = None
    scored: Path | None = None
    factors: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> pa.Table | None:
        """Rep and Div of every row, for RepDiv."""
        return None if self.scored is None else pq.read_table(self.scored / steps.SCORES)


def choose(this: RunDirectory, pool_rows: int, factors: Factors | None) -> Choice:
    """What the workflow trains on: measured, embedded and selected as it says. factors: how its rows are scored; None where
    no policy asks for scores."""
    before, metrics = _measure(this)
    vectors, embedding = _embed(this, factors, before)
    chosen_at, selecting = _select(this, vectors, before)
    selected = before if chosen_at is None else Selection.load(chosen_at)
    rows = pool_rows if selected is None else selected
    measuring = metrics["seconds"] if metrics else 0.0
    seconds = {"metrics": measuring, "embedding": embedding, "selection": selecting}
    if factors is None:
        return Choice(rows, seconds, metrics)
    assert vectors is not None
    flow = this.workflow
    key = [flow.key("pool", "target", "embed", "seed"), factors.model_dump(mode="json"), this.digests]
    key += [rows.digest() if isinstance(rows, Selection) else str(rows)]
    path, answer = this.step(
        "factors",
        [*key, weights_digest(flow.embed.embedder)],
        lambda path: steps.factors(
            flow, factors, this.index, vectors, rows, path, lambda text: this.progress.note("factors", text)
        ),
    )
    return Choice(rows, {**seconds, "metrics": measuring + answer["seconds"]}, metrics, path, answer)


def arrays(this: RunDirectory) -> tuple[Path, dict[str, Any]]:
    """The folder of the arrays to train from, and the step's answer."""
    workflow = this.workflow
    return this.step(
        "arrays",
        [workflow.key("pool", "test"), workflow.train.input, this.digests],
        lambda path: steps.arrays(workflow, this.index, path),
    )


def _run(this: RunDirectory, counts: dict[str, int]) -> dict[str, Any]:
    workflow = this.workflow
    choice = choose(this, counts["pool"], factors_of(workflow.dynamic))
    chosen = choice.rows
    subset = _random(this, chosen)
    shown = None if isinstance(chosen, int) else _selection(this, chosen)
    data, written = arrays(this)
    arms = _train(this, data, choice, subset, counts["pool"])
    ledger = Ledger([_entry(name, arm, choice if name == "chain" else None) for name, arm in arms.items()])
    results = {
        "name": workflow.name,
        "created": this.created,
        "raysel": raysel.__version__,
        "versions": versions(),
        "seed": workflow.seed,
        "config": workflow.model_dump(mode="json"),
        "data": {
            "pool": counts["pool"],
            "target": counts.get("target", 0),
            "test": counts.get("test", 0),
            "classes": written["classes"],
        },
        "inputs": this.digests,
        "metrics": choice.metrics,
        "selection": shown,
        "usage": _usage(this, choice, data),
        "arms": {
            name: {
                "title": arm["title"],
                "rows": arm["rows"],
                "epochs": [{**epoch, "loss": epoch["mean_loss"]} for epoch in arm["epochs"]],
            }
            for name, arm in arms.items()
        },
        "ledger": ledger.to_dict(),
    }
    steps.write_json(this.out / "results.json", results)
    ledger.save(this.out / "ledger.json")
    report(this.out)
    return results


def report(directory: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` of a finished run from its ``results.json``; RunError if there is none."""
    from raysel.report.page import write

    place = Path(directory)
    try:
        results = json.loads((place / "results.json").read_text())
        if not isinstance(results, dict) or "ledger" not in results:
            raise ValueError("results.json is not what a run writes")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{place}: holds no results to report ({getattr(error, 'strerror', None) or error}); "
            "give the directory of a finished run."
        ) from error
    return write(results, place / "report.html")


def _claim(this: RunDirectory) -> str:
    """Make the directory this run's, or find that it is; RunError if it is another's."""
    config = this.workflow.model_dump(mode="json")
    path = this.out / _MANIFEST
    if path.exists():
        try:
            before = json.loads(path.read_text())
            created, theirs = before["created"], before["config"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path}: damaged; move the directory away or choose another --out.") from error
        theirs = {**dict.fromkeys(config), **theirs}  # what was not yet known then is left out
        if theirs != config:
            raise RunError(
                f"{this.out}: holds another run, in which {_difference(theirs, config)}; "
                "choose another --out, or remove the directory."
            )
        return created
    if this.out.exists() and (not this.out.is_dir() or any(this.out.iterdir())):
        raise RunError(f"{this.out}: not empty, and not a run of raysel; choose another --out.")
    try:
        this.index.mkdir(parents=True, exist_ok=True)
        (this.out / "steps").mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{this.out}: cannot be written ({error.strerror}); choose another --out.") from error
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = {
        "created": created,
        "name": this.workflow.name,
        "seed": this.workflow.seed,
        "versions": versions(),
        "config": config,
    }
    steps.write_json(path, manifest)
    return created


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the run directory; RunError if another process does. The lock goes with its process, however it ends."""
    with open(directory / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{directory}: another process is at work in it; wait for it, or choose another --out."
            ) from error
        yield


def _difference(one: Any, other: Any, path: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                return _difference(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    return f"{path} is {one!r}, not {other!r}"


def _measure(this: RunDirectory) -> tuple[Selection | None, dict[str, Any] | None]:
    """What is chosen by the metrics, and the answer of the step."""
    flow = this.workflow
    if flow.gime is None:
        return None, None
    path, answer = this.step(
        "gime",
        [flow.key("pool", "target", "gime", "seed"), this.digests],
        lambda path: steps.measure(flow, this.index, path, lambda text: this.progress.note("gime", text)),
    )
    return Selection.load(path / "selection") if flow.gime.chooses else None, answer


def _before(before: Selection | None) -> list[str]:
    return [] if before is None else [before.digest()]


def _embed(
    this: RunDirectory, factors: Factors | None, before: Selection | None
) -> tuple[Path | None, float]:
    flow = this.workflow
    if factors is None and (flow.select is None or flow.select.method != "gio"):
        return None, 0.0
    key = [flow.key("pool", "target", "embed", "seed"), this.digests, weights_digest(flow.embed.embedder)]
    path, answer = this.step(
        "embed",
        [*key, *_before(before)],
        lambda path: steps.embed(
            flow, this.index, path, lambda text: this.progress.note("embed", text), before
        ),
    )
    return path / "vectors", answer["seconds"]


def _select(this: RunDirectory, vectors: Path | None, before: Selection | None) -> tuple[Path | None, float]:
    """Where the selection is, None if there is no such step, and its seconds."""
    flow = this.workflow
    if flow.select is None:
        return None, 0.0
    key = [flow.key("pool", "target", "embed", "select", "seed"), this.digests, *_before(before)]
    path, answer = this.step(
        "select", key, lambda path: steps.select(flow, this.index, vectors, path, before)
    )
    return path / "selection", answer["seconds"]


def _random(this: RunDirectory, chosen: Selection | int) -> tuple[Selection, float] | None:
    """The control's rows, as many as were chosen, and the seconds that drawing them took."""
    if "random" not in this.workflow.controls:
        return None
    count = len(chosen) if isinstance(chosen, Selection) else chosen
    path, drawn = this.step(
        "random",
        [this.digests, count, this.workflow.seed],
        lambda path: steps.random_subset(this.workflow, this.index, count, path),
    )
    return Selection.load(path / "selection"), drawn["seconds"]


def _train(
    this: RunDirectory, data: Path, choice: Choice, subset: tuple[Selection, float] | None, pool: int
) -> dict[str, dict[str, Any]]:
    """Each arm's title, rows, history and seconds of selecting; the chain first, since a control follows it."""
    flow = this.workflow
    titles = {"gio": "GIO", "random": "random"}
    parts = [
        "GIME" if flow.gime and flow.gime.chooses else "",
        titles[flow.select.method] if flow.select else "",
    ]
    parts.append(DYNAMICS[flow.dynamic.method])
    key: list[Any] = [flow.key("select", "embed", "target", "dynamic")]
    if flow.gime is not None:
        key.append(flow.key("gime"))
    chain = _fit(this, "chain", steps.policy(flow.dynamic, choice.scores), choice.rows, data, key)
    chain["title"] = " + ".join(filter(None, parts)) or "training"
    arms = {"chain": chain}
    if subset is not None:
        rows, seconds = subset
        total = sum(epoch["steps"] for epoch in chain["epochs"])
        arms["random"] = _fit(this, "random", raysel.FullData(), rows, data, [len(rows), total], total)
        arms["random"] |= {"title": "random, same size and steps", "selecting": seconds}
    if "full" in flow.controls:
        arms["full"] = _fit(this, "full", raysel.FullData(), pool, data, [])
        arms["full"]["title"] = "full pool"
    return {name: arms[name] for name in ("full", "random", "chain") if name in arms}


def _fit(
    this: RunDirectory,
    arm: str,
    rule: Any,
    chosen: Selection | int,
    data: Path,
    key: Any,
    max_steps: int | None = None,
) -> dict[str, Any]:
    flow = this.workflow
    name = f"train-{arm}"
    code = steps.model_digest(flow.train.model)
    full_key = [flow.key("pool", "test", "train", "seed"), code, rule.parameters(), this.digests, key]

    def work(path: Path) -> dict[str, Any]:
        return steps.train(
            flow,
            rule,
            chosen,
            data,
            path,
            name=path.name,
            max_steps=max_steps,
            watch=lambda text: this.progress.note(name, text),
        )

    _, answer = this.step(name, full_key, work)
    return answer


def _entry(name: str, arm: dict[str, Any], choice: Choice | None) -> LedgerEntry:
    """choice: what the choice of its rows and their scores took; None of a control, which was only drawn."""
    epochs = arm["epochs"]
    passes = sum(epoch["trained"] for epoch in epochs)
    planning = sum(epoch["planning_seconds"] for epoch in epochs)
    evaluation = sum(epoch["evaluation_seconds"] for epoch in epochs)
    calibration = ((choice and choice.metrics) or {}).get("calibration", {})
    training = sum(epoch["seconds"] for epoch in epochs) - planning - evaluation
    return LedgerEntry(
        arm=name,
        title=arm["title"],
        rows=arm["rows"],
        epochs=len(epochs),
        samples_forward=passes,
        samples_backward=passes,
        samples_proxy=calibration.get("rows_trained", 0),
        steps=sum(epoch["steps"] for epoch in epochs),
        seconds={
            **(
                choice.seconds
                if choice
                else {"embedding": 0.0, "metrics": 0.0, "selection": arm.get("selecting", 0.0)}
            ),
            "planning": planning,
            "training": training,
            # All the rest of the arm's wall time: starting workers, evaluation, checkpoints, epochs done twice.
            "other": max(0.0, arm["seconds"] - planning - training),
        },
        accuracy=epochs[-1]["accuracy"],
    )


def _selection(this: RunDirectory, chosen: Selection) -> dict[str, Any]:
    """What the report shows of the choice; counting its classes is the report's expense, not the selection's."""
    _, counted = this.step(
        "classes",
        [this.digests, chosen.digest()],
        lambda _: {"classes": steps.kept_classes(this.workflow, this.index, chosen)},
    )
    curve = chosen.info.get("curve", {"rows": [], "kl": []})
    return {
        "method": ", then ".join(
            filter(None, (info.get("method", "") for info in (chosen.info.get("before", {}), chosen.info)))
        ),
        "kept": len(chosen),
        "pool": chosen.info["pool_rows"],
        "curve": {"rows": curve["rows"], "kl": curve["kl"]},
        "classes": counted["classes"],
    }


def _usage(this: RunDirectory, choice: Choice, data: Path) -> dict[str, Any] | None:
    """What the report shows of the samples' use, where the policy scores them; the report's expense as well."""
    scored = choice.scored
    if scored is None:
        return None
    flow = this.workflow
    key = [flow.key("pool", "embed", "train", "dynamic", "seed"), this.digests, scored.name]
    _, answer = this.step("usage", key, lambda _: steps.usage(flow, this.index, scored, choice.rows, data))
    return {**choice.factors, **answer}


def versions() -> dict[str, str]:
    """Of Python and of the packages that the numbers hang on."""
    names = ("raysel", "ray", "torch", "numpy", "pyarrow", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = raysel.__version__ if name == "raysel" else "unknown"
    return found
