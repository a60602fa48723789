"""A few machines on this one: Linux namespaces joined by a bridge, each with its own sshd.

A machine has its own network, process ids, host name, users, /tmp, /run, /dev/shm and home; it
shares the rest of the file system, so what is installed here is installed there. Whatever runs on
it ends with it, and all of them end with this process. It needs root and a few Debian packages.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

# By tool; `make packages` installs them.
_PACKAGES = {
    "ip": "iproute2",
    "/usr/sbin/sshd": "openssh-server",
    "pgrep": "procps",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "unshare": "util-linux",
}
HOME = Path("/tmp/home")
_ALL = ("--mount", "--net", "--pid", "--uts", "--ipc")
_TRIAL = "ip link add name b0 type bridge && ip link add name v0 type veth peer name v1"
_SECRETS = shutil.ignore_patterns("*shadow*", "ssh_host_*", "private")
_PATIENCE_S = 20.0
_COMMAND_TIMEOUT_S = 120.0
_SSHD = """
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PrintLastLog no
"""


def obstacle() -> str | None:
    """Why no machines can be made here, in one line; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = {package for tool, package in _PACKAGES.items() if shutil.which(tool) is None}
    if missing:
        return f"`make packages` would install {' '.join(sorted(missing))}"
    trial = subprocess.run(
        ["unshare", *_ALL, "--fork", "--mount-proc", "sh", "-ec", _TRIAL],
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {trial.stderr.strip()}" if trial.returncode else None


class Machine:
    """One machine. It is there while its first process is."""

    def __init__(self, name: str, directory: Path, visible: Sequence[Path]) -> None:
        """`directory`: its files; `visible`: what it sees although its /tmp is its own."""
        self.name = name
        self._directory = directory
        self._visible = visible
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def boot(self, bashrc: str, *init: str) -> None:
        """Start its first process, which becomes `init` once all is mounted."""
        script = f"{self._files(bashrc)}\nexec {shlex.join(init)}"
        options = [*_ALL, "--fork", "--kill-child", "--mount-proc"]
        self._unshare = subprocess.Popen(["unshare", *options, "sh", "-ec", script])
        booted = self._directory / "tmp" / "booted"
        deadline_s = time.monotonic() + _PATIENCE_S
        while not booted.exists():
            assert self._unshare.poll() is None and time.monotonic() < deadline_s, self.name
            time.sleep(0.01)
        (first,) = psutil.Process(self._unshare.pid).children()
        self._pid = first.pid

    def _files(self, bashrc: str) -> str:
        """Lay out its own files; returns the commands that put them in place."""
        etc, tmp = self._directory / "etc", self._directory / "tmp"
        # A copy: what is mounted over a file alone goes when a package's installation replaces it.
        shutil.copytree(Path("/etc"), etc, symlinks=True, ignore=_SECRETS)
        (tmp / "home").mkdir(parents=True)
        (tmp / "home" / ".bashrc").write_text(bashrc)
        # As Debian has it: a machine's own name leads to an address that no other can reach.
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        (etc / "shadow").write_text("root:*:19000::::::\n")
        (etc / "passwd").write_text(
            f"root:x:0:0::{HOME}:/bin/bash\nsshd:x:64000:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        commands = [f"hostname {self.name}", "ip link set lo up", f"mount --bind {etc} /etc"]
        for path in self._visible:
            if path.is_relative_to("/tmp"):
                inside = tmp / path.relative_to("/tmp")
                inside.mkdir(parents=True, exist_ok=True)
                commands.append(f"mount --bind {path} {inside}")
        commands += [
            "mount -t tmpfs shm /dev/shm",
            "mount -t tmpfs run /run",
            "mkdir /run/sshd",
            f"mount --rbind {tmp} /tmp",
            f"cd {HOME}",
            "touch /tmp/booted",
        ]
        return "\n".join(commands)

    def command(self, *command: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """What to execute here so that `command` runs there, in an environment of its own."""
        variables = {"HOME": str(HOME), "PATH": os.defpath, **(environment or {})}
        pairs = [f"{key}={value}" for key, value in variables.items()]
        shell = ["bash", "-c", f"source ~/.bashrc; cd; exec {shlex.join(command)}"]
        return ["nsenter", f"--target={self._pid}", *_ALL, "env", "-i", *pairs, *shell]

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a command on it to its end, which must be a good one; returns what it said."""
        done = subprocess.run(
            self.command(*command, environment=environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{self.name}: {shlex.join(command)}\n{done.stdout}"
        return done.stdout

    def network(self, *arguments: str) -> None:
        """Run `ip` in its network; process ids in the arguments are those that they have here."""
        _ip(*arguments, inside=self._pid)

    def plug(self, bridge: Machine, address: str) -> None:
        """Give it an eth0 with this address (A.B.C.D/N) whose other end is at the bridge br0."""
        peer = ("type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        bridge.network("link", "add", "name", self.name, *peer)
        bridge.network("link", "set", self.name, "master", "br0", "up")
        self.network("address", "add", address, "dev", "eth0")
        self.network("link", "set", "eth0", "up")

    def processes(self) -> dict[int, str]:
        """Command lines of all its processes but the first, by the ids they have here."""
        own = os.readlink(f"/proc/{self._pid}/ns/pid")
        found = {}
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own and process.pid != self._pid:
                    found[process.pid] = " ".join(process.cmdline()) or process.name()
            except (OSError, psutil.Error):
                continue  # ended meanwhile
        return found

    def shared_memory(self) -> list[str]:
        """Names in its /dev/shm."""
        return os.listdir(f"/proc/{self._pid}/root/dev/shm")

    def end(self) -> None:
        """End its first process, and with it all of it."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait()


class Lan:
    """A launcher, which is also the switch, and the machines around it; this process sees them."""

    def __init__(self, launcher: Machine, machines: Mapping[str, Machine]) -> None:
        """`machines` by address."""
        self.launcher = launcher
        self.machines = machines

    def cut(self, address: str) -> None:
        """Pull a machine's cable: nothing comes back, not even a refusal."""
        self.launcher.network("link", "set", self.machines[address].name, "down")

    def mend(self, address: str) -> None:
        """Put the cable back."""
        self.launcher.network("link", "set", self.machines[address].name, "up")


@contextmanager
def lan(
    names: Sequence[str], directory: Path, visible: Sequence[Path], bashrc: Callable[[str], str]
) -> Iterator[Lan]:
    """Machines that root may enter by ssh from the launcher, whose key is ~/.ssh/id_ed25519.

    `bashrc(name)`: what is in a machine's ~/.bashrc; the launcher's name is "launcher".
    """
    directory.mkdir()
    for key in ("host_key", "client_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True
        )
    (directory / "sshd_config").write_text(_SSHD.format(directory=directory))
    subnet = f"198.18.{os.getpid() % 256}"  # of the range set aside for such trials, RFC 2544
    visible = [directory, *visible]
    launcher = Machine("launcher", directory / "launcher", visible)
    machines = {
        f"{subnet}.{10 + i}": Machine(name, directory / name, visible)
        for i, name in enumerate(names)
    }
    sshd = ("/usr/sbin/sshd", "-D", "-f", str(directory / "sshd_config"))
    here = f"wr{os.getpid()}"
    try:
        launcher.boot(bashrc(launcher.name), "sleep", "infinity")
        launcher.network("link", "add", "name", "br0", "type", "bridge")
        launcher.network("address", "add", f"{subnet}.1/24", "dev", "br0")
        launcher.network("link", "set", "br0", "up")
        for address, machine in machines.items():
            machine.boot(bashrc(machine.name), *sshd)
            machine.plug(launcher, f"{address}/24")
        peer = ("type", "veth", "peer", "name", here, "netns", str(os.getpid()))
        launcher.network("link", "add", "name", "here", *peer)
        launcher.network("link", "set", "here", "master", "br0", "up")
        _ip("address", "add", f"{subnet}.254/24", "dev", here)
        _ip("link", "set", here, "up")
        private = (str(directory / "client_key"), str(HOME / ".ssh" / "id_ed25519"))
        launcher.run("install", "-D", "--mode=600", *private)
        yield Lan(launcher, machines)
    finally:
        if here in psutil.net_if_addrs():
            _ip("link", "delete", here)
        for machine in (*machines.values(), launcher):
            machine.end()


def _ip(*arguments: str, inside: int | None = None) -> None:
    """Run `ip` in the network of a process, or in this one's."""
    entered = [] if inside is None else ["nsenter", f"--target={inside}", "--net"]
    subprocess.run([*entered, "ip", *arguments], check=True)
