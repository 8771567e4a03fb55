"""One node, two nodes, or GPU actors (Ray is told of one; torch sees none): the same selection, byte for byte."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, sys
import numpy as np, ray
from ray.cluster_utils import Cluster

nodes, gpus = int(sys.argv[1]), int(sys.argv[2])
size = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={**size, "num_gpus": gpus})
for _ in range(nodes - 1):
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
ray.init(address=cluster.address, log_to_driver=False)
import raysel
rng = np.random.default_rng(0)
pool = raysel.read({"embedding": rng.normal(size=(5000, 16)).astype("f4")}).repartition(2 * nodes + gpus)
target = raysel.read({"embedding": rng.normal(size=(300, 16)).astype("f4") + 0.5})
chosen = raysel.GIO(0.3, clusters=100).select(pool, target)
where = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
table = chosen.table.to_pandas().to_csv() + chosen.dropped.to_pandas().to_csv() + str(chosen.info)
print(len(where), hashlib.sha256(table.encode()).hexdigest())
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_one_node_two_nodes_and_actors_choose_the_same():
    found = []
    for nodes, gpus in ((1, 0), (2, 0), (1, 1)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(nodes), str(gpus)], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-2000:]
        there, digest = done.stdout.split()[-2:]
        assert int(there) == nodes
        found.append(digest)
    assert len(set(found)) == 1
