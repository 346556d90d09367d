"""Images built for real with buildah from images/, on a root file system of Debian packages in place of a base image.

No test downloads an image. The Dockerfiles take their base as an argument, so what is built is what users build.
"""

import contextlib
import fcntl
import functools
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pod_image import PodImage
from s3_server import cache_folder

ROOT = Path(__file__).parent.parent
STORE = cache_folder().with_name("images")
BUILDAH = ["buildah", "--root", str(STORE / "storage"), "--runroot", str(STORE / "run")]
STAND_IN = "localhost/egt-stand-in:bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# What official base images leave out too.
LEFT_OUT = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]


def why_not() -> str | None:
    """Why this machine can build no images; None when it can."""
    missing = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    if missing:
        return f"images are built here with buildah and mmdebstrap: apt-get install {' '.join(missing)}"
    return "images are built here by root, with chroot" if os.geteuid() else None


def buildah(*arguments: str) -> str:
    """What buildah prints. Raises RuntimeError with its own words when it fails."""
    done = subprocess.run([*BUILDAH, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"buildah {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def container(image: str) -> Iterator[str]:
    """A working container of the image, gone afterwards."""
    name = buildah("from", image)
    try:
        yield name
    finally:
        buildah("rm", name)


def stand_in() -> str:
    """The name of an image with Debian 12 and its Python 3.11, made once: two minutes."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not buildah("images", "--quiet", "--filter", f"reference={STAND_IN}"):
            _make_stand_in()
    return STAND_IN


def _make_stand_in() -> None:
    with tempfile.NamedTemporaryFile(suffix=".tar") as tar, container("scratch") as made:
        packages = ["--variant=minbase", "--include=ca-certificates,python3-venv", *LEFT_OUT]
        subprocess.run(["mmdebstrap", *packages, "bookworm", tar.name], check=True)
        buildah("add", made, tar.name, "/")
        buildah("config", "--env", f"PATH={PATH}", made)
        # A network may have authorities of its own, which this machine knows.
        if known := ssl.get_default_verify_paths().cafile:
            buildah("add", made, known, AUTHORITIES)
            buildah("config", "--env", f"SSL_CERT_FILE={AUTHORITIES}", "--env", f"PIP_CERT={AUTHORITIES}", made)
        buildah("commit", made, STAND_IN)


@functools.cache
def built(image: str, *options: str) -> str:
    """The image's identity, built as `make images` does it, on the stand-in."""
    with tempfile.NamedTemporaryFile() as identity:
        chosen = ["--isolation", "chroot", "--build-arg", f"BASE={stand_in()}", "--iidfile", identity.name, *options]
        make = ["make", f"image-{image}", f"BUILDER={' '.join(BUILDAH)}", f"BUILD_OPTIONS={' '.join(chosen)}"]
        done = subprocess.run(make, check=False, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        buildah("rmi", "--prune")  # what carried the name until now
        return Path(identity.name).read_text().strip()


def configuration(image: str) -> dict[str, Any]:
    """What the image says of itself: Env, User, Entrypoint, Labels."""
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    return found


@contextlib.contextmanager
def mounted(image: str) -> Iterator[PodImage]:
    """The image as a folder that pods can start from."""
    said = configuration(image)
    variables = dict(line.split("=", 1) for line in said["Env"])
    with container(image) as name:
        root = Path(buildah("mount", name))
        try:
            yield PodImage(root, said["Entrypoint"], variables)
        finally:
            buildah("umount", name)
