"""A private SLURM on the loopback interface: its own key, ports and folders, every daemon stopped by its pid."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
START = 60.0  # seconds for everything to come up on a busy machine


def missing(programs: tuple[str, ...] = PROGRAMS) -> str:
    """Why there can be no cluster here, or nothing."""
    if os.geteuid() != 0:
        return "the private SLURM needs root"
    absent = [name for name in programs if shutil.which(name, path=SEARCH) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports nobody listens on."""
    while True:
        first = random.randrange(20000, 32000)
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()


@dataclass
class Cluster:
    """munged, slurmctld and some slurmd, each of which claims to be a node of its own."""

    folder: Path
    nodes: int = 2
    cpus: int = 4  # per node; more than the machine has is fine
    more_cpus: dict[int, int] = field(default_factory=dict)  # by node: where it has others
    accounting: bool = False
    max_array: int = 1001
    features: dict[int, str] = field(default_factory=dict)  # by node: what jobs can ask for as a constraint
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """For whoever wants to use the cluster."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        for name in ("etc", "state", "log", "run", "spool", "munge"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        self._start_undertaker()
        self.port = free_ports(self.nodes + 2)
        self.conf.write_text(self._slurm_conf(), encoding="utf-8")
        try:
            self._start_munged()
            if self.accounting:
                self._start_database()
            self.start_controller()
            for number in range(self.nodes):
                self.start_node(number)
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Whatever the state of things, nothing of the cluster survives this."""
        if "slurmctld" in self.pids:
            with suppress(subprocess.SubprocessError):
                self.ask("scancel", "--user=root")
                self._wait_for(lambda: not self.ask("squeue", "--noheader"), 10)
        jobs = self.job_processes()
        order = [name for name in self.pids if name.startswith("slurmd.")]
        for name in [*order, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self.end(name)
        for pid in jobs:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._undertaker.kill()
        self._undertaker.communicate()

    def start_controller(self) -> None:
        self._daemon("slurmctld", "-f", str(self.conf))

    def start_node(self, number: int, before: tuple[str, ...] = ()) -> None:
        """`before` are words of a command that runs the daemon."""
        self._daemon("slurmd", "-f", str(self.conf), "-N", f"n{number}", name=f"slurmd.n{number}", before=before)

    def end(self, name: str, signal: int = 15) -> None:
        """Stop one daemon, and wait until it is gone."""
        pid = self.pids.pop(name, None)
        if pid is None:
            return
        self._note_pids()
        for number, patience in ((signal, 15.0), (9, 15.0)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if self._wait_for(lambda: not _alive(pid), patience):
                return
        raise RuntimeError(f"{name} (process {pid}) does not end")

    def ask(self, *command: str) -> str:
        """What a command of SLURM's prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    def job_processes(self, number: str = "") -> list[int]:
        """Everything that jobs of this cluster, or one of them, have started and that still lives."""
        mark = f"SLURM_CONF={self.conf}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (path / "environ").read_bytes().split(b"\0")
                if mark in words and any(word.startswith(b"SLURM_JOB_ID=" + number.encode()) for word in words):
                    found.append(int(path.name))
        return found

    def _daemon(self, program: str, *arguments: str, name: str = "", before: tuple[str, ...] = ()) -> None:
        """Kept in the foreground as our child, so that its pid is known and cannot be anybody else's."""
        name = name or program
        path = shutil.which(program, path=SEARCH)
        assert path is not None
        flag = {"munged": "--foreground", "mariadbd": "--no-defaults"}.get(program, "-D")
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [*before, path, flag, *arguments],
                env={**self.environment, "MYSQL_UNIX_PORT": str(self.folder / "run/mysql.sock")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        _children[process.pid] = process
        self.pids[name] = process.pid
        self._note_pids()

    def _start_undertaker(self) -> None:
        """Ends everything should we be killed: the pipe it reads from closes with us."""
        words = ["sh", "-c", _UNDERTAKER, "undertaker", str(self.folder), str(self.conf)]
        self._undertaker = subprocess.Popen(
            words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def _note_pids(self) -> None:
        (self.folder / "pids").write_text(" ".join(map(str, self.pids.values())), encoding="utf-8")

    def _start_munged(self) -> None:
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        places = {"key-file": key, "socket": self._socket, "pid-file": "run/munged.pid", "log-file": "log/munged.log"}
        places["seed-file"] = "munge/seed"
        self._daemon("munged", *(f"--{option}={self.folder / place}" for option, place in places.items()))
        if not self._wait_for(self._socket.exists, 10):
            raise RuntimeError((self.folder / "log" / "munged.out").read_text(errors="replace"))

    def _start_database(self) -> None:
        folder, sock = self.folder / "mysql", self.folder / "run/mysql.sock"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={folder}", "--skip-test-db"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], capture_output=True, check=True)
        self._daemon(
            "mariadbd",
            *("--user=root", f"--datadir={folder}", f"--socket={sock}", "--skip-networking"),
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=64M", "--innodb-lock-wait-timeout=900"),
            "--innodb-flush-log-at-trx-commit=0",
        )
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "-e", "CREATE DATABASE IF NOT EXISTS slurm_acct_db"]
        self._wait_for(lambda: subprocess.run(client, capture_output=True).returncode == 0, START)
        conf = self.folder / "etc" / "slurmdbd.conf"
        conf.write_text(_DATABASE.format(socket=self._socket, host=_host(), port=self.port + 1, folder=self.folder))
        conf.chmod(0o600)
        self._daemon("slurmdbd")
        self._wait_for(self._database_listens, START)

    def _database_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port + 1)) == 0

    def wait_until_ready(self) -> None:
        """Until every node has said to the controller that it is there."""

        def up() -> int:
            with suppress(subprocess.SubprocessError):
                states = self.ask("sinfo", "--noheader", "--Node", "--format=%N %t").splitlines()
                return len({line.split()[0] for line in states if line.split()[1] in ("idle", "mix", "alloc")})
            return 0

        def ready() -> bool:
            return not _alive(self.pids["slurmctld"]) or up() == self.nodes

        self._wait_for(ready, START)
        if up() != self.nodes:
            log = (self.folder / "log" / "slurmctld.log").read_text(errors="replace")
            raise RuntimeError(f"the private SLURM did not come up: {log[-2000:]}")

    def _wait_for(self, condition: object, seconds: float) -> bool:
        assert callable(condition)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.05)
        return False

    def _feature(self, number: int) -> str:
        return f" Feature={self.features[number]}" if number in self.features else ""

    @property
    def _socket(self) -> Path:
        return self.folder / "munge" / "munge.sock"

    def _slurm_conf(self) -> str:
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = (
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
                f"AccountingStoragePort={self.port + 1}\nAccountingStoragePass={self._socket}\n"
                "AccountingStorageEnforce=associations,limits"
            )
        nodes = "\n".join(
            f"NodeName=n{number} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={self.port + 2 + number}"
            f" CPUs={self.more_cpus.get(number, self.cpus)} RealMemory=8000{self._feature(number)}"
            for number in range(self.nodes)
        )
        return _CONTROLLER.format(
            folder=self.folder,
            host=_host(),
            port=self.port,
            socket=self._socket,
            max_array=self.max_array,
            accounting=accounting,
            nodes=nodes,
            last=self.nodes - 1,
        )


_children: dict[int, subprocess.Popen[bytes]] = {}


def _alive(pid: int) -> bool:
    process = _children.get(pid)
    return process is not None and process.poll() is None


def _host() -> str:
    return socket.gethostname().split(".")[0]


# Why each line is as it is: proctrack/linuxproc because cgroups may not be mounted as SLURM wants them;
# CommunicationParameters keep every socket on 127.0.0.1; cred_expire shortens the wait before a requeued
# job starts again (120 s by default); preempt_send_user_signal and GraceTime announce a preemption.
_CONTROLLER = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=10
MinJobAge=300
MaxArraySize={max_array}
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
{accounting}
{nodes}
PartitionName=low Nodes=n[0-{last}] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[0-{last}] PriorityTier=10 PreemptMode=OFF
"""

_UNDERTAKER = """\
cat > /dev/null
kill -9 $(cat "$1/pids")
for process in /proc/[0-9]*; do
    words=$(tr '\\0' '\\n' < $process/environ 2> /dev/null)
    case $words in *SLURM_CONF=$2*SLURM_JOB_ID=* | *SLURM_JOB_ID=*SLURM_CONF=$2*) kill -9 ${process#/proc/} ;; esac
done
rm -rf "$1"
"""

_DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={socket}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CommunicationParameters=NoInAddrAny
"""
