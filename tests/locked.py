"""What a lock in requirements/ pins."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).parent.parent / "requirements"


def locked(name: str) -> dict[str, str]:
    """The version of each package, by its normalised name. Raises ValueError where a line pins none."""
    found = {}
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        if not line or line.startswith((" ", "#")):
            continue
        wanted = Requirement(line.rstrip(" \\"))
        (pin,) = wanted.specifier
        found[canonicalize_name(wanted.name)] = pin.version
    return found
