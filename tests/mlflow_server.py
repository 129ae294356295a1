"""Real servers for tests: an `mlflow server` that can be killed, PostgreSQL, and what a page needs to be looked at."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
DATABASE_PASSWORD = "password-of-postgres"
# A process that has not answered in time is ended, though it is only starting: 5 s are short where others work, too.
PATIENT = {"uvicorn-opts": "--timeout-worker-healthcheck=120"}
UNPRIVILEGED = 65534  # nobody: PostgreSQL refuses to be run by root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)


class Server:
    """An `mlflow server` that can be killed and started again: same port, same database.

    options: of the command line, beside --port; by default those of a database in `folder`. environment: of the
    server's process, beside this one's.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.options = options or {
            "workers": 1,
            "backend-store-uri": f"sqlite:///{folder}/server.db",
            "artifacts-destination": folder / "artifacts",
        }
        self.environment = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **(environment or {}),
        }
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Returns when it answers."""
        options = [f"--{key}={value}" for key, value in {**self.options, "port": self.port}.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(lambda: self.is_up() or self.process.poll() is not None, 240)
        assert self.process.poll() is None, self.log.read_text()[-2000:]

    def is_up(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def running(server: Server) -> Server:
    if not server.is_up():
        server.start()
    return server


@contextmanager
def postgres(user: str, password: str) -> Iterator[int]:
    """A new PostgreSQL that asks for the password, with a database named as the user; yields its port on 127.0.0.1.

    Skips the test where PostgreSQL is not installed.
    """
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()  # pytest's folders are closed to others
    (folder / "password").write_text(password)
    nobody = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}
    for path in (folder, folder / "password") if nobody else ():
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    of_user = [f"--username={user}", f"--pwfile={folder}/password", "--auth=scram-sha-256", "--encoding=UTF8"]
    initdb = ["initdb", f"--pgdata={folder}/data", "--no-sync", *of_user]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **nobody)
    # Nothing here is to outlive the machine's power.
    command = ["postgres", "-D", f"{folder}/data", "-p", str(port), "-k", folder, "-c", "fsync=off"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "-c", "listen_addresses=127.0.0.1"], cwd=folder, stdout=log, stderr=log, **nobody
        )
    try:
        wait_for(lambda: _has_database(user, password, port), 120)
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # ends what is connected, too
        server.wait(timeout=60)
        shutil.rmtree(folder)


def _has_database(user: str, password: str, port: int) -> bool:
    """Whether the database named as the user is there: made as soon as PostgreSQL answers."""
    import psycopg

    address = {"host": "127.0.0.1", "port": port, "user": user, "password": password, "dbname": "postgres"}
    try:
        with psycopg.connect(**address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {user}")
    except psycopg.OperationalError:
        return False
    return True


class Stack(NamedTuple):
    """The servers. database: arguments for psycopg. objects: of S3, by key."""

    server: Server
    database: dict[str, Any]
    bucket: Any

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(**self.database) as connection:
            return list(connection.execute(query, values))

    def objects(self) -> dict[str, bytes]:
        return {item.key: item.get()["Body"].read() for item in self.bucket.objects.all()}


@contextmanager
def composed(folder: Path, password: str) -> Iterator[Stack]:
    """What infra/compose.yaml composes, but for containers and addresses; password: of the user admin."""
    import boto3
    from moto.server import ThreadedMotoServer

    compose = yaml.safe_load((PROJECT / "infra" / "compose.yaml").read_text())
    command = compose["services"]["server"]["command"]
    options = dict(item.removeprefix("--").split("=", 1) for item in command if item.startswith("--"))
    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    endpoint = "http://{}:{}".format(*s3.get_host_and_port())
    keys = {"aws_access_key_id": "mlflow", "aws_secret_access_key": "key-of-s3"}
    resource = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    bucket = resource.create_bucket(Bucket=options["artifacts-destination"].removeprefix("s3://"))
    try:
        with postgres("mlflow", DATABASE_PASSWORD) as port:
            uri = options["backend-store-uri"].replace("@database/", f"@127.0.0.1:{port}/")
            environment = {
                **{name.upper(): value for name, value in keys.items()},
                "AWS_DEFAULT_REGION": "us-east-1",
                "MLFLOW_S3_ENDPOINT_URL": endpoint,
                "PGPASSWORD": DATABASE_PASSWORD,
                "MLFLOW_AUTH_CONFIG_PATH": str(_users(folder, compose["configs"]["basic_auth"]["content"], uri)),
                "MLFLOW_AUTH_ADMIN_PASSWORD": password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "key-of-forms",
            }
            server = Server(folder, environment=environment)
            hosts = f"localhost:{server.port},127.0.0.1:{server.port}"
            here = {"host": "127.0.0.1", "workers": 2, "backend-store-uri": uri, "allowed-hosts": hosts}
            server.options = {**PATIENT, **options, **here}
            try:
                server.start()
                address = {"host": "127.0.0.1", "port": port, "user": "mlflow", "password": DATABASE_PASSWORD}
                yield Stack(server, address, bucket)
            finally:
                server.kill()
    finally:
        s3.stop()


def _users(folder: Path, content: str, uri: str) -> Path:
    """The file of settings for MLflow's users."""
    users = ConfigParser()
    users.read_string(content)
    users["mlflow"]["database_uri"] = uri
    # Hashing a password takes 0.1 s of a core: without this for each request, of which a page makes dozens.
    users["mlflow"].setdefault("auth_cache_ttl_seconds", "60")
    with (folder / "basic_auth.ini").open("w") as file:
        users.write(file)
    return folder / "basic_auth.ini"
