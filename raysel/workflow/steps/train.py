"""Train one arm of a run on Ray Train."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import raysel
from raysel.cluster.code import load_function, load_object
from raysel.cluster.wait import may_grow, wait_for_workers
from raysel.core.fingerprint import fingerprint, folder_digest, library_versions
from raysel.core.storage import Place, is_folder, resolve
from raysel.data.row_index import ID
from raysel.dynamic.plan import Policy
from raysel.dynamic.state import SampleState
from raysel.errors import ConfigError, ResourceError, RunError, first
from raysel.registry import LOOPS
from raysel.report.goal import finite
from raysel.report.training import epoch_of
from raysel.selection import Selection
from raysel.train import loops
from raysel.train.adapters.frameworks import OPTIONS
from raysel.train.epoch_log import EPOCHS
from raysel.train.optimizers import load_optimizer, load_schedule
from raysel.train.settings import Train as Settings
from raysel.train.trackers import Training, check_installed
from raysel.workflow.config import Method, Workflow
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.inputs import Look
from raysel.workflow.steps.arrays import Arrays, facts, made, streams
from raysel.workflow.steps.factors import scores
from raysel.workflow.steps.step import Step
from raysel.workflow.workers import Workers


@dataclass(frozen=True)
class Train(Step):
    """One arm.

    Attributes
    ----------
    arm : {"chain", "random", "full"}
        The workflow's own selection and policy; a random subset of equal size for as many optimizer steps; all rows
        of the pool.
    """

    arm: str
    settings: Settings
    workers: Workers | None = field(default=None, compare=False)
    version: ClassVar[int] = 5
    resumable: ClassVar[tuple[str, ...]] = ("ray", "checkpoints")
    kept: ClassVar[tuple[str, ...]] = (EPOCHS,)

    @property
    def name(self) -> str:  # type: ignore[override]
        """``train-ARM``."""
        return f"train-{self.arm}"

    @property
    def about(self) -> str:
        """What the step makes."""
        return {
            "chain": "training with the workflow's methods",
            "random": "training on as many random rows",
            "full": "training on the full pool",
        }[self.arm]

    def check(self, look: Look) -> None:
        """Check which settings go together, and what a built-in policy can be asked without its scores."""
        check_settings(look.workflow)
        method, epochs = look.workflow.dynamic, self.settings.epochs
        if self.arm != "chain" or not method.builtin or needs_scores(look.workflow):
            return
        try:  # a saving that is out of reach is said when the first epoch is planned
            method.make().plan(SampleState.empty(1), epoch=0, num_epochs=epochs, seed=0)
        except ConfigError as error:
            raise ConfigError(f"dynamic: {error}") from None

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the settings, code of the model and the policy, rows, arrays, seed and number of steps."""
        policy, rows, max_steps = self._task(run)
        return {
            **train_key(run),
            "policy": policy.parameters(),
            "code": policy_code(run, run.workflow.dynamic) if self.arm == "chain" else None,
            "rows": digest_of(rows),
            "max_steps": max_steps,
            "seed": run.workflow.seed,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Train, from the last checkpoint in the folder if there is one."""
        policy, rows, max_steps = self._task(run)
        log = (
            directory / EPOCHS if self.arm == "chain" else None
        )  # read by `raysel explain` and the step labels
        return fit(
            run, policy, rows, directory, max_steps=max_steps, title=self.title, workers=self.workers, log=log
        ) | {"title": self._title(run)}

    def _task(self, run: RunDirectory) -> tuple[Policy, Selection | None, int | None]:
        if self.arm == "chain":
            return policy(run), run.rows, None
        if self.arm == "random":
            rows = Selection.load(run.finished["random"].directory / "selection")
            steps = sum(epoch["steps"] for epoch in run.finished["train-chain"].answer["epochs"])
            return raysel.FullData(), rows, steps
        return raysel.FullData(), run.base, None

    def _title(self, run: RunDirectory) -> str:
        if self.arm != "chain":
            return {"random": "random, same size and steps", "full": "full pool"}[self.arm]
        flow = run.workflow
        parts = ["GIME"] if flow.gime is not None and flow.gime.selects else []
        parts += [method.title for method in flow.select]
        parts += [flow.dynamic.title] if flow.dynamic.spec != "full" else []
        return " + ".join(parts) or "training"


def needs_scores(workflow: Workflow) -> bool:
    """Whether the policy needs RepDiv's scores of the rows; False for code that was not loaded."""
    method = workflow.dynamic
    loaded = method.builtin or "type" in method.__dict__
    return loaded and bool(getattr(method.type, "needs_scores", False))


def policy(run: RunDirectory) -> Policy:
    """Return the workflow's dynamic policy, with the scores that it needs."""
    made: Any = run.workflow.dynamic.make(seed=run.workflow.seed)
    table = scores(run)
    return made if table is None or not needs_scores(run.workflow) else made.with_scores(table)


def check_settings(workflow: Workflow) -> None:
    """Raise ConfigError for settings of a training that do not go together."""
    settings = workflow.train
    for name, wanted in (("patience", settings.patience is not None), ("keep", settings.keep == "best")):
        if wanted and workflow.validation is None:
            raise ConfigError(
                f"train.{name}: This needs validation rows, but the key 'validation' is missing; give it a share, such as 0.1."
            )
    if settings.data == "stream" and settings.accumulate > 1:
        raise ConfigError(
            "train.accumulate: With streamed rows (train.data: stream), gradients cannot be accumulated over several forward "
            "passes; use train.data: arrays."
        )
    if settings.elastic:
        if settings.loop is not None:
            raise ConfigError(
                f"train.workers: Only the built-in loop can change the number of workers during a training, but train.loop is "
                f"{settings.loop}; give one number."
            )
        if settings.data == "stream":
            raise ConfigError(
                "train.workers: A training on streamed rows cannot change its number of workers; give one number, or use "
                "train.data: arrays."
            )
    if settings.loop is None and settings.options:
        raise ConfigError(
            "train.options: Only a loop that train.loop names reads these options, but train.loop is not set; set it, or remove the "
            "options."
        )
    unread: tuple[str, ...] = _UNREAD if settings.loop is not None else ()
    if framework(settings):
        unread = (*(name for name in _UNREAD if name != "accumulate"), "learning_rate")
    changed = [name for name in unread if getattr(settings, name) != getattr(Settings(), name)]
    if changed and framework(settings):
        raise ConfigError(
            f"train.{changed[0]}: The loop {settings.loop} does not read this key; instead, give an argument "
            f"of {OPTIONS[str(settings.loop)]} with the same effect under train.options."
        )
    if changed:
        raise ConfigError(
            f"train.{changed[0]}: A training loop of your own does not receive this key; give it under train.options, and read "
            "it there."
        )
    if framework(settings) and settings.data == "stream":
        raise ConfigError(
            f"train.data: The loop {settings.loop} cannot train on streamed rows; use train.data: arrays."
        )


def framework(settings: Settings) -> bool:
    """Return whether the training loop is that of a framework, such as the Hugging Face Trainer."""
    return settings.loop in LOOPS.builtin


def by_task(settings: Settings) -> bool:
    """Return whether the training loop makes the model and the losses as the task does."""
    return settings.loop is None or framework(settings)


_UNREAD = (
    "accumulate", "optimizer", "schedule", "warmup", "clip", "precision", "compile", "parallel", "evaluate_every", "patience",
    "keep", "track",
)  # fmt: skip
"""Settings of the built-in training loop alone."""


def load_factory(settings: Settings) -> Callable[..., Any] | None:
    """Return the function that makes the model, None if the task makes it; raise ConfigError if it is not there."""
    return None if settings.model is None else load_function(settings.model, "train.model")


def load_loop(settings: Settings) -> Callable[[dict[str, Any]], Any]:
    """Return the user's training loop, or the built-in one. Raises ConfigError for one that takes no configuration."""
    if settings.loop is None:
        return loops.train
    found = LOOPS.find(settings.loop, "train.loop", load_function)
    try:
        inspect.signature(found).bind({})
    except TypeError:
        raise ConfigError(
            f"train.loop: {settings.loop} cannot be called with one argument; write it as a function of its configuration, a dict."
        ) from None
    return found


def check_output(workflow: Workflow, out: Place) -> None:
    """Raise ConfigError for a run directory in an object store with a loop or tracker that writes local files."""
    local = [f"train.loop: The loop {workflow.train.loop}"] if framework(workflow.train) else []
    local += [f"{tracker.where}: The tracker {tracker.spec}" for tracker in workflow.trackers]
    if local and not isinstance(out, Path):
        raise ConfigError(
            f"{local[0]} needs a run directory on a file system, but {out} is in an object store; give another --out."
        )


def load_trackers(workflow: Workflow) -> list[Any]:
    """Return the trackers; raise ConfigError for one that cannot be used, such as one whose package is missing."""
    made = [(method.make(), method.spec) for method in workflow.trackers]
    for tracker, name in made:
        check_installed(tracker, name)
    return [tracker for tracker, _ in made]


def check_room(workers: int, cpus: float, gpus: float, seconds: float | None = None) -> None:
    """Raise ResourceError unless the cluster can place the workers, after 15 minutes if it may grow."""
    advice = "Lower train.workers or train.cpus_per_worker"
    wait_for_workers(f"train.workers: {workers} workers", workers, cpus, gpus, advice, seconds)


def check_reading(settings: Settings) -> None:
    """Raise ResourceError if the workers leave Ray Data no CPU of the cluster to stream rows with."""
    import ray

    have, taken = ray.cluster_resources().get("CPU", 0.0), settings.most_workers * settings.cpus_per_worker
    if have - taken < 1 and not may_grow():
        raise ResourceError(
            f"train.data: The workers take {taken:g} of the {have:g} CPUs of the cluster, so less than one CPU is left to read "
            "streamed rows; lower train.workers or train.cpus_per_worker, or use train.data: arrays."
        )


def train_key(run: RunDirectory) -> dict[str, Any]:
    """Part of the key of every training: settings, the code of model, task and loop, and the rows."""
    flow = run.workflow
    settings = asdict(flow.train)
    for name in (
        "max_failures",
        "version",
        "task",
        "data",
        "track",
    ):  # which decide no result, or are keys below
        del settings[name]
    settings["cpus_per_worker"] = threads(flow.train)  # of the CPUs the threads alone decide a result
    return {
        "train": settings,
        # A version stands for the code of the task, never for its parameters.
        "task": flow.task.key() if flow.train.version is None else flow.task.describe(),
        "files": folders(flow),
        "own": own_code(flow.train),
        "arrays": Arrays(flow.task).content(run),
        "versions": library_versions(
            "numpy", "torch", *(("transformers", "lightning") if framework(flow.train) else ())
        ),
    }


def own_code(settings: Settings) -> dict[str, str] | str:
    """Return what identifies the user's code under ``train``: its version if there is one, else its fingerprints."""
    return code_digests(settings) if settings.version is None else f"version {settings.version}"


def code_digests(settings: Settings) -> dict[str, str]:
    """Return a fingerprint of every function and class of the user's own that a key under ``train`` names."""
    given = settings.optimizer
    optimizer = given if isinstance(given, str) else given.get("method", "")
    named = {
        "model": settings.model,
        "loop": settings.loop,
        "schedule": settings.schedule,
        "optimizer": optimizer,
    }
    return {
        name: fingerprint(
            (load_object if name == "optimizer" else load_function)(spec, f"train.{name}"),
            f"{name} '{spec}'",
            "give train.version",
        )
        for name, spec in named.items()
        if spec is not None and ":" in spec
    }


def folders(workflow: Workflow) -> dict[str, str]:
    """Return a digest of every folder that the task names, such as a tokenizer or a pretrained model."""
    task = made(workflow)
    named = {name: getattr(task, name) for name in getattr(task, "paths", ())}
    return {name: folder_digest(place) for name, place in named.items() if place and Path(place).is_dir()}


def threads(settings: Settings) -> int:
    """Threads of a worker."""
    return max(1, int(settings.cpus_per_worker))


def policy_code(run: RunDirectory, method: Method) -> Any:
    """Part of a key: code of a policy of the user's own, and the scores of one that needs them."""
    needs = getattr(method.type, "needs_scores", False) and "factors" in run.finished
    return [
        None if method.builtin else method.key(),
        run.finished["factors"].directory.name if needs else None,
    ]


def loop_config(run: RunDirectory) -> dict[str, Any]:
    """Return what the training loop gets wherever it runs, apart from the selection and the seed."""
    settings, folder = run.workflow.train, run.finished["arrays"].directory
    places = {role: folder / role for role in ("pool", "validation", "test")}
    data = {role: place if is_folder(place) else None for role, place in places.items()}
    return {
        "data": {"facts": facts(run, load_factory(settings)), **data},
        "task": made(run.workflow),
        "settings": settings,
        "optimizer": load_optimizer(settings.optimizer, settings.learning_rate),
        "schedule": load_schedule(settings.schedule),
        "loop": load_loop(settings),
        "model_folder": None,
    }


def loop(settings: Settings) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what a worker runs."""
    return loops.train if settings.loop is None else loops.own


def epochs_for(rows: int, batch: int, max_steps: int) -> int:
    """Epochs over all ``rows`` that ``max_steps`` steps of ``batch`` rows take, the last one begun."""
    return -(-max_steps // -(-rows // batch))


def fit(
    run: RunDirectory,
    policy: Policy,
    rows: Selection | None,
    directory: Place,
    *,
    max_steps: int | None = None,
    title: str = "train",
    workers: Workers | None = None,
    log: Place | None = None,
) -> dict[str, Any]:
    """Train on Ray Train; continues from the last checkpoint in ``directory``.

    Parameters
    ----------
    rows : Selection or None
        Rows to train on, None for the complete pool.
    max_steps : int, optional
        Stop after so many steps, over as many epochs as that takes.
    workers : Workers, optional
        Workers that train all arms; by default a run of Ray Train is started for this arm.
    log : Place, optional
        Folder for what every epoch trained.

    Returns
    -------
    dict
        ``rows``, ``epochs`` (an entry per epoch), ``metrics`` on the test rows, ``goal``; ``startup``, the seconds in which
        the workers of all arms started, 0 if the arm has its own; ``started``, whether they started for this arm.
    """
    flow, settings = run.workflow, run.workflow.train
    # On an object store, where nothing can be renamed, Ray Train keeps the checkpoints: one row of them per fit.
    together = workers is not None and not streams(run) and isinstance(directory, Path)
    if workers is None or not workers.started:
        check_room(settings.fewest_workers, settings.cpus_per_worker, settings.gpus_per_worker)
    if streams(run):
        check_reading(settings)
    count, epochs = run.count(rows), settings.epochs
    if max_steps is not None:
        epochs = epochs_for(
            count, settings.batch_size * settings.most_workers * settings.accumulate, max_steps
        )
    with raysel.DynamicSelection(
        policy,
        count if rows is None else rows,
        num_epochs=epochs,
        seed=flow.seed,
        max_steps=max_steps,
        checkpoints=str(directory / "checkpoints") if together else None,
    ) as dynamic:
        config = {
            **loop_config(run),
            "dynamic": dynamic,
            "alone": False,
            "seed": flow.seed,
            "threads": threads(settings),
            "model_folder": str(directory / "model"),
            "epoch_log": None if log is None else str(log),
            "checkpoints": str(directory / "ray" / "checkpoints"),
            "trackers": load_trackers(flow),
            "training": Training(
                workflow=flow.name,
                arm=title.removeprefix("train-"),
                folder=Path(str(directory)),
                run=Path(str(run.out)),
                pool=run.count(run.base),
                rows=count,
            ),
        }
        done = threading.Event()
        follower = threading.Thread(target=_follow, args=(dynamic, epochs, run, title, done), daemon=True)
        follower.start()
        try:
            if together:
                assert workers is not None and isinstance(directory, Path)
                trained, started = workers.train(config, directory / "ray")
            else:
                trained, started = _own_fit(run, config, rows, directory), True
        finally:
            done.set()
            follower.join()
    if not trained or not trained["history"]:
        raise RunError(f"The training wrote no history to {directory}; remove the folder and run again.")
    startup = workers.startup if workers is not None and together else 0.0
    return {"rows": count, **answer_of(trained), "startup": startup, "started": started}


def _own_fit(run: RunDirectory, config: dict[str, Any], rows: Selection | None, directory: Place) -> Any:
    """Train one arm as a run of Ray Train, which keeps the checkpoints; return what the loop returned."""
    from ray.train import CheckpointConfig

    from raysel.workflow.trainer import train_on_workers

    settings = run.workflow.train
    filesystem, path = resolve(directory / "ray")
    return train_on_workers(
        loop(settings),
        config,
        settings,
        max_failures=settings.max_failures,
        datasets={"train": planned(run, config["dynamic"], rows)} if streams(run) else None,
        name=directory.name,  # holds the step's key, since Ray Train continues any run of the same name
        storage_path=path,
        storage_filesystem=filesystem,
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )


_PREPARED = 256  # rows that are prepared at once: decoded images are many times as large as encoded ones


def planned(run: RunDirectory, dynamic: Any, rows: Selection | None) -> Any:
    """Return the rows of each epoch's plan as a Ray Dataset, prepared by the task on the cluster's CPUs."""
    task = made(run.workflow)
    found = dynamic.planned(run.among(rows).select_columns([ID, *task.columns]))
    prepare = getattr(task, "prepare", None)
    return (
        found if prepare is None else found.map_batches(prepare, batch_size=_PREPARED, batch_format="numpy")
    )


def answer_of(trained: dict[str, Any]) -> dict[str, Any]:
    """Return what a step keeps of the result of a training loop. Metrics that are not finite become None."""
    epochs = [asdict(epoch_of(entry)) for entry in trained["history"]]
    metrics, goal = finite(trained["metrics"]), trained["goal"]
    if metrics and goal["metric"] not in metrics:
        raise RunError(
            f"The training returned the metrics {first(metrics)}, but not '{goal['metric']}', which the "
            "workflow reports; return this metric from the evaluation."
        )
    return {"epochs": epochs, "metrics": metrics, "goal": goal}


def _follow(dynamic: Any, epochs: int, run: RunDirectory, title: str, done: threading.Event) -> None:
    while not done.wait(1.0):
        try:
            committed, last = dynamic.progress()
        except Exception:  # the actor may be restarting; the next second tells
            continue
        if last is not None:
            loss = "" if last["mean_loss"] is None else f", loss {last['mean_loss']:.3f}"
            run.progress.note(title, f"epoch {committed}/{epochs}{loss}")
