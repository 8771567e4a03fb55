"""One node, two nodes, or GPU actors (Ray is told of one; torch sees none): the same selection, byte for byte."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import hashlib
import numpy as np, ray
from ray.cluster_utils import Cluster

size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
import raysel
for gpus in (None, 0, 1):
    if gpus is not None:
        cluster.add_node(**size, num_gpus=gpus)
        cluster.wait_for_nodes()
    rng = np.random.default_rng(0)
    nodes = sum(node["Alive"] for node in ray.nodes())
    pool = raysel.read({"embedding": rng.normal(size=(5000, 16)).astype("f4")}).repartition(2 * nodes)
    target = raysel.read({"embedding": rng.normal(size=(300, 16)).astype("f4") + 0.5})
    chosen = raysel.GIO(0.3, clusters=100).select(pool, target)
    table = chosen.table.to_pandas().to_csv() + chosen.dropped.to_pandas().to_csv() + str(chosen.info)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    print(nodes, gpus, hashlib.sha256(table.encode()).hexdigest())
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_one_node_two_nodes_and_actors_choose_the_same():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert [line[:2] for line in lines] == [["1", "0"], ["2", "0"], ["3", "1"]]
    assert len({digest for *_, digest in lines}) == 1
