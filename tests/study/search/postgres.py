"""A PostgreSQL of one's own: its files in one folder, reached through a socket there, gone with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

PLACES = os.pathsep.join(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)))  # Debian's
START = 60.0  # seconds


def missing() -> str:
    """Why there can be no server here, or nothing."""
    absent = [name for name in ("initdb", "postgres") if program(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: postgresql)"
    if find_spec("psycopg") is None:
        return "not installed: psycopg (pip install 'psycopg[binary]')"
    return "" if os.geteuid() else _no_account()


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{PLACES}{os.pathsep}{os.environ.get('PATH', '')}")


def _no_account() -> str:
    """It refuses to be root's."""
    try:
        pwd.getpwnam("postgres")
        return ""
    except KeyError:
        return "as root, it needs a user called postgres"


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database."""
    user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, user)
        data, given = folder / "data", {"user": user} if os.geteuid() == 0 else {}
        initdb, postgres = program("initdb"), program("postgres")
        assert initdb is not None
        assert postgres is not None
        words = [initdb, "-D", str(data), "-A", "trust", "-U", user, "--no-sync"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True, **given)  # type: ignore[call-overload]
        options = ["-c", "listen_addresses=", "-k", name, "-c", "fsync=off", "-c", "max_connections=50"]
        log = (folder / "log").open("wb")
        process = subprocess.Popen([postgres, "-D", str(data), *options], cwd=folder, stdout=log, stderr=log, **given)  # type: ignore[call-overload]
        try:
            _await(folder, process)
            yield f"postgresql+psycopg://{user}@/postgres?host={name}"
        finally:
            process.send_signal(signal.SIGINT)  # its fast way: it does not wait for clients
            process.wait(START)
            log.close()


def _await(folder: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START
    while b"ready to accept connections" not in (folder / "log").read_bytes():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError((folder / "log").read_text(errors="replace"))
        time.sleep(0.05)
