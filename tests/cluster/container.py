"""One container as a local process: what container_main is told, and how it ended."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from node_api import Object
from node_pod import now
from pod_files import PodFiles, expanded, quantity
from pod_image import PodImage

MAIN = Path(__file__).parent / "container_main.py"
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
# What a kubelet keeps of a termination message, and of a log that stands in for one.
MESSAGE_BYTES, LOG_LINES, LOG_BYTES = 4096, 80, 2048
BURIAL_TRIES = 100


class Container:
    """A container that runs once; a restart is another."""

    def __init__(self, files: PodFiles, box: Object, number: int, environment: dict[str, str], image: PodImage) -> None:
        pod = files.pod
        self.box = box
        self.folder = files.folder / f"{box['name']}-{number}"
        self.folder.mkdir()
        self.log = files.folder / f"{box['name']}-{number}.log"
        self.message = self.folder / "message"
        self.message.touch()
        self.message.chmod(0o666)
        self.started = now()
        self.group = self._memory_group(f"egt-{pod.uid}-{box['name']}-{number}")
        security = {**pod.object["spec"].get("securityContext", {}), **box.get("securityContext", {})}
        user = security.get("runAsUser", 0)
        command = [*box.get("command", image.entrypoint), *box.get("args", [])]
        told = {
            "folder": str(self.folder),
            "root": str(image.root),
            "hostname": pod.name[:63],
            "command": [expanded(part, environment) for part in command],
            "environment": {"HOSTNAME": pod.name[:63], **environment},
            "directory": box.get("workingDir", "/"),
            "shown": image.shown,
            "mounts": [
                *files.mounts(box),
                *((path, path, True) for path in image.shown),
                (str(files.folder / "hosts"), "/etc/hosts", False),
                (str(self.message), box.get("terminationMessagePath", "/dev/termination-log"), False),
            ],
            "memory_group": str(self.group) if self.group else None,
            "user": user,
            "group": security.get("runAsGroup", 0),
            "read_only_root": security.get("readOnlyRootFilesystem", False),
            "no_new_privileges": not security.get("allowPrivilegeEscalation", True),
            "drop_capabilities": "ALL" in security.get("capabilities", {}).get("drop", []),
        }
        if security.get("runAsNonRoot") and not user:
            raise RuntimeError(f"container {box['name']}: runAsNonRoot, and no runAsUser")
        self.told = self.folder / "box.json"
        self.told.write_text(json.dumps(told))
        self.process: asyncio.subprocess.Process | None = None
        self.out_of_memory = False

    def _memory_group(self, name: str) -> Path | None:
        limit = self.box.get("resources", {}).get("limits", {}).get("memory")
        if limit is None or not (MEMORY_GROUPS / "memory.limit_in_bytes").exists():
            return None
        group = MEMORY_GROUPS / name
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(quantity(limit)))
        return group

    async def run(self) -> int:
        """The exit code; 128 + the number of the signal that ended it. No process of it is left afterwards."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(MAIN), str(self.told), stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            code = await self.process.wait()
        finally:
            self.kill()
            await self.process.wait()
            self.log.with_suffix(".ended").touch()
            await self._remove_group()
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        """Asks the container's command to end."""
        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The container's processes die now; one that has ended already does not mind."""
        if self.process and self.process.returncode is None:
            with contextlib.suppress(OSError):
                # Its process 0 stays until everything behind process 1 is gone.
                os.kill(self._pid() or self.process.pid, signal.SIGKILL)

    def _pid(self) -> int | None:
        """Process 1 of the container; None as long as it has none."""
        file = self.folder / "pid"
        return int(file.read_text() or 0) or None if file.exists() else None

    async def _remove_group(self) -> None:
        if self.group is None:
            return
        counts = dict(line.split() for line in (self.group / "memory.oom_control").read_text().splitlines())
        self.out_of_memory = counts.get("oom_kill", "0") != "0"
        for _ in range(BURIAL_TRIES):
            with contextlib.suppress(OSError):  # its last process is still being buried
                self.group.rmdir()
                return
            await asyncio.sleep(0.05)

    def signal_all(self, number: int) -> None:
        """Every process of the container gets the signal, the command's children too; none if it does not run."""
        if self.process is None or self.process.returncode is not None:
            return
        if number == signal.SIGKILL:
            self.kill()
            return
        own = Path(f"/proc/{self._pid()}/ns/pid").readlink()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "ns" / "pid").readlink() == own:
                    os.kill(int(process.name), number)

    def terminated(self, code: int) -> Object:
        """The final state as a kubelet reports it, for the exit code."""
        state = {"exitCode": code, "startedAt": self.started, "finishedAt": now()}
        reason = "OOMKilled" if code and self.out_of_memory else "Error" if code else "Completed"
        message = self.message.read_text(errors="replace")[:MESSAGE_BYTES]
        if not message and code and self.box.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = self.log.read_text(errors="replace").splitlines(keepends=True)
            message = "".join(lines[-LOG_LINES:])[-LOG_BYTES:]
        return {**state, "reason": reason} | ({"message": message} if message else {})
