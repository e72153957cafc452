"""`jupyter lab analysis/` as a browser meets it: pages and files over HTTP, cells over the kernel's web socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

websocket = pytest.importorskip("websocket")
pytest.importorskip("jupyterlab")

ROOT = Path(__file__).parents[2]
TOKEN = uuid.uuid4().hex
PATIENCE = 240  # seconds, on a machine busy with other work


@contextmanager
def lab(folder: Path, runtime: Path) -> Iterator[str]:
    """The address of a JupyterLab server that shows the folder."""
    places = {f"JUPYTER_{name}_DIR": str(runtime / name.lower()) for name in ("RUNTIME", "DATA", "CONFIG")}
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--no-browser", "--allow-root", f"--IdentityProvider.token={TOKEN}", "--ServerApp.port=0"]
    command = [sys.executable, "-m", "jupyterlab", str(folder), *options]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield address_of(runtime / "runtime" / f"jpserver-{server.pid}.json", server)
    finally:
        server.terminate()
        server.wait(30)


def address_of(file: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        if file.exists() and file.stat().st_size:
            return f"127.0.0.1:{json.loads(file.read_text(encoding='utf-8'))['port']}"
        time.sleep(0.2)
    raise AssertionError(f"no server after {PATIENCE} s, exit status {server.poll()}")


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text = answer.read()
    return json.loads(text) if "json" in answer.headers["Content-Type"] else text.decode()


def run_notebook(address: str, name: str) -> list[str]:
    """Every code cell in a kernel of its own; the errors it made."""
    content = ask(address, f"api/contents/{name}?content=1")["content"]
    session = {"name": name, "path": name, "type": "notebook", "kernel": {"name": "python3"}}
    kernel = ask(address, "api/sessions", session)["kernel"]["id"]
    socket = websocket.create_connection(f"ws://{address}/api/kernels/{kernel}/channels?token={TOKEN}", PATIENCE)
    try:
        sources = [source_of(cell) for cell in content["cells"] if cell["cell_type"] == "code"]
        return [error for source in sources for error in execute(socket, source)]
    finally:
        socket.close()


def source_of(cell: dict[str, Any]) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def execute(socket: Any, source: str) -> list[str]:
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "execute_request", "username": "", "session": number, "version": "5.3"}
    content = {"code": source, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    socket.send(json.dumps({**message, "buffers": []}))
    errors: list[str] = []
    while True:
        said = json.loads(socket.recv())
        if said["parent_header"].get("msg_id") != number:
            continue
        if said["msg_type"] == "error":
            errors.append(f"{said['content']['ename']}: {said['content']['evalue']}")
        if said["msg_type"] == "status" and said["content"]["execution_state"] == "idle":
            return errors


def test_jupyter_lab_opens_the_folder_and_runs_a_notebook(tmp_path: Path) -> None:
    with lab(ROOT / "analysis", tmp_path) as address:
        assert "JupyterLab" in ask(address, "lab")
        listed = {entry["name"] for entry in ask(address, "api/contents/")["content"]}
        assert {path.name for path in (ROOT / "analysis").glob("*.ipynb")} <= listed
        assert run_notebook(address, "08_grids.ipynb") == []


if __name__ == "__main__":  # all of them, by hand
    import tempfile

    with tempfile.TemporaryDirectory() as folder, lab(ROOT / "analysis", Path(folder)) as address:
        for path in sorted((ROOT / "analysis").glob("*.ipynb")):
            print(path.name, run_notebook(address, path.name) or "ran", flush=True)
