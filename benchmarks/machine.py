"""What a result must name to mean something: the machine, the versions, the commit.

torch and the package are imported where they are asked for: ``make gpu-check`` wants the commit before the
package is built, and says itself where there is no torch.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of the many flags of a CPU those that decide which kernels run, ours or oneDNN's.
FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
         "avx_vnni", "asimd", "asimdhp", "sve", "sve2", "bf16")  # fmt: skip

Fact = str | int | bool | list[str] | None


def cpu(text: str | None = None) -> dict[str, Fact]:
    """From /proc/cpuinfo (or ``text``): the model's name, the number of cores and the flags of FLAGS."""
    if text is None:
        file = Path("/proc/cpuinfo")
        text = file.read_text() if file.exists() else ""
    facts: dict[str, str] = {}
    processors = 0
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        processors += name == "processor"
        facts.setdefault(name, value)
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cpu_cores": processors or None,
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
    }


def machine() -> dict[str, Fact]:
    """No name of the host, no path and no user: a result is meant to be committed."""
    import torch

    import customlstm
    from customlstm import _binary

    found = cpu()
    if torch.cuda.is_available():
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    status = _binary.status()
    return {
        "device": found.get("gpu") or found["cpu"],
        **found,
        "torch": torch.__version__,
        "customlstm": customlstm.__version__,
        "kernels": torch.ops.customlstm.cpu_isa() if status.loaded else f"none: {status.reason}",
        "compiler": status.build.get("compiler"),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "threads": torch.get_num_threads(),
    }


def commit(folder: Path = ROOT) -> dict[str, Fact]:
    """``id`` and ``dirty``, whether tracked files differ from it; "unknown", None without git or a clone."""
    if not (folder / ".git").exists():
        return {"id": "unknown", "dirty": None}

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"id": "unknown", "dirty": None}
