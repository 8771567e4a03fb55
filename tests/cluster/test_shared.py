"""A directory that a node does not see is found, and named with the node."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raysel.cluster import shared
from raysel.core import storage
from raysel.errors import ResourceError, RunError


def test_a_node_reads_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_APPEAR_S", 0.1)
    (tmp_path / "name").write_text("name")
    assert shared._probe(tmp_path, "name", "node") == "" and (tmp_path / "name-node").read_text() == "node"
    assert shared._probe(tmp_path, "other", "node") == "files that this machine writes do not appear there"
    assert shared._probe(tmp_path / "name", "name", "node") == "Not a directory"
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"
    )  # a node without the settings of the others
    found = shared._probe(storage.output("s3://bucket/run"), "name", "node")
    assert "s3://bucket/run/name cannot be read (there is no connection, or no reply)" in found


def test_the_nodes_are_named(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_APPEAR_S", 0.1)
    (own,) = (node for node in cluster.nodes() if node["Alive"])
    shared.check_shared(tmp_path / "missing")  # one node: nothing is written

    class Elsewhere:
        def get_node_id(self):
            return "f" * 56

    monkeypatch.setattr(shared.ray, "get_runtime_context", Elsewhere)  # so that the node is another one
    shared.check_shared(tmp_path)
    gone = {"NodeID": "e" * 56, "NodeManagerAddress": "10.0.0.9", "Alive": True}
    monkeypatch.setattr(shared.ray, "nodes", lambda: [own, gone, {**gone, "Alive": False}])
    with pytest.raises(
        ResourceError, match=r"A task failed on the node 10\.0\.0\.9 \(.+\)\. Check that the node runs"
    ):
        shared.check_shared(tmp_path)
    monkeypatch.setattr(shared, "_appears", lambda file, text: False)
    monkeypatch.setattr(shared.ray, "nodes", lambda: [own])
    with pytest.raises(
        RunError,
        match=r"all nodes of the cluster: .* \(files that it writes do not appear on this machine\)\. Mount the same file system at this path",
    ):
        shared.check_shared(tmp_path)
    assert not os.listdir(tmp_path)
    with pytest.raises(RunError, match="cannot be written"):
        shared.check_shared(tmp_path / "missing")


TWO = """
import os, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from raysel.cluster.shared import check_shared
from raysel.errors import RunError

home, away = sys.argv[1:]
size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
os.chdir(home)
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
os.chdir(away)
cluster.add_node(**size)
os.chdir(home)
ray.init(address=cluster.address, log_to_driver=False)
for place in (Path(home), Path("/proc/self/cwd")):  # the second is another directory on each node
    try:
        check_shared(place)
        print("shared")
    except RunError as error:
        print(error)
print(os.listdir(home) + os.listdir(away))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_two_nodes_with_one_directory_and_with_two(tmp_path):
    places = [str(tmp_path / name) for name in ("home", "away")]
    for place in places:
        os.mkdir(place)
    done = subprocess.run([sys.executable, "-c", TWO, *places], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stdout.splitlines() if line.startswith(("shared", "/proc", "["))]
    assert said[0] == "shared" and said[2] == "[]"
    assert said[1].startswith("/proc/self/cwd is not shared by all nodes of the cluster: ")
    assert "(files that this machine writes do not appear there). Mount the same" in said[1]
