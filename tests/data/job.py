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


def main(file: str, directory: str, nodes: int) -> None:
    import ray

    import raysel
    from raysel.cluster.connect import quiet
    from raysel.data.pipeline import compute

    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    if nodes == 1:
        ray.init(address="local", num_cpus=2, object_store_memory=100 << 20, **options)
    else:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    quiet()
    report = compute(raysel.read(file), Slow(), ["x"], directory)
    print(f"embedded {report.embedded} of {report.rows}", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
