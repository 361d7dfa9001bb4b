"""`p2p-dml doctor`: what a launch would find, and how good the links are; nothing is installed."""

from __future__ import annotations

from contextlib import closing

from p2p_dml.config import RunConfig
from p2p_dml.launchers.ssh import preflight
from p2p_dml.launchers.ssh.channel import Switchboard
from p2p_dml.launchers.ssh.environments import Environments
from p2p_dml.launchers.ssh.hosts import Cluster, check_peers
from p2p_dml.launchers.ssh.preflight import Findings, Need
from p2p_dml.launchers.ssh.wheel import build


def examine(cluster: Cluster, config: RunConfig | None) -> tuple[Need, Findings]:
    """What is looked for, and what was found on all hosts and between them."""
    if config is not None:
        check_peers(cluster, config.peers)
    need, quarters = preflight.need_of(config), Environments(cluster, build())
    with closing(Switchboard(cluster.hosts, cluster.lost_s)) as board:
        return need, preflight.check(board, cluster, need, quarters, preflight.MEASURED_BYTES)
