"""``hf://`` against a server on this machine that answers as the Hugging Face Hub does."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow


def parquet(values):
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": values}), sink)
    return sink.getvalue()


FILES = {"data/0.parquet": parquet([1, 2]), "data/1.parquet": parquet([3]), "more/a.jsonl": b'{"x": 7}\n'}


def entry(path):
    return {"type": "file", "path": path, "size": len(FILES[path]), "oid": "b" * 40}


def folder(path):
    return {"type": "directory", "path": path, "oid": "c" * 40}


class Hub(BaseHTTPRequestHandler):
    """One data set, me/rows, with FILES."""

    def log_message(self, *arguments):
        pass

    def answer(self, code, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        url = urlparse(self.path)
        path = unquote(url.path)
        if re.fullmatch(r"/api/datasets/me/rows(/revision/[^/]+)?", path):
            return self.answer(200, {"id": "me/rows", "sha": "a" * 40, "siblings": []})
        if tree := re.fullmatch(r"/api/datasets/me/rows/tree/[^/]+/?(.*)", path):
            above = f"{tree[1]}/" if tree[1] else ""
            inside = [name for name in FILES if name.startswith(above)]
            deep = parse_qs(url.query).get("recursive", [""])[0].lower() == "true"
            found = [
                folder(name)
                for name in {above + name[len(above) :].partition("/")[0] for name in inside} - set(FILES)
            ]
            found += [entry(name) for name in inside if deep or "/" not in name[len(above) :]]
            return self.answer(200 if found else 404, found, X_Error_Code="EntryNotFound")
        if file := re.fullmatch(r"/datasets/me/rows/resolve/[^/]+/(.*)", path):
            content = FILES[file[1]]
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if span and self.command == "GET":
                return self.answer(206, content[int(span[1]) : int(span[2]) + 1], ETag="b")
            return self.answer(200, content, ETag="b", Accept_Ranges="bytes", X_Repo_Commit="a" * 40)
        return self.answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "/me/rows/paths-info/" not in self.path:
            return self.answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        found = [entry(path) for path in paths if path in FILES]
        found += [folder(path) for path in paths if any(name.startswith(f"{path}/") for name in FILES)]
        return self.answer(200, found)


CODE = """
import sys
from raysel.errors import DataError
from tests.data.test_formats import table
for uri in sys.argv[1:]:
    try:
        print(table(uri)["x"].to_pylist())
    except DataError as error:
        print(error)
"""


def test_rows_of_a_hub(tmp_path):
    pytest.importorskip("huggingface_hub", reason="needs the extra raysel[datasets]")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uris = [
        f"hf://datasets/me/{name}"
        for name in (
            "rows/data",
            "rows/data/*.parquet",
            "rows/more",
            "rows@main/data/1.parquet",
            "rows/none",
            "other/x",
        )
    ]
    more = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE, *uris],
            env=os.environ | more,
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        server.shutdown()
    assert done.stdout.splitlines() == ["[1, 2, 3]", "[1, 2, 3]", "[7]", "[3]"] + [
        f"{uri} does not exist, or cannot be reached." for uri in uris[4:]
    ], done.stderr
