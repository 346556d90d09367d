"""The values of the Helm chart as types; their schema, and the files that the chart takes from the operator. Pure."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.alias_generators import to_camel

from egt_operator.cluster_rules import LEASE_RULES, NODE_RULE, RULES, Rule
from egt_operator.settings import Settings

# What the chart knows itself: the image, and where the release lies.
_FROM_CHART = {"image", "image_pull_policy", "namespaces", "lease_name", "lease_namespace", "identity", "metrics_port"}


class _Values(BaseModel):
    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class Image(_Values):
    """An image. A digest wins over a tag: it cannot move."""

    repository: str = Field(min_length=1)
    """Name with its registry."""
    tag: str = ""
    """Tag; empty: the version of the chart."""
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Digest, as in sha256:...; production pins it."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull it."""


class CRDs(_Values):
    """The CustomResourceDefinition."""

    install: bool = True
    """Install it with the chart."""
    keep: bool = True
    """Leave it, and so every run, when the chart is uninstalled."""


class Watch(_Values):
    """What the operator sees."""

    namespaces: list[str] = []
    """Namespaces whose runs it reconciles, with a Role in each; empty: all, with a ClusterRole."""


class Metrics(_Values):
    """Prometheus."""

    port: int = Field(default=8080, ge=1, le=65535)
    """Where /metrics and /healthz listen."""
    service_monitor: bool = False
    """Make a ServiceMonitor for the Prometheus operator."""


class ServiceAccount(_Values):
    """The operator's own identity."""

    create: bool = True
    """Make one."""
    name: str = ""
    """Its name; empty: that of the release."""
    annotations: dict[str, str] = {}
    """Annotations, as identities of clouds need them."""


class NetworkPolicy(_Values):
    """Traffic of the operator's pods."""

    enabled: bool = True
    """Let in /metrics only, and out to the ports of the API server and of DNS only."""
    api_server_ports: list[int] = [443, 6443]
    """Ports of the API server: its Service's, and its own, which many networks compare with."""


# The operator's settings as values; pydantic makes the type of the fields that Settings has.
OperatorSettings: type[_Values] = create_model(
    "OperatorSettings",
    __base__=_Values,
    __doc__="How the operator works; see settings.py.",
    **{name: (field.annotation, field) for name, field in Settings.model_fields.items() if name not in _FROM_CHART},  # type: ignore[call-overload]
)


class ChartValues(_Values):
    """Values of the chart egt-operator."""

    image: Image
    """The operator's image."""
    pipeline_image: Image
    """The image that every stage runs in."""
    replicas: int = Field(default=2, ge=1, le=9)
    """Pods of the operator; one works, the others stand by."""
    crds: CRDs = CRDs()
    """The CustomResourceDefinition."""
    watch: Watch = Watch()
    """Which runs."""
    settings: OperatorSettings = OperatorSettings()
    """How the operator works."""
    metrics: Metrics = Metrics()
    """Prometheus."""
    service_account: ServiceAccount = ServiceAccount()
    """The operator's own identity."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Traffic of the operator's pods."""
    resources: dict[str, Any] = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    """What one pod of the operator asks for."""
    image_pull_secrets: list[str] = []
    """Secrets of the release's namespace for the operator's own image."""
    node_selector: dict[str, str] = {}
    """Nodes of the operator's pods."""
    tolerations: list[dict[str, Any]] = []
    """Taints that the operator's pods put up with."""
    environment: dict[str, str] = {}
    """Variables of the operator's container besides its settings."""
    command: list[str] = ["python", "-m", "egt_operator"]
    """What the container runs."""


def values_schema() -> dict[str, Any]:
    """The JSON schema that Helm holds values against."""
    schema = ChartValues.model_json_schema(by_alias=True)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def rules() -> dict[str, Any]:
    """The operator's permissions, for the chart's roles."""
    return {
        "rules": [_rule(rule) for rule in RULES],
        "nodes": [_rule(NODE_RULE)],
        "lease": [_rule(rule) for rule in LEASE_RULES],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)}


def values_markdown() -> str:
    """The chart's page: every value with its default and what it is for."""
    lines = [
        "# The chart egt-operator",
        "",
        "```",
        "helm install egt charts/egt-operator --namespace egt-system --create-namespace \\",
        "  --set image.repository=REGISTRY/egt-operator --set pipelineImage.repository=REGISTRY/egt-pipeline",
        "```",
        "",
        "| value | default | what it is for |",
        "|---|---|---|",
        *(f"| `{name}` | {default} | {text} |" for name, default, text in _rows(ChartValues, "")),
    ]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or to_camel(name)}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, f"{path}.")
            continue
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        yield path, default, (field.description or "").replace("|", "\\|")
