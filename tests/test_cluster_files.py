"""cluster.yaml, deploy/rayjob.yaml and deploy/Dockerfile: valid, on a Ray that is new enough, and locked by the token."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OLDEST_RAY = (2, 59)


def load(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    return load("cluster.yaml")


@pytest.fixture
def job() -> dict[str, Any]:
    return load("deploy/rayjob.yaml")


def ray_schema() -> dict[str, Any]:
    ray = pytest.importorskip("ray")
    return json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def ray_version(image: str) -> tuple[int, int]:
    """From ``rayproject/ray:2.60.0-py311`` or ``some/where:1.2.3-ray2.60.0``."""
    found = re.search(r"ray:?(\d+)\.(\d+)\.\d+", image)
    assert found, f"no Ray version in the image name {image}"
    return int(found[1]), int(found[2])


def test_cluster_matches_the_schema_inside_ray(cluster):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator(ray_schema()).validate(cluster)


def test_schema_is_not_a_rubber_stamp(cluster):
    jsonschema = pytest.importorskip("jsonschema")
    for damage in ({"min_workers": 1}, {"cluster_name": 3}, {"available_node_types": {"head": {}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(ray_schema()).validate(cluster | damage)


def launcher() -> tuple[Any, Any]:
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        pytest.skip(f"Ray's launcher is private API and is not where it was in 2.60 ({error}).")
    return prepare_config, validate_config


def test_cluster_passes_the_launchers_own_check(cluster):
    prepare_config, validate_config = launcher()
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    assert not any("0.0.0.0" in command for command in prepared["head_start_ray_commands"])


def test_launcher_refuses_a_head_that_is_no_node_type(cluster):
    prepare_config, validate_config = launcher()
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(copy.deepcopy(cluster) | {"head_node_type": "haed"}))


def test_cluster_shape(cluster):
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    workers = {name: kind for name, kind in types.items() if name != cluster["head_node_type"]}
    assert workers.keys() == {"cpu", "gpu"} and types["head"]["resources"] == {"CPU": 0}
    assert all(0 <= kind["min_workers"] < kind["max_workers"] for kind in workers.values())
    assert (
        types["cpu"]["min_workers"] > 0 == types["gpu"]["min_workers"]
    )  # GPUs cost money while nobody uses them
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"gpu"}
    assert types["gpu"]["docker"]["worker_image"] == f"{cluster['docker']['image']}-gpu"
    assert sum(kind["min_workers"] for kind in workers.values()) <= cluster["max_workers"]
    assert any("raysel[cluster]" in command for command in cluster["setup_commands"])
    assert ray_version(cluster["docker"]["image"]) >= OLDEST_RAY


def test_cluster_is_locked(cluster):
    assert "~/.ray/auth_token" in cluster["file_mounts"].values()
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token ray start" in command.replace("RAY_USAGE_STATS_ENABLED=0 ", "")
        assert "--disable-usage-stats" in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "security_group" not in cluster["provider"]
    assert not any("SecurityGroup" in str(kind) for kind in cluster["available_node_types"].values())
    assert not any(
        key in cluster["docker"] for key in ("run_options", "head_run_options", "worker_run_options")
    )


def test_copies_of_the_checkout_leave_the_package_whole(cluster):
    excluded = cluster["rsync_exclude"]
    assert "/.git" in excluded
    # An unanchored `data` or `runs` would also drop a folder of that name inside raysel/.
    assert all(name.startswith("/") or name == "__pycache__" for name in excluded)
    assert not any(name.startswith("/raysel") for name in excluded)


def test_rayjob_has_what_kuberay_requires(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    spec = job["spec"]
    assert spec["entrypoint"].startswith("raysel run ") and "--address auto" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["activeDeadlineSeconds"] > 0
    ray_cluster = spec["rayClusterSpec"]
    assert ray_cluster["headGroupSpec"]["template"]["spec"]["containers"]
    for group in ray_cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["containers"]
        assert group["minReplicas"] == group["replicas"] < group["maxReplicas"]
    sizes = {group["groupName"]: group["minReplicas"] for group in ray_cluster["workerGroupSpecs"]}
    assert sizes.keys() == {"cpu", "gpu"} and sizes["cpu"] > 0 == sizes["gpu"]


KUBERAY = {  # keys of ray.io/v1, of which Kubernetes ignores others without a word
    "spec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
    "rayClusterSpec": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend workerGroupSpecs",
    "autoscalerOptions": "env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode "
    "version volumeMounts",
    "headGroupSpec": "enableIngress headService rayStartParams resources serviceType template",
    "group": "groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts rayStartParams replicas resources "
    "scaleStrategy suspend template",
}


def unknown_keys(job: dict[str, Any]) -> list[str]:
    spec = job["spec"]
    ray_cluster = spec["rayClusterSpec"]
    parts = [("spec", spec), ("rayClusterSpec", ray_cluster)]
    parts += [(name, ray_cluster[name]) for name in ("autoscalerOptions", "headGroupSpec")]
    parts += [("group", group) for group in ray_cluster["workerGroupSpecs"]]
    return [f"{name}.{key}" for name, part in parts for key in part if key not in KUBERAY[name].split()]


def test_rayjob_has_no_key_that_kuberay_would_ignore(job):
    assert not unknown_keys(job)
    for place in (
        job["spec"],
        job["spec"]["rayClusterSpec"],
        job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0],
    ):
        place["minReplica"] = 1
    assert unknown_keys(job) == ["spec.minReplica", "rayClusterSpec.minReplica", "group.minReplica"]


def test_rayjob_grows_and_shrinks(job):
    ray_cluster = job["spec"]["rayClusterSpec"]
    options = ray_cluster["autoscalerOptions"]
    assert ray_cluster["enableInTreeAutoscaling"] is True and options["version"] == "v2"
    groups = [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # as version 2 needs it
        for box in pod["containers"]:
            assert (
                box["resources"]["requests"] == box["resources"]["limits"]
            )  # which the autoscaler plans with
    gpu = groups[-1]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gpu["nvidia.com/gpu"] == "1"


def dockerfile() -> list[list[str]]:
    """The instructions of deploy/Dockerfile, each as its words."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_holds_what_the_job_runs_on_the_ray_of_the_cluster(job, cluster):
    lines = dockerfile()
    assert lines[0] == ["FROM", cluster["docker"]["image"]]
    assert {line[0] for line in lines} == {"FROM", "COPY", "RUN", "ENV", "WORKDIR"}
    copied = {}
    for _, owner, *sources, target in (line for line in lines if line[0] == "COPY"):
        assert owner == "--chown=ray:users" and target.startswith("/home/ray/raysel/")
        for source in sources:
            assert (ROOT / source).exists(), source
            copied[target if (ROOT / source).is_dir() else target + source] = ROOT / source
    workflow = Path(job["spec"]["entrypoint"].split()[2])
    assert (copied[str(workflow.parent)] / workflow.name).is_file()
    for needed in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):  # by which pip builds raysel
        assert f"/home/ray/raysel/{needed}" in copied
    image = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert f"-t {image} ." in (ROOT / "deploy/Dockerfile").read_text()


def test_rayjob_is_locked_and_new_enough(job):
    ray_cluster = job["spec"]["rayClusterSpec"]
    assert ray_cluster["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_TOKEN" not in (ROOT / "deploy/rayjob.yaml").read_text()
    named = tuple(int(part) for part in ray_cluster["rayVersion"].split(".")[:2])
    groups = [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]
    images = {box["image"] for group in groups for box in group["template"]["spec"]["containers"]}
    assert named >= OLDEST_RAY
    assert {ray_version(image) for image in images} == {named}


def test_rayjob_output_is_on_a_volume_every_pod_mounts(job):
    out = job["spec"]["entrypoint"].split("--out ")[1].split()[0]
    ray_cluster = job["spec"]["rayClusterSpec"]
    for group in (ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        mounts = pod["containers"][0]["volumeMounts"]
        shared = [claims[mount["name"]] for mount in mounts if out.startswith(mount["mountPath"] + "/")]
        assert shared == ["raysel-runs"]


def public_texts() -> list[Path]:
    """Everything a reader copies from: documents, definitions, deployment files."""
    folders = [ROOT / name for name in ("docs", "deploy", "workflows", "benchmarks", ".ci")]
    found = [path for path in ROOT.iterdir() if path.is_file()]
    found += [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if path.suffix in {".md", ".yaml", ".yml", ".toml", ".sh"})


def test_nobody_is_told_to_switch_authentication_off():
    pattern = re.compile(
        r"RAY_AUTH_MODE[\"']?\s*[=:]\s*[\"']?disabled|^\s*mode:\s*[\"']?disabled", re.IGNORECASE
    )
    texts = public_texts()
    assert {"cluster.yaml", "cluster.md"} <= {path.name for path in texts}
    told = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line) and "never" not in line.lower()
    ]
    assert not told


def test_no_dashboard_is_opened_to_the_network():
    opened = [
        path.name
        for path in public_texts()
        if re.search(r"dashboard-host[=: \"']+0\.0\.0\.0", path.read_text())
    ]
    assert not opened
