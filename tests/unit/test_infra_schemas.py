"""Each file of infra/ by the validator of the tool that reads it, or by that tool's published schema.

The schemas in tests/fixtures say in their first lines where they come from. What needs a server is left to the tools
themselves, where there is one.
"""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipelines.config import load

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
VALUES = {
    "AWS_AMI": "ami-0123",
    "GCP_PROJECT": "project",
    "GCP_IMAGE": "projects/p/global/images/family/f",
    "SHARED_NFS": "host:/folder",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.org",
    "MLFLOW_CREDENTIALS_PATH": __file__,
    "RAY_AUTH_TOKEN_PATH": __file__,
    "NODE_IMAGE": "host/mobilenets:1",
    "STORAGE_CLASS": "standard-rwx",
}


def filled(name):
    command = [sys.executable, "infra/fill", f"infra/{name}"]
    environment = {"PATH": os.environ["PATH"], **VALUES}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def cluster_file(cloud):
    return yaml.safe_load(filled(f"ray-{cloud}.yaml"))


def compose():
    return yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())


def manifests(name):
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(filled(name))}


def ray_spec(name):
    """The cluster of a RayCluster or of a RayJob."""
    found = manifests(name)
    return found["RayCluster"]["spec"] if "RayCluster" in found else found["RayJob"]["spec"]["rayClusterSpec"]


def largest_run():
    """What the largest run of paper scale needs: (workers, CPUs and GPUs of each, CPUs of all its servers)."""
    params = load()
    runs = [run for table in params.tables for run in params.runs(table, "paper").values()]
    return (
        max(run.num_workers for run in runs),
        max(run.worker_cpus for run in runs),
        max(run.worker_gpus for run in runs),
        max(run.servers.num_servers * run.servers.cpus for run in runs),
    )


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_accepts_its_cluster_file(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = cluster_file(cloud)
    validate_config(prepare_config(config))
    for key, wrong in (("idle_timeout_minute", 10), ("max_workers", "many"), ("head_node_type", "tail")):
        broken = {**copy.deepcopy(config), key: wrong}
        with pytest.raises((jsonschema.ValidationError, ValueError)):
            validate_config(prepare_config(broken))


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_head_is_on_demand_the_workers_are_spot_and_they_hold_the_largest_run(cloud):
    config = cluster_file(cloud)
    types = config["available_node_types"]
    head, worker = types["head"], types["spot_l4"]
    key, spot = {
        "aws": ("InstanceMarketOptions", {"MarketType": "spot"}),
        "gcp": ("scheduling", {"provisioningModel": "SPOT"}),
    }[cloud]
    assert key not in head["node_config"]
    assert spot.items() <= worker["node_config"][key].items()
    workers, cpus, gpus, server_cpus = largest_run()
    assert config["max_workers"] == worker["max_workers"] == workers
    assert worker["resources"] == {"CPU": cpus, "GPU": gpus}
    assert head["resources"]["CPU"] >= server_cpus


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_what_starts_ray_guards_it_by_a_token_and_is_known_to_it(cloud):
    from ray.scripts.scripts import start

    config = cluster_file(cloud)
    known = {option for parameter in start.params for option in parameter.opts}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (line,) = [command for command in commands if "ray start" in command]
        assert set(re.findall(r"(--[a-z-]+)", line.partition("ray start")[2])) <= known
        assert "RAY_AUTH_MODE=token" in line.partition("ray start")[0]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == __file__
    for local in config["file_mounts"].values():
        assert (ROOT / local).is_file()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_commands_of_a_machine_are_bash(cloud):
    config = cluster_file(cloud)
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert len(commands) > 8
    for command in commands:
        answer = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, f"{command}: {answer.stderr}"


def kuberay_errors(manifest):
    schema = json.loads((FIXTURES / "kuberay-1.7.0.json").read_text())
    schema["$ref"] = f"#/$defs/{manifest['kind']}"
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_knows_every_field(name):
    (manifest,) = [manifest for kind, manifest in manifests(name).items() if kind.startswith("Ray")]
    assert not kuberay_errors(manifest)
    job = manifest["kind"] == "RayJob"
    for path, key, value in (
        ((), "rayClusterSpecs" if job else "workerGroups", {}),
        (("workerGroupSpecs", 0), "replicsa", 1),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0), "volumeMount", []),
        (("headGroupSpec", "template", "spec", "containers", 0, "env", 0), "valuesFrom", {}),
        (("autoscalerOptions",), "version", "v3"),
        (("authOptions",), "mode", "password"),
    ):
        broken = copy.deepcopy(manifest)
        inner = broken["spec"]["rayClusterSpec"] if job and path else broken["spec"]
        for step in path:
            inner = inner[step]
        inner[key] = value
        assert kuberay_errors(broken), (path, key)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_are_on_spot_nodes_share_a_folder_and_hold_the_largest_run(name):
    spec = ray_spec(name)
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    workers, cpus, gpus, server_cpus = largest_run()
    assert group["maxReplicas"] == workers
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert (float(limits["cpu"]), float(limits["nvidia.com/gpu"])) == (cpus, gpus)
    assert float(head["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) >= server_cpus
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"cloud.google.com/gke-spot", "nvidia.com/gpu"} <= {item["key"] for item in pod["tolerations"]}
    assert "nodeSelector" not in head["template"]["spec"]
    claims = {"mobilenets-shared"}
    for part in (head["template"]["spec"], pod):
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in part["volumes"]} == claims
        assert part["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/shared"}]
        assert part["securityContext"]["runAsNonRoot"]
    claim = manifests("raycluster.yaml")["PersistentVolumeClaim"]
    assert {claim["metadata"]["name"]} == claims
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_job_runs_where_the_shared_folder_is_and_its_cluster_goes_with_it():
    job = manifests("rayjob.yaml")["RayJob"]["spec"]
    assert job["entrypoint"] == "env -C /mnt/shared/mobilenets dvc repro"
    assert job["shutdownAfterJobFinishes"] is True
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["maxReplicas"]  # a run counts the machines that are there when it starts


def compose_errors(value):
    schema = json.loads((FIXTURES / "compose-spec.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(value)]


def test_the_compose_file_is_one():
    value = compose()
    assert not compose_errors(value)
    for key in ("helthcheck", "port"):
        broken = copy.deepcopy(value)
        broken["services"]["server"][key] = {}
        assert compose_errors(broken)


def test_only_the_tracking_server_is_reached_and_from_this_machine_alone():
    value = compose()
    ports = {name: service["ports"] for name, service in value["services"].items() if "ports" in service}
    assert ports == {"server": ["127.0.0.1:5000:5000"]}
    assert value["networks"]["storage"]["internal"] is True
    for name, service in value["services"].items():
        if name != "server":
            assert service["networks"] == ["storage"]
        assert "healthcheck" in service or name == "bucket"


@pytest.mark.slow  # MLflow's commands take 20 s to be imported
def test_mlflow_knows_what_its_server_is_started_with():
    import mlflow.environment_variables
    from mlflow.cli import cli

    server = compose()["services"]["server"]
    known = {option for parameter in cli.commands["server"].params for option in parameter.opts}
    used = {argument.partition("=")[0] for argument in server["command"][2:]}
    assert server["command"][:2] == ["mlflow", "server"]
    assert used <= known
    assert {"--app-name", "--allowed-hosts", "--artifacts-destination", "--backend-store-uri"} <= used
    for name in server["environment"]:
        assert not name.startswith("MLFLOW_") or hasattr(mlflow.environment_variables, name), name


def test_its_users_are_in_the_database_and_the_settings_are_those_that_mlflow_reads():
    from configparser import ConfigParser
    from importlib.util import find_spec

    ours, theirs = ConfigParser(), ConfigParser()
    ours.read_string(compose()["configs"]["basic_auth"]["content"])
    sample = Path(find_spec("mlflow").submodule_search_locations[0]) / "server" / "auth" / "basic_auth.ini"
    theirs.read_string(re.sub(r"^# (\w+ = )", r"\1", sample.read_text(), flags=re.MULTILINE))  # what is optional, too
    assert set(ours["mlflow"]) <= set(theirs["mlflow"])
    store = [item for item in compose()["services"]["server"]["command"] if item.startswith("--backend-store-uri=")]
    assert store == [f"--backend-store-uri={ours['mlflow']['database_uri']}"]


@pytest.mark.slow
def test_the_bucket_is_made_once():
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
        service = compose()["services"]["bucket"]
        assert set(service["environment"]) == {*keys, "AWS_ENDPOINT_URL_S3"}
        environment = {**os.environ, **keys, "AWS_ENDPOINT_URL_S3": endpoint}
        client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s")
        # moto's servers of one process share their buckets, so that those of other tests may be here
        before = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for _ in range(2):
            subprocess.run([sys.executable, *service["command"][1:]], env=environment, check=True)
        assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} - before == {"mlflow"}
    finally:
        server.stop()
