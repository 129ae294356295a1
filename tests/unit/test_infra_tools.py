"""The files of infra/ by the tools that read them, where those are installed: docker, kubectl, hadolint."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SETTINGS = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY")


@functools.cache
def works(*command):
    """Whether a tool is there and does what is asked of it, such as telling its version."""
    return (
        shutil.which(command[0]) is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


def needs(*command):
    return pytest.mark.skipif(not works(*command), reason=f"`{' '.join(command)}` does not work here")


def run(*command, **environment):
    values = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, check=False)


@needs("kubectl", "version", "--client")
@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubectl_reads_the_manifests_as_they_are_meant(name, tmp_path):
    made = run("infra/fill", f"infra/{name}", NODE_IMAGE="host/mobilenets:1", STORAGE_CLASS="standard-rwx")
    (tmp_path / name).write_text(made.stdout)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [name], "namespace": "training"}))
    answer = run("kubectl", "kustomize", str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    ours = {item["kind"]: item for item in yaml.safe_load_all(made.stdout)}
    theirs = {item["kind"]: item for item in yaml.safe_load_all(answer.stdout)}
    assert {kind: item["spec"] for kind, item in ours.items()} == {kind: item["spec"] for kind, item in theirs.items()}


@needs("docker", "compose", "version")
def test_compose_fills_its_file_and_says_what_is_missing():
    command = ("docker", "compose", "--file", "infra/compose.yaml", "config")
    values = dict.fromkeys(SETTINGS, "value")
    answer = run(*command, **values)
    assert answer.returncode == 0, answer.stderr
    assert "localhost:5000,127.0.0.1:5000,localhost" in answer.stdout
    for name in SETTINGS:
        answer = run(*command, **{key: value for key, value in values.items() if key != name})
        assert answer.returncode
        assert name in answer.stderr


@needs("docker", "info")
def test_docker_finds_nothing_to_mend_in_the_image():
    answer = run("docker", "build", "--check", "infra")
    assert answer.returncode == 0, answer.stdout + answer.stderr


@needs("hadolint", "--version")
def test_hadolint_finds_nothing_to_mend_in_the_image():
    answer = run("hadolint", "infra/Dockerfile")
    assert answer.returncode == 0, answer.stdout


def test_the_image_holds_the_lock_file_and_its_user_is_not_root():
    text = (ROOT / "infra" / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    for name, rest in steps:
        assert name != "ADD"
        if name == "COPY" and not rest.startswith("--from="):
            *sources, _target = rest.split()
            assert sources == ["requirements.lock"]
            assert (ROOT / "infra" / sources[0]).is_file()
    installs = [rest for name, rest in steps if name == "RUN" and "pip install" in rest]
    (install,) = installs
    assert "--compile-bytecode -r /requirements.lock" in " ".join(install.split())
    assert install.count("install") == 2  # uv by pip, of the lock file's version, and the rest by uv
    assert """"$(grep '^uv==' /requirements.lock)\"""" in install
    assert [rest for name, rest in steps if name == "USER"] == ["1000"]
    assert not [rest for name, rest in steps if name == "ARG"]
    assert "://" not in text
