"""A cluster that was started elsewhere, as on a cluster's machines: by `ray start`, in another folder, with a token."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
from pipelines.cluster import use_cluster
from pipelines.pool import pool
use_cluster({"CPU": 1})
with pool(None) as run:
    print(list(run(abs, [-1, -2, -3])))
"""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture(params=[True, False], ids=["with a token", "without"])
def head(request, tmp_path):
    """The environment of a user of a running cluster of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "token").write_text("f" * 64)
    user = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    user |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    guarded = {name: value for name, value in user.items() if name != "RAY_ADDRESS"}
    guarded["RAY_AUTH_MODE"] = "token" if request.param else "disabled"
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
               "--disable-usage-stats"]  # fmt: skip
    started = subprocess.Popen(command, cwd=tmp_path, env=guarded, stdout=subprocess.PIPE, text=True)
    assert any("ray status" in line for line in started.stdout), "the cluster did not start"
    yield user
    started.send_signal(signal.SIGTERM)
    started.wait(timeout=60)
    started.stdout.close()


def test_a_cluster_of_another_folder_is_used_with_a_token_and_without(head):
    answer = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=head, capture_output=True, text=True, check=False, timeout=90
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[1, 2, 3]"
