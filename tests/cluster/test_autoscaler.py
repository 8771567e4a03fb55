"""A head without CPUs and Ray's own stand-in for a cloud: what a workflow waits for brings a node, on which it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysel import Selection
from raysel.report.results import RunResults
from tests.golden import results as golden
from tests.nodes import free_ports, node

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "initialization_commands setup_commands head_setup_commands worker_setup_commands head_start_ray_commands "
    "worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
)


@pytest.fixture
def address(tmp_path):
    """A cluster whose autoscaler starts one node of two CPUs when something waits for it."""
    port, agent = free_ports(2)
    code = "import ray; print(ray.util.get_node_ip_address())"
    host = subprocess.check_output([sys.executable, "-c", code], text=True).split()[-1]
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 2, "object_store_memory": 200_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    }
    config = {
        **{name: [] for name in COMMANDS.split()},
        **{"cluster_name": "test", "max_workers": 1, "upscaling_speed": 1.0, "idle_timeout_minutes": 5.0},
        **{"auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False},
        "provider": {
            **{"type": "fake_multinode", "gcs_address": f"{host}:{port}", "use_node_id_as_ip": True},
            **{"disable_node_updaters": True, "disable_launch_config_check": True},
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
    }
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    environment = {
        **os.environ,
        **{"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled"},
        "RAY_NODE_TYPE_NAME": "ray.head.default",  # as Ray's cluster launcher and KubeRay set it
    }
    words = ["--head", f"--port={port}", "--num-cpus=0", f"--dashboard-agent-listen-port={agent}"]
    words += ["--include-dashboard=false", f"--autoscaling-config={tmp_path / 'autoscaler.json'}"]
    with node(words, environment, tmp_path / "head.txt"):
        yield f"{host}:{port}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_workflow_brings_the_node_that_it_needs(address, tmp_path):
    made = [sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(tmp_path)]
    subprocess.run(made, check=True, capture_output=True)
    command = [sys.executable, "-m", "raysel.cli", "run", str(ROOT / "workflows/quickstart.yaml")]
    command += ["--address", address, "--out", str(tmp_path / "run"), "--set", "train.cpus_per_worker=0.5"]
    command += ["--set", "controls=[]"]
    for role in ("pool", "target", "test"):
        command += ["--set", f"{role}.path={tmp_path / role}.parquet"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = RunResults.load(tmp_path / "run/results.json")
    found = Selection.load(tmp_path / "run" / results.selection.folder)
    expected = json.loads(golden.EXPECTED.read_text())["quickstart"]["selection"]
    assert golden.digest(found.ids) == expected["ids"] and len(results.arms["chain"].epochs) == 12
    more = [*command, "--set", "train.workers=3", "--set", "train.cpus_per_worker=1", "--set", "seed=1"]
    patch = "from raysel.cluster import wait; wait.GROW_S = 12.0; wait.WORKERS_S = 20.0; from raysel.cli import main; main()"
    refused = subprocess.run(
        [sys.executable, "-c", patch, *more[3:]], env=environment, capture_output=True, text=True, timeout=300
    )
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "raysel waits for up to 20 s in all, so that an autoscaler can add nodes." in refused.stderr
    assert "train.workers: 3 workers of 1 CPU could not be placed within 20 s" in refused.stderr
    assert refused.stderr.endswith("Lower train.workers or train.cpus_per_worker.\n")
