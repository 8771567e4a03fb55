"""Measure what object storage costs, what a second node gains, and what `raysel submit` adds; see docs/evidence/speed.md.

    python benchmarks/cluster.py storage [--epochs 3]     # FashionMNIST's chain, all on S3 on this machine, and on its disk
    python benchmarks/cluster.py metrics [--rows 16000000] # GIME's metrics on one node of one core, and on two
    python benchmarks/cluster.py tasks                    # how many tasks of a step Ray Data runs at a time, and what an empty one costs
    python benchmarks/cluster.py submit                   # `raysel submit` and `ray job submit` of a job that does nothing

Each arm runs in its own process and adds one line of JSON to benchmarks/results/cluster.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # for the nodes of the tests

from tests.nodes import free_ports, node  # noqa: E402

RESULTS = HERE / "results" / "cluster.jsonl"
RAYSEL = [sys.executable, "-m", "raysel.cli"]
ROLES = ("pool", "target", "test")


def keep(**answer: Any) -> dict[str, Any]:
    """Print an arm and add it to the results."""
    answer["load"] = os.getloadavg()[0]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as log:
        log.write(json.dumps(answer) + "\n")
    shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in answer.items()}
    print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    return answer


def called(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Return the seconds that a command took, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return seconds, done.stdout


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("The server has not started.")


# ---- storage -------------------------------------------------------------------------------------------------


def storage(epochs: int) -> None:
    """The chain of FashionMNIST without controls: pca:64, GIO, arrays, and a training with InfoBatch."""
    with tempfile.TemporaryDirectory() as made:
        data = f"{made}/data"
        called(
            [sys.executable, str(HERE.parent / "workflows/fashion_mnist.py"), "--out", data], dict(os.environ)
        )
        port = free_ports(1)[0]
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(port)
            store = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            os.environ |= store
            import pyarrow.fs as pafs

            options = {"endpoint_override": store["AWS_ENDPOINT_URL"], "region": "us-east-1"}
            pafs.S3FileSystem(**options, allow_bucket_creation=True).create_dir("bucket")
            pafs.copy_files(data, "bucket/data", destination_filesystem=pafs.S3FileSystem(**options))
            found = {}
            for place in (made, "s3://bucket"):
                before = cpu_seconds(server.pid)
                command = [*RAYSEL, "run", str(HERE.parent / "workflows/fashion_mnist.yaml"), "--json"]
                command += [
                    "--out",
                    f"{place}/run",
                    "--set",
                    "controls=[]",
                    "--set",
                    f"train.epochs={epochs}",
                ]
                command += ["--set", "train.cpus_per_worker=0.5", "--address", "local"]
                for role in ROLES:
                    command += ["--set", f"{role}.path={place}/data/{role}.parquet"]
                environment = {**os.environ, "RAYSEL_CACHE": f"{made}/cache"}
                seconds, text = called(command, environment)
                steps = json.loads(text)["ledger"]["entries"][0]["seconds"]
                found[place] = keep(
                    arm="storage",
                    place="disk" if place == made else "s3",
                    epochs=epochs,
                    seconds=seconds,
                    server_cpu=cpu_seconds(server.pid) - before,
                    **{f"ledger {name}": value for name, value in steps.items()},
                )
        finally:
            server.terminate()
            server.wait()
    disk, remote = found.values()
    print(f"S3 takes {remote['seconds'] / disk['seconds']:.2f} times as long as the disk; without the CPU seconds of the "
          f"server {(remote['seconds'] - remote['server_cpu']) / disk['seconds']:.2f} times")  # fmt: skip


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used, with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- metrics -------------------------------------------------------------------------------------------------


def metrics(rows: int, nodes: int) -> None:
    """One arm: the metrics of a table with a group key, on nodes of one core; the head has none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    from ray.cluster_utils import Cluster

    import raysel
    from raysel.cluster.connect import quiet

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for part in range(16):
            count = rows // 16
            columns = {
                "entity": rng.integers(0, 50_000, count),
                "kind": rng.integers(0, 100, count),
                "x": rng.normal(size=count),
                "y": rng.normal(size=count),
                "at": pa.array(1_700_000_000 + rng.integers(0, 10**6, count), pa.timestamp("s", "UTC")),
            }
            pq.write_table(pa.table(columns), f"{folder}/{part:02}.parquet", row_group_size=65_536)
        size = {"object_store_memory": 1 << 29}
        head = {"num_cpus": 0, "include_dashboard": False, **size}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cores = sorted(os.sched_getaffinity(0))
        for core in cores[:nodes]:  # inherited by all processes of a node, as on a machine of one core
            os.sched_setaffinity(0, {core})
            cluster.add_node(num_cpus=1, **size)
        os.sched_setaffinity(0, cores)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        quiet()
        dataset = raysel.read(folder)
        binding = raysel.gime.Binding(entity="entity", classes="kind", content=["x", "y"], event_time="at")
        rule = raysel.GIME(binding)
        rule.measure(raysel.read(f"{folder}/00.parquet"))  # starts the workers
        found = []
        for _ in range(5):
            began = time.perf_counter()
            rule.measure(dataset)
            found.append(time.perf_counter() - began)
        seconds = sorted(found)[2]  # the median
        print(json.dumps({"seconds": seconds, "rows_per_second": rows / seconds}))
        ray.shutdown()
        cluster.shutdown()


# ---- tasks ---------------------------------------------------------------------------------------------------


def tasks(cpus: int = 2, count: int = 24, empty: int = 200) -> None:
    """Tasks of 0.4 s that only sleep, with and without the reservation of resources for each step of a Dataset.

    Then tasks that do nothing, by Ray Data and as plain tasks.
    """
    import ray

    from raysel.cluster.connect import quiet

    def sleep(_: Any) -> dict[str, list[float]]:
        began = time.time()
        time.sleep(0.4)
        return {"began": [began], "ended": [time.time()]}

    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    quiet()
    context = ray.data.DataContext.get_current()
    for context.op_resource_reservation_enabled in (True, False):
        rows = ray.data.range(count, override_num_blocks=count).map_batches(sleep, batch_size=None).take_all()
        seconds = max(row["ended"] for row in rows) - min(row["began"] for row in rows)
        mean = sum(row["ended"] - row["began"] for row in rows) / seconds
        keep(arm="tasks", cpus=cpus, reservation=context.op_resource_reservation_enabled, at_a_time=mean)
    context.op_resource_reservation_enabled = True
    nothing = ray.remote(num_cpus=1)(lambda: None)
    ray.get([nothing.remote() for _ in range(empty)])
    began = time.perf_counter()
    ray.get([nothing.remote() for _ in range(empty)])
    plain = time.perf_counter() - began
    rows = ray.data.range(empty, override_num_blocks=empty).map_batches(lambda batch: batch, batch_size=None)
    began = time.perf_counter()
    rows.take_all()
    seconds = time.perf_counter() - began
    keep(arm="empty tasks", cpus=cpus, ray_data_ms=1e3 * seconds / empty, plain_ms=1e3 * plain / empty)
    ray.shutdown()


# ---- submit --------------------------------------------------------------------------------------------------


@contextmanager
def head(folder: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A head of two CPUs with a dashboard and a token."""
    port, dashboard, agent = free_ports(3)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    words = ["--head", f"--port={port}", "--num-cpus=2", f"--dashboard-port={dashboard}"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}"]
    with node(words, environment, Path(folder) / "head.txt"):
        wait_for(dashboard)
        yield f"http://127.0.0.1:{dashboard}", environment


def submit(repeats: int = 3) -> None:
    """Seconds until each command returns, without following the job."""
    with tempfile.TemporaryDirectory() as made, head(made) as (address, environment):
        (Path(made) / "m.py").write_text("")
        flow = Path(made) / "flow.yaml"
        flow.write_text(
            "name: t\npool: {path: s3://bucket/pool, label: y}\ntrain: {model: m.py:f, input: x}\n"
        )
        ray_job = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "job",
            "submit",
            "--address",
            address,
            "--no-wait",
        ]
        ray_job += ["--working-dir", made, "--", "true"]
        ours = [*RAYSEL, "submit", str(flow), "--address", address, "--out", "/tmp/out"]
        called(ray_job, environment)  # the first job starts a process of the head
        plain = min(called(ray_job, environment)[0] for _ in range(repeats))
        seconds = []
        for number in range(repeats):
            done, _ = called([*ours, "--set", f"seed={number}"], environment)
            seconds.append(done)
        answer = keep(arm="submit", plain=plain, raysel=min(seconds))
    print(f"raysel submit takes {answer['raysel'] - answer['plain']:.1f} s more than ray job submit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("storage").add_argument("--epochs", type=int, default=3)
    command = commands.add_parser("metrics")
    command.add_argument("--rows", type=int, default=16_000_000)
    command.add_argument("--nodes", type=int, help=argparse.SUPPRESS)
    commands.add_parser("submit")
    commands.add_parser("tasks")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if options.command == "storage":
        storage(options.epochs)
    elif options.command == "submit":
        submit()
    elif options.command == "tasks":
        tasks()
    elif options.nodes:
        metrics(options.rows, options.nodes)
    else:
        rates = []
        for nodes in (1, 2):
            words = ["metrics", "--rows", str(options.rows), "--nodes", str(nodes)]
            _, text = called([sys.executable, __file__, *words], dict(os.environ))
            answer = json.loads(text.strip().splitlines()[-1])
            rates.append(keep(arm="metrics", nodes=nodes, rows=options.rows, **answer)["rows_per_second"])
        print(f"two nodes measure {rates[1] / rates[0]:.2f} times as many rows per second as one")


if __name__ == "__main__":
    main()
