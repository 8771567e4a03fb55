"""A workflow as a job: what is sent, its id, attaching to it, its exit code, and a real cluster with everything on S3."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import ray
import yaml

from raysel import Selection
from raysel.cli import cli
from raysel.core import storage
from raysel.errors import ConfigError, ResourceError
from raysel.report.results import RunResults
from raysel.workflow import submit
from tests.golden import results as golden
from tests.nodes import free_ports, node

ROOT = Path(__file__).resolve().parents[2]
FLOW = {
    "name": "t",
    "pool": {"path": "s3://bucket/pool", "label": "y"},
    "train": {"model": "code/m.py:f", "input": "x"},
    "gime": {"metrics": ["own.py:f"], "binding": {"content": "x"}},
}


@pytest.fixture
def flow(tmp_path):
    """A function that writes the workflow, with some keys changed."""
    (tmp_path / "code").mkdir()
    for name in ("code/m.py", "own.py", "not_named.py"):
        (tmp_path / name).write_text("raise SystemExit('was run')\n")

    def write(**changes):
        file = tmp_path / "flow.yaml"
        file.write_text(yaml.safe_dump({**FLOW, **changes}))
        return file

    return write


class Status(str):
    def is_terminal(self):
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


class Client:
    """What Ray's client does, with the files that were sent."""

    def __init__(self):
        self.jobs, self.sent, self.logs = {}, {}, {}

    def list_jobs(self):
        return [SimpleNamespace(submission_id=None, status="RUNNING"), *self.jobs.values()]

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata):
        folder = Path(runtime_env["working_dir"])
        files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
        self.sent[submission_id] = SimpleNamespace(
            entrypoint=entrypoint, files=files, env=runtime_env, metadata=metadata
        )
        self.end(submission_id, "RUNNING")

    def end(self, name, status, code=None, message=""):
        self.jobs[name] = SimpleNamespace(
            submission_id=name, status=Status(status), driver_exit_code=code, message=message
        )

    def get_job_info(self, name):
        return self.jobs[name]

    versions: ClassVar = {"rayVersion": ray.__version__, "pythonVersion": platform.python_version()}

    def _do_request(self, method, endpoint):
        assert (method, endpoint) == ("GET", "/api/v0/cluster_metadata")
        return SimpleNamespace(json=lambda: {"result": True, "data": self.versions})

    async def tail_job_logs(self, name):
        for text in self.logs[name].pop(0):
            if isinstance(text, Exception):
                raise text
            yield text


@pytest.fixture
def client(monkeypatch):
    made = Client()
    monkeypatch.setattr(submit, "_client", lambda address: made)
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    return made


def send(file, *overrides, out="s3://bucket/run", **options):
    return submit.submit(file, "http://h:1", out, overrides=list(overrides), **options)


def test_the_workflow_and_the_code_that_it_names_are_sent_and_nothing_else(
    flow, client, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-of-the-cluster")
    job = send(flow(), "seed=3")
    sent = client.sent[job.id]
    assert "the-token" not in repr((job, sent))
    assert sent.files.keys() == {"workflow.yaml", "code/m.py", "own.py"}
    assert yaml.safe_load(sent.files["workflow.yaml"]) == {**FLOW, "seed": 3}
    assert sent.entrypoint == "python -m raysel.cli run workflow.yaml --out s3://bucket/run"
    assert sent.metadata == {"raysel": "t"} and not os.path.exists(sent.env["working_dir"])
    assert sent.env["py_modules"] == [str(ROOT / "raysel")]  # a checkout travels
    monkeypatch.setattr(submit, "_installed", lambda: True)
    (tmp_path / "env.yaml").write_text("pip: [timm]\nenv_vars: {A: b}\n")
    installed = client.sent[send(flow(), runtime_env=tmp_path / "env.yaml").id].env
    assert "py_modules" not in installed and installed["pip"] == ["timm"]
    assert installed["env_vars"] == {"A": "b", "RAYSEL_SUBMITTED_BY": submit.raysel.__version__}
    submit.check_version()
    monkeypatch.setenv("RAYSEL_SUBMITTED_BY", "0.0.1")
    with pytest.raises(ConfigError, match=r"submitted by raysel 0\.0\.1, and the cluster has raysel"):
        submit.check_version()


def test_the_same_workflow_attaches_while_it_runs_and_is_tried_again_after(flow, client, tmp_path):
    first = send(flow())
    assert re.fullmatch(r"raysel-[0-9a-f]{12}-1", first.id) and not first.attached
    assert send(flow()) == submit.Job(first.id, "s3://bucket/run", True) and len(client.sent) == 1
    for ended in ("FAILED", "STOPPED", "SUCCEEDED"):
        client.end(max(client.jobs), ended)
        again = send(flow())
        assert not again.attached and again.id[:-1] == first.id[:-1]
    assert again.id.endswith("-4")
    (tmp_path / "code/m.py").write_text("other")
    others = {send(flow()).id, send(flow(), "seed=1").id, send(flow(), out="/shared/run").id}
    assert len(others) == 3 and all(name.endswith("-1") and name != first.id for name in others)


def test_the_log_is_followed_to_the_exit_code(flow, client):
    job, shown = send(flow()).id, []
    client.logs[job] = [["one\n", RuntimeError("closed")], ["one\n", "two\n"], ["one\ntwo\nth", "ree\n"]]
    running, client.get_job_info = client.get_job_info, lambda name: SimpleNamespace(status=Status("RUNNING"))

    def info(name):
        return running(name) if not client.logs[job] else SimpleNamespace(status=Status("RUNNING"))

    client.get_job_info = info
    client.end(job, "FAILED", 3)
    assert submit.follow("http://h:1", job, shown.append) == 3 and "".join(shown) == "one\ntwo\nthree\n"
    for status, code, exit_code in (("SUCCEEDED", 0, 0), ("STOPPED", None, 143), ("FAILED", None, 1)):
        client.logs[job] = [[]]
        client.end(job, status, code, "No resources.")
        shown.clear()
        assert submit.follow("http://h:1", job, shown.append) == exit_code
        assert shown == (["No resources.\n"] if status == "FAILED" else [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool": {"path": "data/pool", "label": "y"}}, r"^pool\.path: data/pool is a path on this machine"),
        (
            {"test": {"path": ["s3://b/t", "../t"], "label": "y"}},
            r"^test\.path\.1: \.\./t is a path on this machine",
        ),
        (
            {"train": {"model": "../m.py:f", "input": "x"}},
            r"^train\.model: \.\./m\.py is outside of the folder",
        ),
        (
            {"train": {"model": "none.py:f", "input": "x"}},
            r"^train\.model: The file .*/none\.py does not exist",
        ),
        ({"pool": "~/data"}, r"^pool: ~/data is in your home folder, which"),
        (
            {"test": {"path": ["s3://b/t", "~me"], "label": "y"}},
            r"^test\.path\.1: ~me is in your home folder",
        ),
        ({"train": {"model": "~/m.py:f", "input": "x"}}, r"^train\.model: ~/m\.py:f is in your home folder"),
        ({"train": {"modle": 1}}, r"flow\.yaml: The key 'train\.modle' is unknown"),
    ],
)
def test_what_the_cluster_cannot_see_is_refused(flow, client, changes, words):
    with pytest.raises(ConfigError, match=words):
        send(flow(**changes))
    assert not client.sent


def test_the_versions_on_the_cluster_are_compared_before_anything_is_sent(flow, client, caplog):
    send(flow())
    assert not caplog.records
    here = f"Ray {ray.__version__} and Python {platform.python_version()}"
    client.versions = {"rayVersion": "2.71.0", "pythonVersion": "3.13.1"}
    send(flow(), "seed=1")
    said = f"The cluster at http://h:1 runs Ray 2.71.0 and Python 3.13.1, but this machine has {here}. The job runs with the versions of the cluster."
    assert [record.message for record in caplog.records] == [said] and len(client.sent) == 2
    for theirs, words in (
        (("2.58.1", "3.13.1"), r"runs Ray 2\.58\.1 and Python 3\.13\.1, but raysel needs Ray 2\.59 or newer"),
        (("2.60.0", "3.9.18"), r"but raysel needs Python 3\.10 or newer; update the cluster\.$"),
    ):
        client.versions = dict(zip(("rayVersion", "pythonVersion"), theirs, strict=True))
        with pytest.raises(ConfigError, match=words):
            send(flow(), "seed=2")
    assert len(client.sent) == 2
    client.versions = {}  # of a later Ray, which may have its own way
    assert send(flow(), "seed=2").id in client.sent


def test_what_is_wrong_with_a_job_is_one_sentence(flow, client, monkeypatch, tmp_path):
    for place in ("runs/x", "~/x"):
        with pytest.raises(ConfigError, match=rf"^--out {place}: A job needs a permanent directory"):
            send(flow(), out=place)
    for text, words in (
        ("[1]", "is not a runtime environment"),
        ("working_dir: x", "is set by raysel"),
        (
            "env_vars: [a]",
            "The value of 'env_vars' has the wrong type; it must be a mapping, for example 'env_vars: {A: b}'",
        ),
        (
            "py_modules: 3",
            "The value of 'py_modules' has the wrong type; it must be a list, for example 'py_modules: ",
        ),
    ):
        (tmp_path / "env.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            send(flow(), runtime_env=tmp_path / "env.yaml")
    for error, kind, words in (
        (
            RuntimeError("Request failed with status code 500: x."),
            ResourceError,
            "failed: Request failed with status",
        ),
        (
            RuntimeError("The Ray jobs CLI & SDK require the ray[default] installation"),
            ConfigError,
            r"raysel\[cluster\]",
        ),
        (submit_authentication(), ResourceError, "requires a token"),
    ):
        monkeypatch.setattr(client, "list_jobs", fails(error))
        with pytest.raises(kind, match=words):
            send(flow())
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(submit, "_REPLY_S", 0.2)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            ResourceError, match=rf"^The Ray cluster at {url} cannot be reached: timed out\. Check"
        ):
            submit.submit(flow(), url, "s3://b/r")
    with pytest.raises(ResourceError, match="cannot be reached: Connection refused"):
        submit.submit(flow(), url, "s3://b/r")
    for wrong in ("http://127.0.0.1:abc", "http://[::1:1", "http://127.0.0.1:99999"):
        with pytest.raises(ResourceError, match=r"^The Ray cluster at http://.* cannot be reached: .+ Check"):
            submit.submit(flow(), wrong, "s3://b/r")
    for wrong in ("http://a b:1", f"{url}/x\n", "http://\u00fc:1", "http://", ""):
        with pytest.raises(ConfigError, match=r"^--address [^\n]*: Jobs are submitted to the dashboard of a"):
            submit.submit(flow(), wrong, "s3://b/r")
    with pytest.raises(ConfigError, match=r"^--address ray://h:1: Jobs are submitted to the dashboard"):
        submit.submit(flow(), "ray://h:1", "s3://b/r")


def test_a_server_that_is_not_a_dashboard(flow):
    pytest.importorskip("aiohttp", reason="needs the extra raysel[cluster]")
    with other_server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as other:
        words = rf"^The server at {other} is not the dashboard of a Ray cluster: .+\. Check the address\.$"
        with pytest.raises(ResourceError, match=words):
            submit.submit(flow(), other, "s3://b/r")
    with (
        other_server(b"\0garbage\r\n\r\n") as other,
        pytest.raises(ResourceError, match=rf"^The Ray cluster at {other} cannot be reached: "),
    ):
        submit.submit(flow(), other, "s3://b/r")


@contextmanager
def other_server(reply):
    """The address of a server that is not Ray's, which replies this to everything."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def submit_authentication():
    import ray

    return ray.exceptions.AuthenticationError("no token")


def fails(error):
    def fail():
        raise error

    return fail


def test_the_command(flow, client, capsys):
    words = ["submit", str(flow()), "--address", "http://h:1", "--out", "s3://bucket/run"]
    cli.main(words, standalone_mode=False)
    job = max(client.jobs)
    assert f"Job {job} was submitted. Results: s3://bucket/run" in capsys.readouterr().err
    client.logs[job] = [["log\n"], ["log\n"]]
    client.jobs[job].status = Status("RUNNING")
    client.get_job_info = lambda name: SimpleNamespace(status=Status("STOPPED"), driver_exit_code=None)
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--follow"], standalone_mode=False)
    shown = capsys.readouterr()
    assert ended.value.code == 143 and shown.out == "log\n" and f"Job {job} is running." in shown.err
    client.logs[job] = [["log\n"], ["log\n"]]
    with pytest.raises(SystemExit):
        cli.main([*words, "--follow", "--json"], standalone_mode=False)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"id": job, "out": "s3://bucket/run", "attached": True}
    assert shown.err.endswith("log\n")


@pytest.fixture
def two_nodes(tmp_path):
    """A head without CPUs, with a dashboard, and two nodes of one CPU, that require a token."""
    port, dashboard, *agents = free_ports(5)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with ExitStack() as running:
        for number, agent in enumerate(agents):
            place = [*head, "--num-cpus=0"]
            if number:  # a folder of its own, as on a machine of its own: Ray unpacks the job once per node
                own = running.enter_context(tempfile.TemporaryDirectory(prefix="node-"))
                place = [f"--address=127.0.0.1:{port}", "--num-cpus=1", f"--temp-dir={own}"]
            words = [*place, f"--dashboard-agent-listen-port={agent}"]
            running.enter_context(node(words, environment, tmp_path / f"node-{number}.txt"))
        yield f"http://127.0.0.1:{dashboard}", environment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_on_two_nodes_with_everything_on_s3_is_stopped_and_ends_as_on_a_laptop(two_nodes, s3, tmp_path):
    address, environment = two_nodes
    made = [sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(tmp_path)]
    subprocess.run(made, check=True, capture_output=True)
    roles = ("pool", "target", "test")
    for role in roles:
        storage.write_bytes(f"{s3}/data/{role}.parquet", (tmp_path / f"{role}.parquet").read_bytes())
    out = storage.output(f"{s3}/run")
    command = [sys.executable, "-m", "raysel.cli", "submit", str(ROOT / "workflows/quickstart.yaml")]
    command += ["--address", address, "--out", str(out), "--set", "train.cpus_per_worker=0.5"]
    command += ["--set", "controls=[]"]
    for role in roles:
        command += ["--set", f"{role}.path={s3}/data/{role}.parquet"]

    def raysel(*more, **changes):
        return subprocess.run(
            [*command, *more], env={**environment, **changes}, capture_output=True, text=True, timeout=600
        )

    refused = raysel(RAY_AUTH_TOKEN="f" * 64)
    assert refused.returncode == 1 and "requires a token" in refused.stderr, refused.stderr
    probe = "import platform, sys; from raysel.workflow import submit; platform.python_version = lambda: '3.10.0'; "
    probe += "submit._compare_versions(submit._client(sys.argv[1]), sys.argv[1])"
    probed = subprocess.run(
        [sys.executable, "-c", probe, address], env=environment, capture_output=True, text=True, timeout=120
    )
    assert f"runs Ray {ray.__version__} and Python {platform.python_version()}, but this" in probed.stderr
    first = raysel()
    assert first.returncode == 0 and "but this machine" not in first.stderr, first.stderr
    name = re.search(r"Job (raysel-\w+-1) was submitted\. Results: s3://", first.stderr)[1]
    followed = subprocess.Popen(
        [*command, "--follow"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 400
    while not checkpoints(out):
        assert time.monotonic() < deadline and followed.poll() is None, followed.communicate()
        time.sleep(0.5)
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", address, name]
    subprocess.run(stop, env=environment, check=True, capture_output=True)
    log, said = followed.communicate(timeout=120)
    assert followed.returncode == 143 and f"Job {name} is running." in said and "select" in log, (log, said)
    kept = checkpoints(out)
    second = raysel("--follow")
    assert second.returncode == 0, (second.stdout[-3000:], second.stderr)
    assert len(second.stderr.splitlines()) == 1, second.stderr  # no lines of Ray's
    assert f"Job {name[:-1]}2 was submitted." in second.stderr and "Report: s3://" in second.stdout
    assert re.search(r"select +reused", second.stdout) and kept
    results = RunResults.load(out / "results.json")
    expected = json.loads(golden.EXPECTED.read_text())["quickstart"]
    selected = Selection.load(out / results.selection.folder)
    assert (len(selected), golden.digest(selected.ids)) == tuple(
        expected["selection"][name] for name in ("rows", "ids")
    )
    planned = [epoch.planned for epoch in results.arms["chain"].epochs]
    assert len(planned) == 12 and planned[0] == expected["planned first"]
    assert planned[-2:] == expected["planned last"]


def checkpoints(out):
    """Checkpoints of the first training."""
    folders = [name for name in storage.entries(out / "steps") if name.startswith("train-chain-")]
    return [
        name
        for folder in folders
        for name in storage.entries(out / "steps" / folder / "ray" / folder)
        if name.startswith("checkpoint_")
    ]
