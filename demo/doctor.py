"""`tool doctor`: check this machine, and say how to mend what is amiss."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotate.errors import UserError
from annotate.options import emit, json_option, workspace_option

if TYPE_CHECKING:
    from annotate.workspace import Workspace

# run in a process of its own: a broken torch may crash the interpreter, and must not crash the doctor
_TORCH_PROBE = """
import json, torch, torchvision
boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.1]])
kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist()
assert kept == [0], kept
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__, "gpus": gpus}))
"""
_REINSTALL = "install both from one index: uv pip install --reinstall torch torchvision"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `needed`: without it the flow cannot run."""

    name: str
    ok: bool
    found: str
    mend: str = ""
    needed: bool = True


def check_python(workspace: Workspace) -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [Finding("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")]


def check_torch(workspace: Workspace) -> list[Finding]:
    """Do torch and torchvision import, fit each other, and see a GPU."""
    command = [sys.executable, "-c", _TORCH_PROBE]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return [Finding("torch", False, "import takes more than 5 minutes", _REINSTALL)]
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or [f"exit {probe.returncode}"])[-1]
        return [Finding("torch", False, last[:200], _REINSTALL)]
    seen = json.loads(probe.stdout.strip().splitlines()[-1])
    gpus = ", ".join(seen["gpus"])
    return [
        Finding("torch", True, f"{seen['torch']} with torchvision {seen['torchvision']}"),
        Finding(
            "gpu", bool(gpus), gpus or "none", "training runs on the CPU: use the small presets", needed=False
        ),
    ]


def check_label_studio(workspace: Workspace) -> list[Finding]:
    """Is the configured server there and the key good, or can the embedded one be started."""
    url = os.environ.get("LABEL_STUDIO_URL") or workspace.settings().studio_url
    if not url:
        there = importlib.util.find_spec("label_studio") is not None
        found = "embedded server can be started" if there else "label-studio is not installed"
        return [
            Finding("label studio", there, found, "uv pip install 'impasto[server]', or set LABEL_STUDIO_URL")
        ]
    from annotate.access import connect

    try:
        connect(workspace)
    except UserError as error:
        return [
            Finding("label studio", False, error.message, "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
        ]
    return [Finding("label studio", True, f"{url} answers and takes the key")]


def check_room(workspace: Workspace) -> list[Finding]:
    """Free disk for the workspace, memory and cores."""
    folder = workspace.root.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return [
        Finding(
            "disk", free >= 5, f"{free:.0f} GB free at {folder}", "free 5 GB, or choose another --workspace"
        ),
        Finding("memory", memory >= 6, f"{memory:.0f} GB", "6 GB are needed; close other programs"),
        Finding("cores", cores >= 2, str(cores), "one core works, slowly", needed=False),
    ]


def check_cpu_bfloat16(workspace: Workspace) -> list[Finding]:
    """Does the CPU multiply bfloat16 matrices in hardware (Intel AMX, Arm BF16)."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(errors="replace") if info.exists() else ""
    fast = next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if f" {name}" in flags), "")
    return [
        Finding(
            "cpu bfloat16", bool(fast), fast or "not in hardware", "float32 is used on the CPU", needed=False
        )
    ]


def check_chromium(workspace: Workspace) -> list[Finding]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), "")
    mend = "only the browser tests need it: apt-get install chromium"
    return [Finding("chromium", bool(path), path or "not found", mend, needed=False)]


CHECKS: tuple[Callable[[Workspace], list[Finding]], ...] = (
    check_python,
    check_torch,
    check_label_studio,
    check_room,
    check_cpu_bfloat16,
    check_chromium,
)


def examine(workspace: Workspace) -> list[Finding]:
    """Run every check; none of them changes anything."""
    return [finding for check in CHECKS for finding in check(workspace)]


def _lines(findings: list[Finding]) -> str:
    lines = []
    for one in findings:
        mark = "ok  " if one.ok else ("FAIL" if one.needed else "note")
        lines.append(f"{mark}  {one.name:<14}{one.found}")
        if not one.ok and one.mend:
            lines.append(f"      {'':<14}-> {one.mend}")
    return "\n".join(lines)


@click.command()
@workspace_option
@json_option
def doctor(workspace: Workspace, as_json: bool) -> None:
    """Check this machine, and say how to mend what is amiss.

    Looks at Python, torch and torchvision, the GPU, Label Studio, disk, memory and Chromium. Exits with 1
    where something is missing that the flow needs.

    \b
    Example:
      tool doctor
    """
    findings = examine(workspace)
    broken = [one.name for one in findings if one.needed and not one.ok]
    emit({"ok": not broken, "findings": [one.__dict__ for one in findings]}, as_json, _lines(findings))
    if broken:
        raise UserError(f"{', '.join(broken)}: mend as said above, then run `tool doctor` again")
