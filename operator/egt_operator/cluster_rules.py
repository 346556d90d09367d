"""What the operator may do: the permissions that the calls of cluster.py and the watches of handlers.py need. Pure."""

from dataclasses import dataclass

from egt_operator.api import GROUP


@dataclass(frozen=True)
class Rule:
    """One line of RBAC: what the operator may do, and what it does it for."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str


RULES = (
    Rule(
        GROUP, "egtruns", ("get", "list", "watch", "delete"), "runs are watched, and removed after their time to live"
    ),
    Rule(GROUP, "egtruns/status", ("patch",), "what was seen of a run is its only memory"),
    Rule(
        GROUP, "egtruns/finalizers", ("update",), "its jobs block its deletion (OwnerReferencesPermissionEnforcement)"
    ),
    Rule(
        "kubeflow.org",
        "pytorchjobs",
        ("get", "list", "watch", "create", "patch", "delete"),
        "one for each attempt of a stage; touched when its pods could not be made",
    ),
    Rule("", "pods", ("list", "watch"), "why an attempt failed stands in its pods"),
    Rule("", "pods/log", ("get",), "the progress of a stage stands in its log"),
    Rule("", "events", ("list", "create"), "why pods cannot be made; and what happened, for kubectl describe"),
    Rule("kueue.x-k8s.io", "localqueues", ("get",), "a queue that does not exist is said at once"),
)
# Nodes belong to no namespace: an operator of some namespaces only gets on without.
NODE_RULE = Rule("", "nodes", ("list",), "a node pool that does not exist is said at once")
# In the operator's own namespace only; the chart narrows the second to the one Lease of the release.
LEASE_RULES = (
    Rule("coordination.k8s.io", "leases", ("create",), "one replica works at a time"),
    Rule("coordination.k8s.io", "leases", ("get", "update"), "one replica works at a time"),
)
