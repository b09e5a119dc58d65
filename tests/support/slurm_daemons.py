"""A real Slurm of a few virtual nodes on this machine, for as long as standard input stays open.

    python daemons.py FOLDER --nodes 3 --cpus 2 [--gpus 2] [--conf Key=Value ...] [--own-networks]

Debian builds Slurm so that several slurmd may run on one machine, each with a name and a port of its own. All daemons
run in the foreground, with a private key, and everything lies in FOLDER (short, and in memory: slurmctld syncs its
state at each change). Prints "ready", then answers each line of standard input ("kill n2", "kill-daemon n2",
"start n2", "processes n2") with a line. At the end of the input, by a dead parent too, it kills all that the cluster
has started.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

READY_SECONDS = 20.0
PR_SET_CHILD_SUBREAPER = 36
NETWORK = "10.88.0"

CONFIG = """
ClusterName=tests
SlurmctldHost={head}({head_address})
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
FirstJobId={ports[0]}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
{binding}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
InactiveLimit=0
MinJobAge=3600
KillWait=30
MessageTimeout=10
"""
# FirstJobId: the port on which a job's processes meet comes from its id, and clusters on one machine share its ports.
# ProctrackType: like cgroup, the usual choice, pgid does not deliver signals to what a task has started in a session of
# its own; linuxproc would, and hide a launcher that passes nothing on. cred_expire is how long a requeued job waits.


class Daemons:
    """The daemons of one cluster, children of this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Path(options.folder)
        self.options = options
        self.names = [f"n{number}" for number in range(1, options.nodes + 1)]
        self.ports = free_ports(options.nodes + 1)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        outside = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        self.environ |= {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def start(self) -> None:
        for name in ("log", "state", *(f"spool.{node}" for node in self.names)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.configure()
        if self.options.own_networks:
            self.begin_network()
        munge = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid", "log-file=log/munged")
        words = [f"--{word.replace('=', f'={self.folder}/')}" for word in (*munge, "seed-file=munge.seed")]
        self.spawn("munged", ["munged", "-F", *words])
        self.wait(lambda: can_connect(str(self.folder / "munge.socket")), "munged")
        self.spawn("slurmctld", ["slurmctld", "-D"])
        # A slurmd or client that is refused once waits for seconds before it asks again.
        self.wait(lambda: can_connect((self.head_address, self.ports[0])), "slurmctld")
        for name in self.names:
            self.start_node(name)
        self.wait(self.all_idle, "the nodes")

    @property
    def head_address(self) -> str:
        return f"{NETWORK}.1" if self.options.own_networks else "127.0.0.1"

    def configure(self) -> None:
        own, gpus = self.options.own_networks, self.options.gpus
        head = "head" if own else socket.gethostname().partition(".")[0]
        # These flags bind to the address of the host's name; elsewhere than at 127.0.0.1 an srun in a job would hang.
        local = own or resolves_to(head) == {"127.0.0.1"}
        text = CONFIG.format(
            folder=self.folder,
            head=head,
            head_address=self.head_address,
            ports=self.ports,
            user=psutil.Process().username(),
            binding="CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if local else "",
        )
        replaced = {setting.partition("=")[0]: setting for setting in self.options.conf}
        lines = [line for line in text.splitlines() if line.partition("=")[0] not in replaced]
        lines += [*replaced.values(), *(["GresTypes=gpu"] if gpus else [])]
        for number, name in enumerate(self.names, start=1):
            host, address = (name, f"{NETWORK}.{10 + number}") if own else (head, "127.0.0.1")
            lines.append(
                f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={self.ports[number]} "
                f"CPUs={self.options.cpus} RealMemory=4000 State=UNKNOWN{f' Gres=gpu:{gpus}' if gpus else ''}"
            )
        for name, tier, more in (("main", 5, "Default=YES PreemptMode=OFF"), ("high", 10, "PreemptMode=OFF")):
            lines.append(f"PartitionName={name} Nodes=ALL PriorityTier={tier} MaxTime=INFINITE State=UP {more}")
        for name, grace in (("low", 0), ("graceful", 30)):
            more = f"PreemptMode=REQUEUE GraceTime={grace}"
            lines.append(f"PartitionName={name} Nodes=ALL PriorityTier=1 MaxTime=INFINITE State=UP {more}")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "plugstack.conf").touch()
        if gpus:
            devices = f"/dev/tty[0-{gpus - 1}]" if gpus > 1 else "/dev/tty0"  # any device: nothing is opened
            gres = "".join(f"NodeName={name} Name=gpu File={devices}\n" for name in self.names)
            (self.folder / "gres.conf").write_text(gres)
        if own:
            addresses = [(f"{NETWORK}.{10 + number}", name) for number, name in enumerate(self.names, start=1)]
            rows = [("127.0.0.1", "localhost"), (f"{NETWORK}.1", "head"), *addresses]
            (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in rows))

    def begin_network(self) -> None:
        """This process is in namespaces of its own: a bridge for the nodes, and a hosts file with their names."""
        run("mount", "--make-rprivate", "/")
        run("mount", "--bind", str(self.folder / "hosts"), "/etc/hosts")
        run("hostname", "head")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", "br0")
        run("ip", "link", "set", "br0", "up")

    def start_node(self, name: str) -> None:
        words = ["slurmd", "-D", "-N", name]
        if not self.options.own_networks:
            self.spawn(name, words)
            return
        address = f"{NETWORK}.{10 + int(name[1:])}/24"
        inside = (
            'hostname "$1"; until ip link show eth0; do sleep 0.02; done; ip link set lo up; '
            'ip addr add "$2" dev eth0; ip link set eth0 up; shift 2; exec "$@"'
        )
        self.spawn(name, ["unshare", "--uts", "--net", "sh", "-c", inside, "sh", name, address, *words])
        pid = self.processes[name].pid
        here = Path("/proc/self/ns/net").readlink()
        self.wait(lambda: Path(f"/proc/{pid}/ns/net").readlink() != here, f"the network of {name}")
        run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        run("ip", "link", "set", f"to-{name}", "master", "br0")
        run("ip", "link", "set", f"to-{name}", "up")

    def spawn(self, name: str, words: list[str]) -> None:
        with (self.folder / "log" / f"{name}.output").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                words,
                env=self.environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, condition: object, what: str) -> None:
        end = time.monotonic() + READY_SECONDS
        while not condition():  # type: ignore[operator]
            if time.monotonic() > end:
                raise RuntimeError(f"{what} did not come up; see {self.folder}/log")
            time.sleep(0.02)

    def all_idle(self) -> bool:
        words = ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"]
        output = subprocess.run(words, env=self.environ, capture_output=True, text=True, check=False).stdout
        return set(output.splitlines()) == {f"{name} idle" for name in self.names}

    def processes_of(self, node: str) -> list[psutil.Process]:
        """The slurmstepd of a node and all below them. Their log file tells whose they are."""
        log, found = str(self.folder / f"log/slurmd.{node}"), []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith("slurmstepd") and any(f.path == log for f in process.open_files()):
                    found += [process, *process.children(recursive=True)]
        return found

    def answer(self, line: str) -> str:
        command, _, node = line.partition(" ")
        if command == "start":
            self.start_node(node)
        elif command == "kill-daemon":
            self.processes[node].kill()
        elif command == "kill":
            victims = self.processes_of(node)
            self.processes[node].kill()
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.kill()
        elif command == "processes":
            return " ".join(str(process.pid) for process in self.processes_of(node))
        else:
            return f"unknown: {line}"
        return "done"

    def serve(self) -> None:
        while True:
            readable, _, _ = select.select([sys.stdin], [], [], 0.5)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if readable:
                line = sys.stdin.readline()
                if not line:
                    return
                print(self.answer(line.strip()), flush=True)

    def stop(self) -> None:
        end = time.monotonic() + 10
        while left := psutil.Process().children(recursive=True):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if time.monotonic() > end:
                raise RuntimeError(f"still there: {left}")
            time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def resolves_to(host: str) -> set[str]:
    with contextlib.suppress(OSError):
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, socket.AF_INET)}
    return set()


def can_connect(address: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as one:
        return one.connect_ex(address) == 0


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0, help="pretended GPUs of each node")
    parser.add_argument("--conf", action="append", default=[], help="a line of slurm.conf")
    parser.add_argument("--own-networks", action="store_true", help="an address and ports of its own for each node")
    options = parser.parse_args()
    # slurmstepd forks twice, and jobs may start sessions of their own: all become children of this process.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    daemons = Daemons(options)
    try:
        daemons.start()
        print("ready", flush=True)
        daemons.serve()
    finally:
        daemons.stop()
        shutil.rmtree(options.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
