"""Network namespaces on a bridge, each with an sshd of its own: several hosts on one machine.

They share the file system and the processor, and nothing of the network: each has its own ports and
loopback, and its link can be cut. Everything has a random name and goes at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest

_SSHD_CONFIG = """
Port 22
ListenAddress {address}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
LogLevel ERROR
SetEnv DOCKER_HOST=unix://{folder}/docker.sock
"""
_DEADLINE_S = 20.0


def obstacle() -> str | None:
    """Why there can be no such hosts here, if there cannot."""
    if os.getuid():
        return "needs root, for network namespaces"
    for tool in ("ip", "iptables", "sshd", "ssh", "ssh-keygen"):
        if find(tool) is None:
            return f"needs {tool}"
    return None


def find(tool: str) -> str | None:
    """A program, those for administrators too."""
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def run(*words: str) -> str:
    """Run a command that must succeed; what it prints."""
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(words)}: {ended.stderr}"
    return ended.stdout


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FakeHost:
    """A namespace with an sshd. `folder`: its files, and the home of whoever logs in."""

    namespace: str
    address: str
    folder: Path

    def entry(self, **more: object) -> Mapping[str, object]:
        """Its table in a hosts file."""
        options = ["-F", str(self.folder.parent / "ssh_config")]
        return {"ssh": f"root@{self.address}", "ssh_options": options, **more}

    def inside(self, *words: str) -> str:
        """Run a command there."""
        return run("ip", "netns", "exec", self.namespace, *words)

    def cut(self) -> None:
        """Lose every packet from and to other hosts; those of one host still hear each other."""
        self.inside("iptables", "-I", "INPUT", "-i", "eth0", "-j", "DROP")
        self.inside("iptables", "-I", "OUTPUT", "-o", "eth0", "-j", "DROP")

    def close_ports(self, first: int, last: int) -> None:
        """Have a firewall drop what others send to these TCP ports."""
        ports = f"{first}:{last}"
        self.inside("iptables", "-I", "INPUT", "-p", "tcp", "--dport", ports, "-j", "DROP")

    def heal(self) -> None:
        """Undo `cut` and `close_ports`."""
        self.inside("iptables", "-F")

    def pids(self) -> set[int]:
        """All processes there."""
        return {int(word) for word in run("ip", "netns", "pids", self.namespace).split()}

    def started(self) -> set[int]:
        """All processes there but its sshd."""
        return {pid for pid in self.pids() if not is_sshd(pid)}

    def revive(self) -> None:
        """Have it answer again after `kill`."""
        _start_sshd(self)

    def kill(self) -> None:
        """End everything there at once, sshd too: the host is lost, with all in its memory."""
        pids = self.pids()
        folders = {folder for pid in pids for folder in _folders_in_memory(pid)}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _folders_in_memory(pid: int) -> Iterator[Path]:
    """Folders of a run that a process has files open in."""
    with suppress(OSError):  # gone meanwhile
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = Path(os.readlink(link))
            if target.parent.name.startswith("p2p-") and target.parents[1] == Path("/dev/shm"):
                yield target.parent


def is_sshd(pid: int) -> bool:
    """Whether a process is sshd; one that is gone is none of ours either."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii").startswith("sshd")
    except OSError:
        return True


@contextmanager
def made(count: int, folder: Path) -> Iterator[list[FakeHost]]:
    """Make `count` hosts that this machine reaches and that reach each other."""
    token, net = secrets.token_hex(3), secrets.randbelow(200) + 20
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it for its privilege separation
    with ExitStack() as stack:
        # The bridge has a namespace too: this machine's firewall is none of its business.
        switch = stack.enter_context(_namespace(f"p2p{token}s"))
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        here = f"p2p{token}"
        _plug_in(switch, "here", None, here, f"10.213.{net}.254")
        stack.callback(_unplug, here)
        hosts = []
        for i in range(count):
            name = stack.enter_context(_namespace(f"p2p{token}{i}"))
            address = f"10.213.{net}.{i + 1}"
            _plug_in(switch, f"to{i}", name, "eth0", address)
            host = FakeHost(namespace=name, address=address, folder=folder / name)
            stack.callback(host.kill)
            _set_up_sshd(host)
            _start_sshd(host)
            hosts.append(host)
        _write_ssh_config(folder, hosts)
        yield hosts


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "del", name)


def _plug_in(switch: str, plug: str, namespace: str | None, device: str, address: str) -> None:
    """Lay a cable from the bridge to a namespace, or to this machine's own network."""
    there = ["netns", namespace] if namespace else ["netns", "1"]
    within = ["-n", namespace] if namespace else []
    run("ip", "-n", switch, "link", "add", plug, "type", "veth", "peer", "name", device, *there)
    run("ip", "-n", switch, "link", "set", plug, "master", "bridge", "up")
    run("ip", *within, "addr", "add", f"{address}/24", "dev", device)
    run("ip", *within, "link", "set", device, "up")


def _unplug(device: str) -> None:
    """Pull this machine's cable, which may be gone with its other end."""
    subprocess.run(["ip", "link", "del", device], capture_output=True)


def _set_up_sshd(host: FakeHost) -> None:
    folder = host.folder
    folder.mkdir()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
    shutil.copy(folder.parent / "key.pub", folder / "authorized_keys")
    text = _SSHD_CONFIG.format(address=host.address, folder=folder)
    (folder / "sshd_config").write_text(text, encoding="ascii")


def _start_sshd(host: FakeHost) -> None:
    folder = host.folder
    host.inside(find("sshd") or "sshd", "-f", str(folder / "sshd_config"))
    deadline = time.monotonic() + _DEADLINE_S
    while ":22 " not in host.inside("ss", "-tln"):
        assert time.monotonic() < deadline, "sshd does not come up"
        time.sleep(0.02)


def _write_ssh_config(folder: Path, hosts: Sequence[FakeHost]) -> None:
    """What the launching user's ~/.ssh would have: a key, and the keys of all hosts."""
    known = [
        f"{host.address} {(host.folder / 'host_key.pub').read_text(encoding='ascii')}"
        for host in hosts
    ]
    (folder / "known_hosts").write_text("".join(known), encoding="ascii")
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n",
        encoding="ascii",
    )


@pytest.fixture(scope="module")
def fake_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FakeHost]]:
    """Five hosts; skipped where there can be none."""
    if why := obstacle():
        pytest.skip(why)
    with made(5, tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DockerHost:
    """A host with an engine of its own, whose containers have the host's network."""

    host: FakeHost

    @property
    def _address(self) -> str:
        return f"unix://{self.host.folder}/docker.sock"

    def docker(self, *words: str) -> str:
        """What a docker command there says."""
        return run("docker", "--host", self._address, *words)

    def container(self, peer: int) -> str:
        """The container of a peer."""
        return self.docker("ps", "--quiet", "--filter", f"name=peer-{peer:03d}").strip()

    def left(self) -> list[str]:
        """Containers of any state, and folders of runs."""
        names = self.docker("ps", "--all", "--format", "{{.Names}}").split()
        return [*names, *map(str, (self.host.folder / "p2p").glob("runs/*"))]

    @contextmanager
    def engine(self) -> Iterator[None]:
        """Have dockerd run in the host's network."""
        folder = self.host.folder
        places = [f"--{name}={folder}/{name}" for name in ("data-root", "exec-root", "pidfile")]
        # Not `ip netns exec`, which hides the control groups.
        within = ("nsenter", f"--net=/run/netns/{self.host.namespace}", find("dockerd") or "")
        with (folder / "dockerd.log").open("wb") as log:
            process = subprocess.Popen(
                (*within, "--host", self._address, "--bridge=none", *places), stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + _DEADLINE_S
            while not self._answers():
                assert process.poll() is None and time.monotonic() < deadline, "no dockerd"
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            # What dockerd leaves mounted.
            subprocess.run(["umount", f"{folder}/exec-root/netns/default"], capture_output=True)

    def _answers(self) -> bool:
        words = ("docker", "--host", self._address, "info")
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def docker_hosts(
    ready: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[DockerHost]]:
    """Two hosts with engines that have no image; that of this checkout is on this machine."""
    if why := obstacle():
        pytest.skip(why)
    with ExitStack() as stack:
        hosts = stack.enter_context(made(2, tmp_path_factory.mktemp("docker-hosts")))
        found = [DockerHost(host=host) for host in hosts]
        for each in found:
            stack.enter_context(each.engine())
        yield found
