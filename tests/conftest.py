"""One local Ray cluster for the whole session, started when the first test asks for it."""

from __future__ import annotations

import os

# Before anything imports Ray: no network, quick controller, quiet bars.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# The arrays here are small: a second thread gains little, and spins where its core is another process's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


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
