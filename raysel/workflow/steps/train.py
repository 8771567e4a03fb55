"""Train one arm of a run on Ray Train."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import raysel
from raysel.cluster.code import load_function, load_object
from raysel.cluster.wait import wait_for_workers
from raysel.core.fingerprint import fingerprint, library_versions
from raysel.dynamic.plan import Policy
from raysel.dynamic.state import SampleState
from raysel.errors import ConfigError, RunError, first
from raysel.registry import TASKS
from raysel.report.goal import finite
from raysel.report.results import Epoch
from raysel.selection import Selection
from raysel.workflow.config import Method, Workflow
from raysel.workflow.config import Train as Settings
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.inputs import Look
from raysel.workflow.steps.factors import scores
from raysel.workflow.steps.step import Step


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
    version: ClassVar[int] = 2
    resumable: ClassVar[tuple[str, ...]] = ("ray",)

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
        """Check what a built-in policy can be asked without its scores."""
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

    def run(self, run: RunDirectory, directory: Path) -> dict[str, Any]:
        """Train, from the last checkpoint in the folder if there is one."""
        policy, rows, max_steps = self._task(run)
        return fit(
            run, policy, rows, directory, name=directory.name, max_steps=max_steps, title=self.title
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


def load_factory(settings: Settings) -> Callable[[tuple[int, ...], int], Any]:
    """Return the function that makes the model; raise ConfigError if there is none."""
    return load_function(settings.model, "train.model")


def load_loop(settings: Settings) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the training loop of the task. Raises ConfigError if there is none."""
    found: Callable[[dict[str, Any]], dict[str, Any]] = TASKS.find(settings.task, "train.task", load_object)
    if not callable(found):
        raise ConfigError(f"train.task: {settings.task} is a {type(found).__name__}, not a training loop.")
    return found


def check_room(workers: int, cpus: float, gpus: float, seconds: float = 60.0) -> None:
    """Raise ResourceError unless the cluster can place the workers within ``seconds``."""
    advice = "Lower train.workers or train.cpus_per_worker"
    wait_for_workers(f"train.workers: {workers} workers", workers, cpus, gpus, advice, seconds)


def train_key(run: RunDirectory) -> dict[str, Any]:
    """Part of the key of every training: settings, the model's code, the arrays and the validation rows."""
    settings = asdict(run.workflow.train)
    del settings["max_failures"], settings["version"]  # and of the CPUs the threads alone decide a result
    settings["cpus_per_worker"] = threads(run.workflow.train)
    return {
        "train": settings,
        "task": None
        if run.workflow.train.task in TASKS.builtin
        else fingerprint(load_loop(run.workflow.train), "train.task"),
        "model": model_code(run.workflow.train),
        "arrays": run.finished["arrays"].directory.name,
        "validation": run.drawn and run.drawn.key,
        "versions": library_versions("numpy", "torch"),
    }


def model_code(settings: Settings) -> str:
    """Return what identifies the code of the model: its version if there is one, else its fingerprint."""
    if settings.version is not None:
        return f"version {settings.version}"
    return fingerprint(load_factory(settings), f"model '{settings.model}'", "give train.version")


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
    """Return the training loop and its settings, wherever it runs."""
    settings, data = run.workflow.train, run.finished["arrays"].directory
    validation = run.drawn.role if run.drawn is not None else "validation"
    return {
        "train": str(data / "pool"),
        "test": str(data / "test") if "test" in run.inputs else None,
        "validation": str(data / validation) if validation in run.inputs else None,
        "validation_ids": None if run.drawn is None else run.drawn.ids,
        "loop": load_loop(settings),
        "model": load_factory(settings),
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
    }


def epochs_for(rows: int, batch: int, max_steps: int) -> int:
    """Epochs over all ``rows`` that ``max_steps`` steps of ``batch`` rows take, the last one begun."""
    return -(-max_steps // -(-rows // batch))


def fit(
    run: RunDirectory,
    policy: Policy,
    rows: Selection | None,
    directory: Path,
    *,
    name: str,
    max_steps: int | None = None,
    title: str = "train",
) -> dict[str, Any]:
    """Train on Ray Train; continues from the last checkpoint in ``directory``.

    Parameters
    ----------
    rows : Selection or None
        Rows to train on, None for the complete pool.
    name : str
        Name of the Ray Train run. It holds the step's key, since Ray Train continues any run of the same name.
    max_steps : int, optional
        Stop after so many steps, over as many epochs as that takes.

    Returns
    -------
    dict
        ``rows``, ``epochs`` (an entry per epoch), ``metrics`` on the test rows, and ``goal``.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    flow, settings = run.workflow, run.workflow.train
    check_room(settings.workers, settings.cpus_per_worker, settings.gpus_per_worker)
    count, epochs = run.count(rows), settings.epochs
    if max_steps is not None:
        epochs = epochs_for(count, settings.batch_size * settings.workers, max_steps)
    config = loop_config(run)
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    with raysel.DynamicSelection(
        policy, count if rows is None else rows, num_epochs=epochs, seed=flow.seed, max_steps=max_steps
    ) as dynamic:
        trainer = TorchTrainer(
            config["loop"],
            train_loop_config={
                **config,
                "dynamic": dynamic,
                "alone": False,
                "batch_size": settings.batch_size,
                "seed": flow.seed,
                "threads": threads(settings),
            },
            scaling_config=ScalingConfig(
                num_workers=settings.workers,
                use_gpu=settings.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(directory / "ray"),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        done = threading.Event()
        follower = threading.Thread(target=_follow, args=(dynamic, epochs, run, title, done), daemon=True)
        follower.start()
        try:
            result = trainer.fit()
        finally:
            done.set()
            follower.join()
    trained = result.return_value
    if not trained or not trained["history"]:
        raise RunError(f"The training wrote no history to {directory}; remove the folder and run again.")
    return {"rows": count, **answer_of(trained)}


def answer_of(trained: dict[str, Any]) -> dict[str, Any]:
    """Return what a step keeps of the result of a training loop. Metrics that are not finite become None."""
    epochs = [
        asdict(
            Epoch(
                **{
                    name: entry[name]
                    for name in (
                        "epoch", "planned", "trained", "steps", "seconds", "planning_seconds",
                        "evaluation_seconds", "nonfinite", "digest",
                    )
                },
                loss=entry["mean_loss"],
                metrics=finite(entry["metrics"]),
            )
        )
        for entry in trained["history"]
    ]  # fmt: skip
    metrics, goal = finite(trained["metrics"]), trained["goal"]
    if metrics and goal["metric"] not in metrics:
        raise RunError(
            f"The training returned the metrics {first(metrics)}, but not '{goal['metric']}', which is the one to report; return "
            "it from the evaluation."
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
