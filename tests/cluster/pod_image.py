"""What a container of a pod starts from: a folder with a root file system, and what its image says."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class PodImage:
    """A root file system and what belongs to it; nothing ever writes to ``root``."""

    root: Path
    entrypoint: list[str]
    """What a container without a command of its own runs, before its args."""
    environment: dict[str, str]
    shown: list[str] = field(default_factory=list)
    """Paths of this machine that a container sees too, under their own names."""


def checkout_image() -> PodImage:
    """This machine with this checkout and its interpreter, in place of an image."""
    shown = sorted({str(CHECKOUT), sys.prefix, str(Path(sys.base_prefix))})
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return PodImage(Path("/"), ["python", "-m", "egt_pipeline"], {"PATH": path}, shown)
