"""One local Ray cluster and one object store for the whole session, started when the first test asks for them."""

from __future__ import annotations

import logging
import os
import socket
import time

# Before anything imports Ray: no network, quick controller, quiet bars.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# The arrays here are small: a second thread gains little, and spins where its core is another process's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every process finds the object store here, and no other one.
with socket.create_server(("127.0.0.1", 0)) as _free:
    S3_PORT = _free.getsockname()[1]
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{S3_PORT}"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "test"

import pytest
from hypothesis import settings

settings.register_profile(
    "raysel", deadline=None
)  # how long an example takes depends on what else the machine does
settings.load_profile("raysel")


@pytest.fixture(scope="session")
def cluster():
    """A real local Ray cluster of 2 CPUs; tests share it and leave it clean."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 * 2**20,
        namespace="raysel-tests",
    )
    from raysel.cluster.connect import quiet

    quiet()
    yield ray
    ray.shutdown()


@pytest.fixture
def idle(cluster):
    """The cluster, once the processes of earlier tests have given their CPUs back."""
    limit = time.monotonic() + 60
    while (free := cluster.available_resources().get("CPU", 0)) < 2:
        assert time.monotonic() < limit, f"{free:g} of 2 CPUs are free 60 s after the last test"
        time.sleep(0.05)
    return cluster


@pytest.fixture(scope="session")
def object_store():
    """A server of S3 on the loopback interface, with the bucket ``bucket``."""
    import pyarrow.fs as pafs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=S3_PORT, verbose=False)
    server.start()
    url = os.environ["AWS_ENDPOINT_URL"]
    patient = {"connect_timeout": 60, "request_timeout": 60}  # the server may have to be imported first
    maker = pafs.S3FileSystem(
        endpoint_override=url, region="us-east-1", allow_bucket_creation=True, **patient
    )
    maker.create_dir("bucket")
    yield server
    server.stop()


@pytest.fixture
def s3(object_store, request):
    """URI of a folder of this test alone on the object store."""
    return f"s3://bucket/{request.node.name}".partition("[")[0] + f"-{id(request)}"
