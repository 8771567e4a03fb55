"""The command line, which holds no logic."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from raysel.cluster.errors import own_error
from raysel.version import __version__


def _workflow(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument WORKFLOW and the option --set to a command."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace the value of KEY in the workflow by VALUE, for example --set select.budget=0.2. Can be given several times.",
    )(command)
    return click.argument("workflow", type=click.Path(path_type=Path))(command)


_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the results to this directory.  [default: runs/NAME, where NAME is the key 'name' of WORKFLOW]",
)
_fresh = click.option(
    "--fresh",
    is_flag=True,
    help="First remove all earlier results from the output directory, so that everything is computed again.",
)
_address = click.option(
    "--address",
    help="Use the Ray cluster at the address HOST:PORT, or, with 'auto', the Ray cluster that runs on this machine. This "
    "machine must be a node of the cluster.  [default: the environment variable RAY_ADDRESS; if it is not set, "
    "start Ray on this machine]",
)


_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON with all results, in place of a table."
)


def _messages(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --quiet and --verbose to a command, which receives where progress is written as ``progress``."""

    @functools.wraps(command)
    def call(*given: Any, quiet: bool, verbose: bool, **named: Any) -> None:
        from raysel.workflow.directory import Progress

        if quiet and verbose:
            raise click.UsageError(
                "The options --quiet and --verbose cannot be given together; remove one of them."
            )
        if verbose:
            logging.basicConfig(format="%(name)s: %(message)s")
            logging.getLogger("raysel").setLevel(logging.DEBUG)
        command(*given, progress=Progress(quiet=quiet), **named)

    call = click.option("--quiet", is_flag=True, help="Print no progress, only warnings and errors.")(call)
    return click.option(
        "--verbose",
        is_flag=True,
        help="Also print detailed messages, for example to find the cause of an error.",
    )(call)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raysel")
def cli() -> None:
    """Select training data for PyTorch models on Ray: rows before the training, and samples in every epoch.

    Most commands read a WORKFLOW, a YAML file that names the data, the methods and the model. 'raysel init classify'
    writes a workflow to start from, and 'raysel run' runs it.
    """


@cli.command(short_help="Select rows, train on them and write a report.")
@_workflow
@_out
@_fresh
@_address
@_json
@_messages
def run(
    workflow: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    fresh: bool,
    address: str | None,
    as_json: bool,
    progress: Any,
) -> None:
    """Select rows of the data in WORKFLOW, train the model on them, and write a report.

    WORKFLOW is a YAML file that names the data, the methods and the model.

    The printed table has one row per training. It shows the costs of each training, such as its seconds, and what the
    training saves compared with a training on all rows. If the command is repeated, it reuses all results that are already
    computed, and resumes an interrupted training.

    If WORKFLOW has no section 'train', the command only selects rows, and prints where the selection is.
    """
    from raysel.report.tables import run_text
    from raysel.workflow import config
    from raysel.workflow.run import run as run_workflow
    from raysel.workflow.submit import check_version

    check_version()
    results = run_workflow(
        config.load(workflow, list(overrides)), out, fresh=fresh, address=address, progress=progress
    )
    if as_json:
        click.echo(results.json())
        return
    click.echo(run_text(results))
    click.echo(f"\nReport: {results.path}/report.html")


@cli.command(short_help="Run a workflow as a job of a Ray cluster.")
@_workflow
@click.option("--address", required=True, help="Address of the dashboard of the cluster: http://HEAD:8265.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Write the results to this directory: a URI such as s3://bucket/run, or an absolute path of a shared file system.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Print the log of the job until the job ends, and exit with the exit code of the job.",
)
@click.option(
    "--runtime-env",
    type=click.Path(path_type=Path),
    help="YAML file with a runtime environment of Ray, such as packages and environment variables for the job.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the id of the job and its directory as one line of JSON; "
    "with --follow, the log goes to stderr.",
)
def submit(
    workflow: Path,
    overrides: tuple[str, ...],
    address: str,
    out: Path,
    follow: bool,
    runtime_env: Path | None,
    as_json: bool,
) -> None:
    """Run WORKFLOW as a job of the Ray cluster at --address.

    WORKFLOW is a YAML file that names the data, the methods and the model. The command sends WORKFLOW and the files of
    code that WORKFLOW names to the cluster, but no data. If the command is repeated while the job runs, it does not
    start a second job, but prints the id of the running job. If the command is repeated after the job has ended, it
    starts a new job, which reuses the results in the directory of --out.
    """
    from raysel.workflow.submit import follow as follow_job
    from raysel.workflow.submit import submit as submit_workflow

    job = submit_workflow(workflow, address, out, overrides=list(overrides), runtime_env=runtime_env)
    click.echo(
        f"Job {job.id} {'is running' if job.attached else 'was submitted'}. Results: {job.out}", err=True
    )
    if as_json:
        click.echo(json.dumps(asdict(job)))
    if follow:
        sys.exit(follow_job(address, job.id, lambda text: click.echo(text, nl=False, err=as_json)))


@cli.command(short_help="Compare ways to select the samples of each epoch.")
@_workflow
@click.option(
    "--policies",
    default="full, full_equal_steps, random_prune, round_robin, infobatch",
    show_default=True,
    metavar="A,B,...",
    help="Compare with these policies. Each is a name that 'raysel methods' lists, a class of your own as file.py:Name, or "
    "full_equal_steps, which trains on all samples, for as many optimizer steps as the policy of WORKFLOW takes. The "
    "policy of WORKFLOW is always included.",
)
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    help="Train this many models with each policy. The first model has the random seed of WORKFLOW, and each further model has the next higher seed.",
)
@_out
@_fresh
@_address
@_json
@_messages
def compare(
    workflow: Path,
    overrides: tuple[str, ...],
    policies: str,
    seeds: int,
    out: Path | None,
    fresh: bool,
    address: str | None,
    as_json: bool,
    progress: Any,
) -> None:
    """Compare the policy of WORKFLOW with other policies, the controls.

    WORKFLOW is a YAML file that names the data, the methods and the model. A policy is a rule that selects the
    samples of each epoch. The key 'dynamic' of WORKFLOW names the policy. Most of the controls train on as many samples
    as the policy of WORKFLOW. The command trains one model per policy and seed, prints a table of the metrics on the test
    rows and of the differences between the policies, and writes a report. If the command is repeated, it reuses finished
    trainings.
    """
    from raysel.report.comparison.tables import text
    from raysel.workflow import config
    from raysel.workflow.compare import compare as compare_policies

    loaded = config.load(workflow, list(overrides))
    names = [name.strip() for name in policies.split(",")]
    results = compare_policies(loaded, names, seeds, out, fresh=fresh, address=address, progress=progress)
    if as_json:
        click.echo(results.json())
        return
    click.echo(text(results))
    click.echo(f"\nReport: {results.path}/compare.html")


@cli.command(short_help="Measure properties of a data set, such as its variety, without a training.")
@_workflow
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the results to this directory.  [default: runs/NAME-measure, where NAME is the key "
    "'name' of WORKFLOW]",
)
@_address
@_json
@_messages
def measure(
    workflow: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    address: str | None,
    as_json: bool,
    progress: Any,
) -> None:
    """Compute the eleven metrics of GIME for the pool of WORKFLOW (the rows to select from).

    WORKFLOW is a YAML file that names the data, the methods and the model. The metrics, such as volume, variety and
    delay, describe a data set without training a model on it. WORKFLOW needs the section 'gime', which describes what
    each column means. If the command is repeated, it reads only the files that were not measured before.
    """
    from raysel.report import metrics
    from raysel.workflow import config
    from raysel.workflow.measure import measure as measure_workflow

    results = measure_workflow(
        config.load(workflow, list(overrides)), out, address=address, progress=progress
    )
    if as_json:
        click.echo(results.json())
        return
    click.echo(metrics.text(results.sets))
    sets = f"the metrics of {' and '.join(results.sets)} (sets.parquet)"
    groups = f" and of {len(results.groups):,} groups (groups.parquet)" if results.groups else ""
    click.echo(f"\nReport: {results.path}/metrics.html. In the same directory: {sets}{groups}.")


@cli.command(short_help="Check a workflow and its files, without Ray.")
@_workflow
@click.option(
    "--load",
    is_flag=True,
    help="Also check the code that WORKFLOW names, such as that of the model: import it and run it on a few rows.",
)
def validate(workflow: Path, overrides: tuple[str, ...], load: bool) -> None:
    """Check the keys of WORKFLOW, and the files and columns that it names, without starting Ray.

    WORKFLOW is a YAML file that names the data, the methods and the model.
    The code that WORKFLOW names, such as that of the model, is run only with --load.
    """
    from raysel.cluster.connect import ray_for_code
    from raysel.workflow import config, steps
    from raysel.workflow.load import load_check, unloaded

    loaded = config.load(workflow, list(overrides))
    found = steps.check(loaded)
    if load:
        with ray_for_code("local"):
            load_check(loaded)
            found = steps.check(loaded)
    counts = ", ".join(f"{role} {rows:,} rows" for role, rows in found.counts.items())
    click.echo(f"{workflow} is valid{f' ({counts})' if counts else ''}.")
    for sentence in found.sentences():
        click.echo(f"  {sentence}")
    if not load and (left := unloaded(loaded)):
        click.echo("Not checked, because --load was not given: " + ", ".join(left))


@cli.command(short_help="Write the report of a finished run again.")
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html again, from the results of a finished run in the directory RUN.

    RUN is a directory in which 'raysel run' has written its results. RUN can also be a file with saved results of a
    training without a workflow, for example results.json; the command then writes results.html. The Python function
    'raysel.training_results' returns such results.
    """
    from raysel.workflow.run import report as write_report

    click.echo(f"Report: {write_report(run).resolve()}")


@cli.command(short_help="Print why rows were selected or dropped.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=int,
    help="Print the reason for the row with this number (its sample_id), and the epochs that trained it.  [default: print all reasons, each with its number of rows]",
)
@click.option(
    "--dropped",
    type=int,
    metavar="ROWS",
    help="Print this many dropped rows for each reason, with their file and score.",
)
def explain(run: Path, sample: int | None, dropped: int | None) -> None:
    """Print why the last run in the directory RUN selected or dropped rows of the pool (the rows to select from).

    RUN is a directory in which 'raysel run' has written its results. Without options, print each reason with its
    number of rows. With --sample, print the reason, the file and the score of one row, and the epochs that trained it,
    with its loss and weight in each. With --dropped, print examples of the dropped rows.
    """
    from raysel.workflow.explain import explain as explain_rows

    click.echo(explain_rows(run, sample, dropped))


@cli.command(short_help="List the runs in a directory, and how they differ.")
@click.argument("run", type=click.Path(path_type=Path))
def runs(run: Path) -> None:
    """List the runs in the directory RUN. Runs with equal settings share a line.

    Each line shows the number of selected rows and the metric on the test rows. It also shows two savings, compared with
    training on all rows: in back-propagated samples (a row counts once per epoch that trains on it) and in time. The
    end of a line lists the keys of the workflow whose values differ from those of the first run. The workflow is the
    YAML file that names the data, the methods and the model.
    """
    from raysel.report.tables import runs_text
    from raysel.workflow.run import runs as list_runs

    click.echo(runs_text(list_runs(run)))


@cli.command(short_help="List the selectors, policies and other methods, or describe one.")
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods that a workflow can name, and the sections of a workflow.

    Methods are, for example, selectors, which select rows before the training, and policies, which select the samples
    of each epoch. With NAME, describe one method, and print its parameters and their defaults. NAME can also be a
    section of a workflow, such as 'train', or a class of your own as file.py:Name; the code of this file is then run.
    """
    from raysel.workflow.methods import all_methods, one_method

    click.echo(all_methods() if name is None else one_method(name))


@cli.command(short_help="Write a workflow for your own files.")
@click.argument("template", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("."),
    help="Write the files to this folder.  [default: .]",
)
def init(template: str | None, out: Path) -> None:
    """Write a workflow with comments, and a script that prepares your own files for the workflow.

    A workflow is a YAML file that names the data, the methods and the model. TEMPLATE is the name of the workflow to
    start from, such as 'classify'. Without TEMPLATE, list the templates.
    """
    from raysel.workflow.init import listed, write

    click.echo(listed() if template is None else write(template, out))


@cli.command(short_help="Remove the Ray actors that killed runs have left on a cluster.")
@click.option(
    "--address",
    help="Use the Ray cluster at the address HOST:PORT.  [default: the environment variable RAY_ADDRESS; if it is not set, the "
    "cluster on this machine]",
)
def cleanup(address: str | None) -> None:
    """Remove the Ray actors that killed runs have left on a cluster.

    During a training, Ray actors hold the last loss of every sample. If a run is killed, its actors keep running. This
    command removes the actors of all runs, so a run that is still training on this cluster fails.
    """
    from raysel.cluster.connect import connect
    from raysel.dynamic.service import cleanup as remove

    connect(address or "auto")
    removed = remove()
    click.echo(
        f"Removed {len(removed)} actors with recorded losses"
        + (f": {', '.join(removed)}." if removed else ".")
    )


def main() -> None:
    """Run the command line. An error that was foreseen is one sentence and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except Exception as error:
        known = own_error(error) or (own_error(error.__context__) if error.__context__ else None)
        if known is None:
            raise
        click.echo(f"raysel: error: {known}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
