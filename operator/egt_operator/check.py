"""``python -m egt_operator.check``, which ``helm test`` runs: is there all that an operator of these settings needs?"""

import asyncio
import os
import sys

from egt_operator.cache import KINDS
from egt_operator.cluster import Cluster, connected
from egt_operator.cluster_errors import NotServed, Refused
from egt_operator.lease import DURATION_SECONDS, RETRY_SECONDS
from egt_operator.settings import Settings
from egt_pipeline.contract.errors import TaskError


async def check(cluster: Cluster, settings: Settings) -> str:
    """What was found, in a line. Raises NotServed, Refused, or LookupError when no replica works."""
    counts = dict.fromkeys(KINDS, 0)
    for kind in KINDS:
        async for bodies, _ in cluster.pages(kind, settings.namespaces):
            counts[kind] += len(bodies)
    first = None
    for _ in range(int(2 * DURATION_SECONDS / RETRY_SECONDS)):
        lease = await cluster.lease(settings.lease_namespace, settings.lease_name)
        if lease is not None and lease["spec"].get("holderIdentity"):
            version = lease["metadata"]["resourceVersion"]
            first = first or version
            if version != first:  # somebody renews it
                found = ", ".join(f"{count} {kind}s" for kind, count in counts.items())
                return f"{lease['spec']['holderIdentity']} works; {found}"
        await asyncio.sleep(RETRY_SECONDS)
    raise LookupError(f"no replica renews the lease {settings.lease_namespace}/{settings.lease_name}")


async def main() -> None:
    """Print what was found, or end with what is missing."""
    try:
        settings = Settings.from_environment(os.environ)
        async with connected(settings.requests_per_second, settings.burst) as cluster:
            print(await check(cluster, settings))
    except (TaskError, NotServed, Refused, LookupError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    asyncio.run(main())
