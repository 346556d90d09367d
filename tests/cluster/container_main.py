"""Process 0 of a container: makes its namespaces and mounts, starts its command as process 1, and ends as it ends.

Started by process_pods as ``python -I -S container_main.py BOX``, where BOX is a JSON file. SIGTERM is passed on to the
command; when this process is killed, the command and all its children die with it. Needs root. Its own file, without
any import of ours, because it runs before anything of a container is there.
"""

import ctypes
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
BIND, REC, PRIVATE, REMOUNT, READ_ONLY, NOSUID = 4096, 16384, 1 << 18, 32, 1, 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 1, 38, 24
LAST_CAPABILITY = 40
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# What a container runtime gives where nobody mounts a larger one.
SHARED_MEMORY = "64m"
CANNOT_START = 128


def check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, str(target), kind, data)]
    check(LIBC.mount(texts[0], texts[1], texts[2], flags, texts[3]), f"mount {kind or 'bind'} at {target}")


def bind(source: Path, target: Path, read_only: bool) -> None:
    """The source is seen at the target too, which is made when it is missing."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, None, BIND | REC)
    if read_only:
        mount("none", target, None, BIND | REMOUNT | READ_ONLY)


def make_root(box: dict[str, Any]) -> Path:
    """The container's file system: that of its image, with a layer above that takes all writes, and the volumes."""
    base = Path(box["folder"]) / "layers"
    base.mkdir()
    mount("none", Path("/"), None, REC | PRIVATE)
    mount("tmpfs", base, "tmpfs")
    upper, work, root = base / "upper", base / "work", base / "root"
    for folder in (upper, work, root):
        folder.mkdir()
    mount("overlay", root, "overlay", 0, f"lowerdir={box['root']},upperdir={upper},workdir={work}")
    for path in box["shown"]:
        let_others_pass(root, Path(path))
    make_devices(root / "dev")
    mount("/sys", root / "sys", None, BIND | REC)
    for source, target, read_only in box["mounts"]:
        # A link such as /var/run -> /run would lead out of the container's root.
        bind(Path(source), root / os.path.realpath(target).lstrip("/"), read_only)
    (root / box["directory"].lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


def let_others_pass(root: Path, shown: Path) -> None:
    """Users of the container may enter every folder on the way to what it sees of this machine."""
    for folder in shown.parents:
        inside = root / str(folder).lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        if not inside.stat().st_mode & stat.S_IXOTH:
            inside.chmod(inside.stat().st_mode | stat.S_IXOTH)


def make_devices(devices: Path) -> None:
    mount("tmpfs", devices, "tmpfs", NOSUID, "mode=755")
    for name in DEVICES:
        bind(Path("/dev") / name, devices / name, read_only=False)
    (devices / "shm").mkdir()
    mount("tmpfs", devices / "shm", "tmpfs", NOSUID, f"mode=1777,size={SHARED_MEMORY}")
    (devices / "fd").symlink_to("/proc/self/fd")


def become(box: dict[str, Any], root: Path) -> None:
    """This process is the container's command from here on. Raises OSError when it cannot be."""
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    mount("proc", root / "proc", "proc")
    if box["memory_group"]:
        (Path(box["memory_group"]) / "cgroup.procs").write_text("0")
    if box["read_only_root"]:
        mount("none", root, None, BIND | REMOUNT | READ_ONLY)
    os.chroot(root)
    os.chdir(box["directory"])
    if box["drop_capabilities"]:
        for capability in range(LAST_CAPABILITY + 1):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([box["group"]] if box["group"] else [])
    os.setgid(box["group"])
    os.setuid(box["user"])
    # setuid clears what a process wishes to happen when its parent dies.
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if box["no_new_privileges"]:
        check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    os.execvpe(box["command"][0], box["command"], box["environment"])


def main() -> None:
    box = json.loads(Path(sys.argv[1]).read_text())
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    check(LIBC.unshare(NEWNS | NEWUTS | NEWIPC | NEWPID), "unshare")
    name = box["hostname"].encode()
    check(LIBC.sethostname(name, len(name)), "sethostname")
    root = make_root(box)
    child = os.fork()
    if child == 0:
        try:
            become(box, root)
        except OSError as error:
            print(f"{box['command'][0]}: {error}", file=sys.stderr, flush=True)
            os._exit(CANNOT_START)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    (Path(box["folder"]) / "pid").write_text(str(child))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()
