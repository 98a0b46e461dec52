"""compose.yaml and kubernetes.yaml of a text model: started, tried with real requests, limited, and ended in order."""

from __future__ import annotations

import json
from typing import Any

from engines.serving.form import TextForm
from engines.targets import TARGETS
from engines.triton.settings import TritonSettings

SHARED_MEMORY = "512mb"  # of /dev/shm: the python backend hands requests over in it, and Docker gives 64 MB
MEMORY_GIB = 4
GRACE_SECONDS = 60  # requests in flight are answered in that time
DRAIN_SECONDS = 5  # until balancers have heard that a pod ends, which still answers them
TIME = "@"  # where a probe's body has the time
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


def compose(form: TextForm, settings: TritonSettings) -> str:
    """compose.yaml, for ``docker compose up`` in the model's folder."""
    service: dict[str, Any] = {
        "build": ".",
        "command": ["tritonserver", "--model-repository=/models", f"--exit-timeout-secs={GRACE_SECONDS}"],
        "volumes": ["..:/models:ro"],
        "ports": [f"127.0.0.1:{port}:{port}" for port in PORTS.values()],
        "shm_size": SHARED_MEMORY,
        "stop_grace_period": f"{GRACE_SECONDS}s",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", *(word.replace("$", "$$") for word in _probe(form, settings))],  # compose fills in $…
            "start_period": "120s",
            "interval": "10s",
            "timeout": "10s",
            "retries": 3,
        },
        "deploy": {"resources": {"limits": _compose_limits(form)}},
    }
    if TARGETS[form.engine].gpu:
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        service["deploy"]["resources"]["reservations"] = {"devices": [device]}
    return _yaml({"services": {_label(settings.name): service}}, "docker compose up --build, in this folder.")


def kubernetes(form: TextForm, settings: TritonSettings) -> str:
    """kubernetes.yaml: a deployment whose probes are real requests, and a service."""
    name = _label(settings.name)
    volumes = [
        {"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models", "readOnly": True}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
    ]
    pod = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": GRACE_SECONDS + DRAIN_SECONDS,
            "automountServiceAccountToken": False,
            "containers": [_container(form, settings, name)],
            "volumes": volumes,
        },
    }
    # Both documents: the deployment, and the service that finds its pods by their label
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": pod}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
    ports = [{"name": key, "port": port} for key, port in PORTS.items()]
    exposed = {"selector": {"app": name}, "ports": ports}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": exposed}
    said = f"The image {name}-server is that of Dockerfile; the claim {name}-models holds the model repository."
    return _yaml(deployment, said) + "---\n" + _yaml(service)


def _container(form: TextForm, settings: TritonSettings, name: str) -> dict[str, Any]:
    probe = {"exec": {"command": _probe(form, settings)}, "periodSeconds": 10, "timeoutSeconds": 10}
    return {
        "name": "triton",
        "image": f"{name}-server:latest",
        "args": ["tritonserver", "--model-repository=/models", f"--exit-timeout-secs={GRACE_SECONDS}"],
        "ports": [{"name": key, "containerPort": port} for key, port in PORTS.items()],
        # Before traffic comes, while it does, and after an end was asked for
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**probe, "failureThreshold": 2},
        "livenessProbe": {**probe, "failureThreshold": 3},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}},
        "resources": _limits(form),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _probe(form: TextForm, settings: TritonSettings) -> list[str]:
    """A real request, which a lost backend process does not answer, while Triton's own endpoints still say 200.

    A full queue (503) is no illness: the server answers promptly then, and is not to be started anew. Beside a response
    cache, which would answer a text it knows, the texts are the time.
    """
    sample = {name: [TIME] * len(texts) if settings.cache else list(texts) for name, texts in form.sample.items()}
    body = json.dumps({name: texts if len(texts) > 1 else texts[0] for name, texts in sample.items()})
    sent = f'"$(printf %s "$1" | sed "s/{TIME}/$(date +%s)/g")"' if settings.cache else '"$1"'
    curl = f'code=$(curl -s -o /dev/null -w "%{{http_code}}" -m 9 "$0" -d {sent})'
    script = f'{curl}; [ "$code" = 200 ] || [ "$code" = 503 ]'
    return ["sh", "-c", script, f"http://localhost:{PORTS['http']}/v2/models/{settings.name}/generate", body]


def _compose_limits(form: TextForm) -> dict[str, str]:
    limits = {"memory": f"{MEMORY_GIB}g"}
    return {**limits, "cpus": str(form.threads)} if form.threads else limits


def _limits(form: TextForm) -> dict[str, dict[str, str]]:
    """As many CPUs as the engine has threads; more would idle, fewer would let the threads wait for each other."""
    own: dict[str, str] = {"memory": f"{MEMORY_GIB}Gi"}
    if form.threads:
        own["cpu"] = str(form.threads)
    gpu = {"nvidia.com/gpu": "1"} if TARGETS[form.engine].gpu else {}
    return {"requests": own, "limits": {**own, **gpu}}


def _label(name: str) -> str:
    """A model's name as one of Kubernetes (RFC 1123): small letters, digits and dashes, at most 50 of them."""
    label = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower())
    return label.strip("-")[:50].strip("-") or "model"


def _yaml(value: Any, comment: str = "") -> str:
    import yaml  # lazy: only a repository that is written needs it

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # what stands twice is written twice

    text = yaml.dump(value, Dumper=Plain, sort_keys=False, allow_unicode=True, width=10_000)
    return (f"# {comment}\n" if comment else "") + text
