"""The command line: a front door that holds no logic."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from raysel.cluster.errors import own_error
from raysel.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raysel")
def cli() -> None:
    """Training-data selection on Ray."""


@cli.command()
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the workflow.")
@click.option("--out", type=click.Path(path_type=Path), help="The run directory.  [default: runs/NAME]")
@click.option("--address", help="A Ray cluster, for example auto.  [default: RAY_ADDRESS, or start one here]")
def run(workflow: Path, overrides: tuple[str, ...], out: Path | None, address: str | None) -> None:
    """Run WORKFLOW; done steps are reused, a killed run goes on."""
    from raysel.report.ledger import Ledger
    from raysel.workflow import config, steps
    from raysel.workflow.run import connect
    from raysel.workflow.run import run as run_workflow

    loaded = config.load(workflow, list(overrides))
    steps.check(loaded)  # before the seconds that Ray takes to start
    connect(address)
    results = run_workflow(loaded, out)
    place = out if out is not None else Path("runs") / loaded.name
    click.echo(Ledger.from_dict(results["ledger"]).text())
    click.echo(f"\nreport: {(place / 'report.html').resolve()}")


@cli.command()
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option(
    "--policies",
    default="full,full-equal-steps,random,roundrobin,infobatch",
    show_default=True,
    metavar="A,B,...",
    help="Methods and controls to train; the workflow's own policy is always among them.",
)
@click.option("--seeds", default=3, show_default=True, help="Seeds of each, from the workflow's on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the workflow.")
@click.option("--out", type=click.Path(path_type=Path), help="The run directory.  [default: runs/NAME]")
@click.option("--address", help="A Ray cluster, for example auto.  [default: RAY_ADDRESS, or start one here]")
def compare(
    workflow: Path,
    policies: str,
    seeds: int,
    overrides: tuple[str, ...],
    out: Path | None,
    address: str | None,
) -> None:
    """Train WORKFLOW's dynamic policy and its controls at one budget, over several seeds."""
    from raysel.report import comparison
    from raysel.workflow import config
    from raysel.workflow.compare import check
    from raysel.workflow.compare import compare as compare_policies
    from raysel.workflow.run import connect

    loaded, names = config.load(workflow, list(overrides)), policies.split(",")
    check(loaded, names, seeds)  # before the seconds that Ray takes to start
    connect(address)
    results = compare_policies(loaded, names, seeds, out)
    place = out if out is not None else Path("runs") / loaded.name
    click.echo(comparison.text(results))
    click.echo(f"\nreport: {(place / 'compare.html').resolve()}")


@cli.command()
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the workflow.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write.  [default: runs/NAME-measure]")
@click.option("--address", help="A Ray cluster, for example auto.  [default: RAY_ADDRESS, or start one here]")
def measure(workflow: Path, overrides: tuple[str, ...], out: Path | None, address: str | None) -> None:
    """Print the eleven metrics of WORKFLOW's pool; files that were measured before are not read again."""
    from raysel.report import metrics
    from raysel.workflow import config, steps
    from raysel.workflow.measure import measure as measure_workflow
    from raysel.workflow.run import connect

    loaded = config.load(workflow, list(overrides))
    steps.check(loaded)  # before the seconds that Ray takes to start
    connect(address)
    results = measure_workflow(loaded, out)
    place = out if out is not None else Path("runs") / f"{loaded.name}-measure"
    click.echo(metrics.text(results["sets"]))
    groups = f", {len(results['groups']):,} groups in groups.parquet" if results["groups"] else ""
    click.echo(f"\nreport: {(place / 'metrics.html').resolve()}; sets.parquet{groups}")


@cli.command()
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the workflow.")
def validate(workflow: Path, overrides: tuple[str, ...]) -> None:
    """Check WORKFLOW, its files and columns without starting anything."""
    from raysel.workflow import config, steps

    counts = steps.check(config.load(workflow, list(overrides)))
    click.echo(f"{workflow}: ok ({', '.join(f'{role} {rows:,} rows' for role, rows in counts.items())})")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html again from the results of a finished run."""
    from raysel.workflow.run import report as write_report

    click.echo(f"report: {write_report(run).resolve()}")


@cli.command()
@click.option("--address", help="The Ray cluster.  [default: RAY_ADDRESS]")
def cleanup(address: str | None) -> None:
    """Remove selection state that killed drivers left on a cluster (runs still training fail by it)."""
    from raysel.dynamic.service import cleanup as remove
    from raysel.workflow.run import connect

    connect(address or "auto")
    removed = remove()
    click.echo(f"removed {len(removed)} state actor(s)" + (f": {', '.join(removed)}" if removed else ""))


def main() -> None:
    """Entry point: an error that was foreseen is one sentence and exit code 1."""
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
