"""A process of its own that embeds a file: ``python job.py FILE DIRECTORY NODES``; for the tests that kill it."""

from __future__ import annotations

import os
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class Slow:
    """Vectors that depend on the whole tile; a tenth of a second each."""

    name, tile, digest, takes = "slow", 64, "slow", "matrix"

    def load(self, device):
        def run(rows):
            time.sleep(0.05)
            return rows * rows.sum()

        return run


def lose(cluster, node, directory: str, work) -> None:
    """Do some work in a thread, and take a node away in the middle of it, from the main thread as Ray wants it."""
    import threading
    from pathlib import Path

    thread = threading.Thread(target=work)
    thread.start()
    while len(list(Path(directory).glob("part-*"))) < 6 and thread.is_alive():
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    thread.join()


def main(file: str, directory: str, nodes: int, fault: str = "") -> None:
    import ray

    import raysel
    from raysel.cluster.connect import quiet
    from raysel.data.pipeline import compute

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    if nodes == 1:
        ray.init(address="local", num_cpus=2, object_store_memory=100 << 20, **options)
    else:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0 if fault == "last" else 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes - 1):
            node = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    quiet()

    def work() -> None:
        try:
            report = compute(raysel.read(file), Slow(), ["x"], directory)
            print(f"embedded {report.embedded} of {report.rows}", flush=True)
        except raysel.errors.ResourceError as error:
            print(error, flush=True)

    if fault:
        from raysel.data import workers

        workers._WAIT_S = 10.0
        lose(cluster, node, directory, work)
    else:
        work()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
