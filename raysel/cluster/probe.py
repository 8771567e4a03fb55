"""Look at a Ray cluster from a process of its own, which Ray's native code may abort; prints what it found as JSON.

Run as ``python -c SOURCE ADDRESS SECONDS`` by `raysel.cluster.connect`. A process that is ended by SIGALRM got no reply
within the given number of seconds, not counting the import of Ray.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

_NODE_S = 5.0  # for a node that is just starting to register


def look(address: str) -> dict[str, Any]:
    """Return versions of the cluster, its address and nodes, and whether this machine is one of them."""
    # Ray has no public way to look at a cluster without joining it.
    from ray._private import services
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    place = services.canonicalize_bootstrap_address_or_die(address)
    client = GcsClient(address=place)
    versions = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster") or b"{}")
    limit = time.monotonic() + _NODE_S
    while True:
        nodes = [node for node in client.get_all_node_info().values() if not node.state]  # 0 is alive
        here = {node.node_id.hex() for node in nodes} & set(services.find_node_ids())
        if here or time.monotonic() > limit:
            break
        time.sleep(0.5)
    return {
        "address": place,
        "ray": versions.get("ray_version"),
        "python": versions.get("python_version"),
        "nodes": sorted(node.node_manager_address for node in nodes),
        "here": bool(here),
    }


def main() -> None:
    """Print what was found as one line of JSON, or the class and the text of the error; {} if this Ray has no such interface."""
    import ray  # noqa: F401  (not counted in the limit)

    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))  # ends the process also within native code
    try:
        found = look(sys.argv[1])
    except (ImportError, AttributeError, TypeError):
        found = {}
    except Exception as error:
        found = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
