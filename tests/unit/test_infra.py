"""What infra/ holds: what must be set is said, nothing secret is in it, its versions are those of the lock file."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
FILES = ("ray-aws.yaml", "ray-gcp.yaml", "raycluster.yaml", "rayjob.yaml", "compose.yaml", "Dockerfile")
FILLED = FILES[:4]  # by infra/fill; Compose fills its own
LOCK = dict(line.split("==") for line in (INFRA / "requirements.lock").read_text().splitlines() if "==" in line)

# A value that is written out where a password, token or key belongs, and what is secret wherever it stands.
NAMED = re.compile(
    r"(?i)[\w.-]*(?:passw(?:or)?d|secret|token|api_?key|access_?key|credential)[\w.-]*[\"']?\s*[:=]\s*[\"']?([^\s\"'#]+)"
)
BARE = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\bgh[pousr]_\w{30,}|\b[0-9a-f]{32,}\b|://[^\s/:@]+:[^\s/@]+@"
)
REFERENCE = re.compile(r"[$&*{\[]|~/|FILE$|required\b|mobilenets-\w+")  # a variable, a file, a setting, a Secret's name


def secrets(text):
    """The lines of a file that seem to hold a secret."""
    return [
        line
        for line in text.splitlines()
        if BARE.search(line) or any(not REFERENCE.match(value) for value in NAMED.findall(line))
    ]


def head(name):
    """The comment that a file begins with."""
    lines = (INFRA / name).read_text().splitlines()
    return lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]


def variables(name):
    """What a file takes from the environment."""
    code = [line for line in (INFRA / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    return set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)(?::|\})", "\n".join(code)))


@pytest.mark.parametrize("name", [path.name for path in INFRA.iterdir() if path.is_file() and path.suffix != ".png"])
def test_no_file_holds_a_secret(name):
    assert not secrets((INFRA / name).read_text())


@pytest.mark.parametrize(
    "planted",
    [
        "POSTGRES_PASSWORD: hunter2hunter2",
        'AWS_SECRET_ACCESS_KEY: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"',
        "export RAY_AUTH_TOKEN=3f9c1d; ray start",
        "- {name: API_KEY, value: x, token: abc123}",
        "ENV MLFLOW_TRACKING_PASSWORD=letmein",
        "database_uri = postgresql://mlflow:letmein@database/mlflow",
        "key: AKIAIOSFODNN7EXAMPLE",
        "  auth: 0123456789abcdef0123456789abcdef",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_a_planted_secret_is_found_in_a_file(planted):
    assert secrets((INFRA / "compose.yaml").read_text() + planted + "\n") == [planted]


@pytest.mark.parametrize("name", FILES)
def test_the_first_comment_says_how_to_start_it_what_to_set_and_what_it_costs(name):
    text = "\n".join(head(name))
    assert re.search(r"(?m)^#   (infra/fill|docker) ", text)
    assert re.search(r"estimated [\d.]+(?: to [\d.]+)? USD/h", text)
    assert re.search(r"list prices? of 20\d\d|skypilot-catalog v8 at [0-9a-f]{7}", text)
    prose = " ".join(line for line in head(name) if not line.startswith("#   "))
    assert set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", prose)) == variables(name)


def test_a_secret_that_pods_take_is_named_where_it_is_made():
    made = "\n".join(head("raycluster.yaml"))
    for name in ("raycluster.yaml", "rayjob.yaml"):
        text = (INFRA / name).read_text()
        taken = set(re.findall(r"secretKeyRef: \{name: ([\w-]+), key: (\w+)\}", text))
        assert len(taken) == 3
        assert "authOptions: {mode: token, secretName: mobilenets-ray}" in text
        for secret, key in taken | {("mobilenets-ray", "auth_token")}:
            assert re.search(rf"create secret generic {secret}\b[^#]*(?:#   [^#]*)?--from-\w+={key}=", made)


def filled(name, environment):
    """What `infra/fill` makes of a file with no more than these variables set."""
    return subprocess.run(
        ["infra/fill", f"infra/{name}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", FILLED)
def test_each_variable_that_is_missing_is_an_error_of_one_line_and_nothing_is_printed(name):
    answer = filled(name, {})
    assert answer.returncode == 1
    assert not answer.stdout
    lines = answer.stderr.splitlines()
    found = {re.match(rf"error: infra/{name}: (\w+) is not set; it is \w", line)[1] for line in lines}
    assert found == variables(name)
    assert len(lines) == len(found)


@pytest.mark.parametrize("missing", ["NODE_IMAGE", "STORAGE_CLASS"])
def test_one_missing_variable_is_enough(missing):
    values = {"NODE_IMAGE": "host/mobilenets:1", "STORAGE_CLASS": "standard-rwx"}
    answer = filled("raycluster.yaml", {**values, missing: ""})
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: infra/raycluster.yaml: {missing} is not set; ")


def test_values_are_put_in_everywhere_and_comments_stay():
    answer = filled("raycluster.yaml", {"NODE_IMAGE": "host/mobilenets:1", "STORAGE_CLASS": "standard-rwx"})
    assert answer.returncode == 0, answer.stderr
    claim, cluster = yaml.safe_load_all(answer.stdout)
    assert claim["spec"]["storageClassName"] == "standard-rwx"
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    images = [group["template"]["spec"]["containers"][0]["image"] for group in groups]
    assert images == ["host/mobilenets:1"] * 2
    assert answer.stdout.startswith("\n".join(head("raycluster.yaml")))


@pytest.mark.parametrize("value", ["a b", "x'y", 'x"y', "x\ny: z", "{a", "x#y"])
def test_a_value_that_would_change_the_file_is_refused(value):
    answer = filled("rayjob.yaml", {"NODE_IMAGE": value})
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: infra/rayjob.yaml: NODE_IMAGE is {value!r}; allowed are letters")
    assert not answer.stdout


def test_a_file_that_is_to_be_copied_must_be_there(tmp_path):
    values = dict.fromkeys(variables("ray-aws.yaml"), "x")
    (tmp_path / "token").write_text("t")
    values |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "MLFLOW_CREDENTIALS_PATH": str(tmp_path / "none")}
    answer = filled("ray-aws.yaml", values)
    (line,) = answer.stderr.splitlines()
    assert f"MLFLOW_CREDENTIALS_PATH is '{tmp_path}/none', which is no file" in line


@pytest.mark.parametrize("name", FILLED)
def test_a_head_bears_with_a_network_that_is_away_for_half_a_minute(name):
    """Ray's own 5 health checks give such a machine up (test_ray_nodes.py cuts one off)."""
    text = (INFRA / name).read_text()
    documents = list(yaml.safe_load_all(re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", text)))
    if name.startswith("ray-"):
        (start,) = [line for line in documents[0]["head_start_ray_commands"] if "ray start --head" in line]
        exported = start.partition("; ray start")[0].partition("export ")[2]
        assert "RAY_health_check_failure_threshold=10" in exported.split()
        return
    spec = documents[-1]["spec"]
    head = spec.get("rayClusterSpec", spec)["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "RAY_health_check_failure_threshold", "value": "10"} in head["env"]


def test_versions_are_those_of_the_lock_file():
    for name in ("raycluster.yaml", "rayjob.yaml"):
        (version,) = re.findall(r'rayVersion: "([^"]+)"', (INFRA / name).read_text())
        assert version == LOCK["ray"]
    images = re.findall(r"ghcr\.io/mlflow/mlflow:v([\d.]+)-full", (INFRA / "compose.yaml").read_text())
    assert images == [LOCK["mlflow"]]
    bases = re.findall(r"(?m)^FROM python:(\d+\.\d+)\.\d+-slim-bookworm\b", (INFRA / "Dockerfile").read_text())
    supported = re.search(r'requires-python = ">=([\d.]+),', (ROOT / "pyproject.toml").read_text())[1]
    assert bases == [supported] * 2
    for name in ("ray-aws.yaml", "ray-gcp.yaml"):
        assert f"uv python install -q {supported}" in (INFRA / name).read_text()
