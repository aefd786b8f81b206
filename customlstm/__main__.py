"""``python -m customlstm``: what is installed and built, what this machine can run, and why not the rest."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from . import __version__, _binary, gpu

# What the kernels use or could use, as /proc/cpuinfo spells it.
_CPU_FEATURES = "avx2 fma f16c avx512f avx512bw avx512_bf16 avx512_fp16 amx_bf16 asimd sve".split()

_PACKAGE = Path(__file__).resolve().parent

Line = tuple[str, str]


def report() -> str:
    """The whole report, ready to print; it ends without a newline."""
    status = _binary.status()
    state = "loaded" if status.loaded else f"none, {status.reason}" if status.asked_for else "NOT LOADED"
    sections = [
        (f"customlstm {__version__}", _machine()),
        (f"Compiled library: {state}", _library(status)),
        ("CPU", _cpu(status)),
        ("CUDA", _cuda(status)),
        ("Cells of your own", _written(status)),
    ]
    text = []
    for title, lines in sections:
        text += [title, *(f"  {name:<13}{value}".rstrip() for name, value in lines), ""]
    return "\n".join(text).rstrip()


def _machine() -> Iterator[Line]:
    yield "package", str(_PACKAGE)
    other = _other_installation()
    if other is not None:
        yield "but", f"another customlstm is installed at {other}; run this from another folder"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "torch", str(torch.__version__)
    yield "platform", platform.platform()


def _other_installation() -> Path | None:
    """The package that would be imported, were the current folder not the one that holds this one."""
    if _PACKAGE.parent != Path.cwd():
        return None
    for distribution in metadata.distributions(name="customlstm"):
        found = Path(str(distribution.locate_file("customlstm"))).resolve()
        if found != _PACKAGE and (found / "__init__.py").is_file():
            return found
    return None


def _library(status: _binary.Status) -> Iterator[Line]:
    if not status.asked_for:
        yield "file", str(status.path)
    if not status.loaded:
        if not status.asked_for:
            yield "why", status.reason
        yield "so", "every LSTM computes on the reference, plain PyTorch: the same results, slower"
        yield "for kernels" if status.asked_for else "to mend it", status.remedy
    if status.build:
        build = status.build
        yield "built from", f"customlstm {build.get('version')}, interface {build.get('interface')}"
        yield "built with", f"torch {build.get('torch')}; {build.get('compiler')}"
        yield "flags", str(build.get("flags"))


def _cpu(status: _binary.Status) -> Iterator[Line]:
    yield "processor", _processor()
    yield "capability", f"{torch.backends.cpu.get_cpu_capability()}, as torch sees it"
    yield "features", _features()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "threads", f"{torch.get_num_threads()} (torch.get_num_threads()) on {cores} usable cores"
    if not status.loaded:
        yield "kernels", "none: the compiled library is not loaded"
        return
    built = " ".join(status.build.get("cpu", []))
    try:
        yield "kernels", f"{torch.ops.customlstm.cpu_isa()} in use, of: {built}"
    except (AttributeError, RuntimeError) as error:  # an unknown CUSTOMLSTM_CPU_ISA, or one this CPU has not
        yield "kernels", f"none of: {built}"
        yield "why", str(error).strip().partition("\n")[0]
        yield "to mend it", "unset CUSTOMLSTM_CPU_ISA"


def _cuda(status: _binary.Status) -> Iterator[Line]:
    missing = gpu.why_no_gpu()
    if torch.version.cuda is None:
        yield "GPU", f"none that torch could use: {missing}"
    elif missing is not None:
        yield "GPU", f"none: {missing}"
    else:
        for device in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(device)
            yield f"GPU {device}", f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    cuda = status.build.get("cuda")
    if not status.loaded:
        yield "kernels", "none: the compiled library is not loaded"
        return
    if cuda is None:
        reason = status.build.get("why_no_cuda") or "the library was built without them"
        yield "kernels", f"none: {reason}"
        yield "for kernels", gpu.how_to_build(reason)
        return
    archs = cuda.get("archs") or "torch's default architectures"
    yield "kernels", f"built with CUDA {cuda.get('toolkit')} for {archs}"
    for device in range(torch.cuda.device_count() if missing is None else 0):
        reason = gpu.why_not_device(device)
        if reason is not None:
            yield f"not on GPU {device}", reason


def _written(status: _binary.Status) -> Iterator[Line]:
    from .jit import build, cache, folders, nvrtc, toolchain

    if not status.loaded:
        yield "kernels", "none: the compiled library is not loaded"
        return
    try:
        compiler = toolchain.find_compiler()
        yield "compiler", f"{' '.join(compiler.command)}: {compiler.version.partition(chr(10))[0]}"
    except build.BuildError as error:
        yield "compiler", f"none: {str(error).partition(chr(10))[0]}"
    try:
        yield "for GPUs", str(nvrtc.find_nvrtc())
    except build.BuildError as error:
        yield "for GPUs", f"none: {error}"
    folder = folders.cache_folder()
    yield "kept in", str(folder) if folder else "a temporary folder for each process: there is no home folder"
    if cache.building_disabled():
        yield "building", "switched off by CUSTOMLSTM_JIT=0"


def _cpuinfo(*keys: str) -> str:
    """The first of these entries in /proc/cpuinfo; empty where there is neither."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() in keys:
            return value.strip()
    return ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _features() -> str:
    have = _cpuinfo("flags", "Features").split()
    return " ".join(feature for feature in _CPU_FEATURES if feature in have) or "not known"


def main() -> None:
    about = "Prints what is installed and built, what this machine can run, and why not the rest."
    argparse.ArgumentParser("python -m customlstm", description=about).parse_args()
    print(report())


if __name__ == "__main__":
    main()
