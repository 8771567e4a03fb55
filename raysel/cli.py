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
    """Return the argument WORKFLOW and the option --set."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the workflow; may be repeated.",
    )(command)
    return click.argument("workflow", type=click.Path(path_type=Path))(command)


_out = click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/NAME]")
_fresh = click.option(
    "--fresh", is_flag=True, help="Start over: remove the content of the run directory first."
)
_address = click.option(
    "--address",
    help="Address of the Ray cluster to join, for example auto.  [default: RAY_ADDRESS, or start one here]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raysel")
def cli() -> None:
    """Select training data on Ray."""


@cli.command(short_help="Run a workflow.")
@_workflow
@_out
@_fresh
@_address
def run(
    workflow: Path, overrides: tuple[str, ...], out: Path | None, fresh: bool, address: str | None
) -> None:
    """Run WORKFLOW. Finished steps are reused, and an interrupted run is resumed."""
    from raysel.workflow import config
    from raysel.workflow.run import run as run_workflow

    results = run_workflow(config.load(workflow, list(overrides)), out, fresh=fresh, address=address)
    click.echo(results.ledger.text())
    click.echo(f"\nReport: {Path(results.path) / 'report.html'}")


@cli.command(short_help="Compare a dynamic policy with controls at one budget.")
@_workflow
@click.option(
    "--policies",
    default="full,full_equal_steps,random_prune,round_robin,infobatch",
    show_default=True,
    metavar="A,B,...",
    help="Policies to train, by name or as file.py:Name. The workflow's own policy is always included.",
)
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    help="Number of seeds per policy, counting up from the workflow's seed.",
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
    """Compare WORKFLOW's dynamic policy with controls at one budget, over several seeds."""
    from raysel.report.comparison.tables import text
    from raysel.workflow import config
    from raysel.workflow.compare import compare as compare_policies

    loaded = config.load(workflow, list(overrides))
    results = compare_policies(loaded, policies.split(","), seeds, out, fresh=fresh, address=address)
    click.echo(text(results))
    click.echo(f"\nReport: {Path(results.path) / 'compare.html'}")


@cli.command(short_help="Measure the eleven metrics of a workflow's pool.")
@_workflow
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory to write to.  [default: runs/NAME-measure]"
)
@_address
def measure(workflow: Path, overrides: tuple[str, ...], out: Path | None, address: str | None) -> None:
    """Measure the eleven metrics of WORKFLOW's pool. Files that were measured before are not read again."""
    from raysel.report import metrics
    from raysel.workflow import config
    from raysel.workflow.measure import measure as measure_workflow

    results = measure_workflow(config.load(workflow, list(overrides)), out, address=address)
    click.echo(metrics.text(results.sets))
    groups = f", {len(results.groups):,} groups in groups.parquet" if results.groups else ""
    click.echo(f"\nReport: {Path(results.path) / 'metrics.html'}. Next to it: sets.parquet{groups}")


@cli.command(short_help="Check a workflow and its files without Ray.")
@_workflow
@click.option(
    "--load", is_flag=True, help="Also run the code that WORKFLOW names on a few rows, without Ray."
)
def validate(workflow: Path, overrides: tuple[str, ...], load: bool) -> None:
    """Check WORKFLOW, its files and their columns, without starting Ray or running code that it names."""
    from raysel.workflow import config, steps
    from raysel.workflow.load import load_check, unloaded

    loaded = config.load(workflow, list(overrides))
    found = steps.check(loaded)
    if load:
        load_check(loaded)
        found = steps.check(loaded)
    counts = ", ".join(f"{role} {rows:,} rows" for role, rows in found.counts.items())
    click.echo(f"{workflow} is valid ({counts}).")
    if not load:
        click.echo("Not checked without --load: " + ", ".join(unloaded(loaded)))


@cli.command(short_help="Write the report of a finished run again.")
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html again from the results of the finished run."""
    from raysel.workflow.run import report as write_report

    click.echo(f"Report: {write_report(run).resolve()}")


@cli.command(short_help="List the runs in a directory, and how they differ.")
@click.argument("run", type=click.Path(path_type=Path))
def runs(run: Path) -> None:
    """List the configurations that were run in the directory RUN, and the keys in which they differ."""
    from raysel.report.tables import runs_text
    from raysel.workflow.run import runs as list_runs

    click.echo(runs_text(list_runs(run)))


@cli.command(short_help="List the methods, or the parameters of one.")
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods that a workflow can name, or with NAME the parameters of one and their defaults.

    NAME may also be a section of a workflow, such as train, or a class of your own as file.py:Name, which runs its
    code.
    """
    from raysel.workflow.methods import all_methods, one_method

    click.echo(all_methods() if name is None else one_method(name))


@cli.command(short_help="Write a commented workflow for your own files.")
@click.argument("template", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("."), help="Folder to write to.  [default: .]"
)
def init(template: str | None, out: Path) -> None:
    """Write a commented workflow for your own files, and the script that prepares them.

    Without TEMPLATE, list the templates.
    """
    from raysel.workflow.init import listed, write

    click.echo(listed() if template is None else write(template, out))


@cli.command(short_help="Remove selection state that killed drivers left.")
@click.option("--address", help="Address of the Ray cluster.  [default: RAY_ADDRESS]")
def cleanup(address: str | None) -> None:
    """Remove selection state that killed drivers left on a cluster. Runs that are still training will fail."""
    from raysel.cluster.connect import connect
    from raysel.dynamic.service import cleanup as remove

    connect(address or "auto")
    removed = remove()
    click.echo(
        f"Removed actors with selection state: {len(removed)}"
        + (f" ({', '.join(removed)})." if removed else ".")
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
