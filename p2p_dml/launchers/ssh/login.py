"""How an agent is started on a host through ssh, and what may help where that fails."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from p2p_dml.launchers.ssh.hosts import Host
from p2p_dml.launchers.ssh.remote import control

GREETING = b"p2p-dml agent on Python "
CONNECT_S = 10

_PACKAGE = "p2p_dml.launchers.ssh.remote"
MODULES = ("control", "install", "facts", "net", "files", "children", "agent")
"""Each imports only those before it."""

# Runs on any Python that ever was, to say which one it is; only then comes code of today.
_BOOTSTRAP = f"""
import sys, os
v = sys.version_info
sys.stdout.write("\\n{GREETING.decode()}%d.%d.%d\\n" % (v[0], v[1], v[2]))
sys.stdout.flush()
if v < (3, 10): sys.exit(0)
import json, types
source = os.fdopen(0, "rb", 0, closefd=False)
size, text = int(source.readline()), b""
while len(text) < size: text += source.read(size - len(text)) or sys.exit(1)
program = json.loads(text)
for name in program["packages"]: sys.modules[name] = types.ModuleType(name)
for name, code in program["modules"]:
    module = sys.modules[name] = types.ModuleType(name)
    parent, _, last = name.rpartition(".")
    setattr(sys.modules[parent], last, module)
    exec(compile(code, name, "exec"), module.__dict__)
module.main(program["lost_s"])
"""


def command(host: Host, lost_s: float) -> list[str]:
    """The ssh that starts an agent on a host; its options are the user's first."""
    alive_s = max(1, int(lost_s / 4))
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": CONNECT_S,
        "ServerAliveInterval": alive_s,
        "ServerAliveCountMax": max(1, round(lost_s / alive_s)),
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    remote = f"{_quoted(host.entry.python)} -c {shlex.quote(_BOOTSTRAP)}"
    return ["ssh", *host.entry.ssh_options, *words, "-T", "--", host.entry.ssh, remote]


def _quoted(path: str) -> str:
    """A word for the host's shell; a home folder in front stays one."""
    head, slash, tail = path.partition("/")
    return f"{head}/{shlex.quote(tail)}" if slash and head == "~" else shlex.quote(path)


def program(lost_s: float) -> bytes:
    """The agent's sources as the bootstrap reads them."""
    folder = Path(control.__file__).parent
    parts = _PACKAGE.split(".")
    content = {
        "packages": [".".join(parts[:length]) for length in range(1, len(parts) + 1)],
        "modules": [
            (f"{_PACKAGE}.{name}", (folder / f"{name}.py").read_text(encoding="utf-8"))
            for name in MODULES
        ],
        "lost_s": lost_s,
    }
    text = json.dumps(content).encode()
    return b"%d\n%s" % (len(text), text)


_HINTS = (
    ("Host key verification failed", "its key is unknown here, or another than before: connect "
     "once by hand, `ssh {ssh}`, and compare"),
    ("Permission denied", "log in without a password must work: `ssh-copy-id {ssh}`, or an agent"),
    ("Could not resolve hostname", "is the name right? Else add it to ~/.ssh/config"),
    ("Connection refused", "is sshd running there, and the port right (ssh_options)?"),
    ("timed out", "is it up, and may this machine reach it?"),
    ("No route to host", "is it up, and may this machine reach it?"),
    ("not found", "set `python` in the hosts file to where Python is there"),
    ("No such file", "set `python` in the hosts file to where Python is there"),
)  # fmt: skip


def explain(words: str, host: Host) -> str:
    """What ssh said, followed by what may help."""
    hint = next((hint for known, hint in _HINTS if known in words), "")
    return f"{words}; {hint.format(ssh=host.entry.ssh)}" if hint else words
