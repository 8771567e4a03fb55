"""The command line, which holds no logic."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
        help="Set a key of the workflow, for example select.budget=0.2. May be repeated.",
    )(command)
    return click.argument("workflow", type=click.Path(path_type=Path))(command)


_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory for the results.  [default: runs/NAME, with the name in the workflow]",
)
_fresh = click.option(
    "--fresh", is_flag=True, help="Remove the results in the directory first, and compute everything again."
)
_address = click.option(
    "--address",
    help="Ray cluster to join, of which this machine must be a node: HOST:PORT, or auto to find it.  [default: the "
    "environment variable RAY_ADDRESS; if it is not set, start Ray on this machine]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raysel")
def cli() -> None:
    """Select training data on Ray, before training and in every epoch.

    A WORKFLOW is a YAML file that names the data, the methods and the model. 'raysel init classify' writes one to start
    from.
    """


@cli.command(short_help="Select, train and write a report.")
@_workflow
@_out
@_fresh
@_address
def run(
    workflow: Path, overrides: tuple[str, ...], out: Path | None, fresh: bool, address: str | None
) -> None:
    """Select data, train on it and write a report, as WORKFLOW says.

    Prints what each training cost and saved. A second call reuses the steps that are finished and resumes an
    interrupted training.
    """
    from raysel.workflow import config
    from raysel.workflow.run import run as run_workflow

    results = run_workflow(config.load(workflow, list(overrides)), out, fresh=fresh, address=address)
    click.echo(results.ledger.text())
    click.echo(f"\nReport: {Path(results.path) / 'report.html'}")


@cli.command(short_help="Compare a dynamic policy with controls over several seeds.")
@_workflow
@click.option(
    "--policies",
    default="full, full_equal_steps, random_prune, round_robin, infobatch",
    show_default=True,
    metavar="A,B,...",
    help="Policies to compare with: a name from 'raysel methods', file.py:Name, or full_equal_steps (all the data, for as "
    "many optimizer steps as the workflow's policy). The workflow's own policy is always included.",
)
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    help="Number of trainings per policy, each with another seed, counting up from the seed in the workflow.",
)
@_out
@_fresh
@_address
def compare(
    workflow: Path,
    overrides: tuple[str, ...],
    policies: str,
    seeds: int,
    out: Path | None,
    fresh: bool,
    address: str | None,
) -> None:
    """Compare the dynamic policy in WORKFLOW with controls, over several seeds.

    Controls are other policies that train on the same number of samples. Prints a table of accuracies with their
    differences, and writes a page. Finished trainings are reused.
    """
    from raysel.report.comparison.tables import text
    from raysel.workflow import config
    from raysel.workflow.compare import compare as compare_policies

    loaded = config.load(workflow, list(overrides))
    names = [name.strip() for name in policies.split(",")]
    results = compare_policies(loaded, names, seeds, out, fresh=fresh, address=address)
    click.echo(text(results))
    click.echo(f"\nReport: {Path(results.path) / 'compare.html'}")


@cli.command(short_help="Measure the pool by the eleven metrics of GIME.")
@_workflow
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory for the results.  [default: runs/NAME-measure]"
)
@_address
def measure(workflow: Path, overrides: tuple[str, ...], out: Path | None, address: str | None) -> None:
    """Measure the pool of WORKFLOW by the eleven metrics of GIME, such as volume, variety and delay.

    WORKFLOW needs the section gime, which says what each column means. Files that were measured before are not read
    again.
    """
    from raysel.report import metrics
    from raysel.workflow import config
    from raysel.workflow.measure import measure as measure_workflow

    results = measure_workflow(config.load(workflow, list(overrides)), out, address=address)
    click.echo(metrics.text(results.sets))
    groups = f", {len(results.groups):,} groups in groups.parquet" if results.groups else ""
    click.echo(f"\nReport: {Path(results.path) / 'metrics.html'}. Next to it: sets.parquet{groups}")


@cli.command(short_help="Check a workflow and its files, without Ray.")
@_workflow
@click.option(
    "--load", is_flag=True, help="Also import the code that WORKFLOW names and try it on a few rows."
)
def validate(workflow: Path, overrides: tuple[str, ...], load: bool) -> None:
    """Check WORKFLOW, its files and their columns, without starting Ray.

    Code that WORKFLOW names, such as the model, runs only with --load.
    """
    from raysel.workflow import config, steps
    from raysel.workflow.load import load_check, unloaded

    loaded = config.load(workflow, list(overrides))
    found = steps.check(loaded)
    if load:
        load_check(loaded)
        found = steps.check(loaded)
    counts = ", ".join(f"{role} {rows:,} rows" for role, rows in found.counts.items())
    click.echo(f"{workflow} is valid{f' ({counts})' if counts else ''}.")
    for sentence in found.sentences():
        click.echo(f"  {sentence}")
    if not load:
        click.echo("Not checked, because --load was not given: " + ", ".join(unloaded(loaded)))


@cli.command(short_help="Write the report of a finished run again.")
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html again from the results in RUN, the directory of a finished run."""
    from raysel.workflow.run import report as write_report

    click.echo(f"Report: {write_report(run).resolve()}")


@cli.command(short_help="Say why rows were selected or dropped.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=int,
    help="sample_id of a row of the pool.  [default: all reasons, with the number of rows]",
)
def explain(run: Path, sample: int | None) -> None:
    """Say why the last run in RUN selected or dropped the rows of the pool.

    With --sample, print the reason, the file and the score of one row.
    """
    from raysel.workflow.explain import explain as explain_rows

    click.echo(explain_rows(run, sample))


@cli.command(short_help="List the runs in a directory and how they differ.")
@click.argument("run", type=click.Path(path_type=Path))
def runs(run: Path) -> None:
    """List the results in the run directory RUN, one line per configuration.

    Each line has the rows selected, the accuracy, the savings, and the keys in which it differs from the first.
    """
    from raysel.report.tables import runs_text
    from raysel.workflow.run import runs as list_runs

    click.echo(runs_text(list_runs(run)))


@cli.command(short_help="List the methods, or describe one.")
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the selectors, policies and embedders that a workflow can name.

    With NAME, print the parameters of one and their defaults. NAME can also be a section of a workflow, such as train,
    or a class of your own as file.py:Name; this runs the code of the file.
    """
    from raysel.workflow.methods import all_methods, one_method

    click.echo(all_methods() if name is None else one_method(name))


@cli.command(short_help="Write a workflow for your own files.")
@click.argument("template", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("."), help="Folder to write to.  [default: .]"
)
def init(template: str | None, out: Path) -> None:
    """Write a commented workflow, and a script that prepares your own files for it.

    Without TEMPLATE, list the templates.
    """
    from raysel.workflow.init import listed, write

    click.echo(listed() if template is None else write(template, out))


@cli.command(short_help="Remove what killed runs left on a cluster.")
@click.option(
    "--address",
    help="Ray cluster, as HOST:PORT.  [default: the environment variable RAY_ADDRESS, else the cluster on this machine]",
)
def cleanup(address: str | None) -> None:
    """Remove the selection state (Ray actors) that killed runs left on a cluster.

    Runs that are still training there will fail.
    """
    from raysel.cluster.connect import connect
    from raysel.dynamic.service import cleanup as remove

    connect(address or "auto")
    removed = remove()
    click.echo(
        f"Removed {len(removed)} actors with selection state"
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
