"""Compiles every CUDA kernel where there may be no GPU, and links the library against a CUDA build of torch.

``python tests/native/cuda_check.py [--help]``; ``make cuda-check`` runs it. Three parts:

1. every csrc/cuda/*.cu for each of ARCHS, with warnings as errors and the flags of setup.py;
2. the registers, shared memory, stack and spills of every kernel as a table. A spill or a stack is local
   memory, slow and never needed here: it fails the check, unless JUSTIFIED says why that kernel may have it;
3. with a torch built with CUDA, the extension is built and linked against it (FORCE_CUDA=1); what the library
   leaves undefined must be in torch, the CUDA runtime, cuBLAS, the C or C++ library or Python; Python must
   load it.

Results of part 1 are kept in build/cuda_check by content; part 3 is incremental. The first time all of it
takes 8.5 minutes on two idle cores; a machine with other work to do can be spared with
``make cuda-check ARGS="--jobs 1 --no-link --archs 90a"``. Exit codes: 0 passed, 1 failed, 2 there is no nvcc,
no such Python, or nothing to compile.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_check"
USUAL_PLACE = "/usr/local/cuda/bin"
ARCHS = ("80", "90a", "100")  # Ampere, Hopper with all that it has, Blackwell
LINKED_ARCH = "8.0"  # part 3 compiles for one GPU only: the others' code has been seen in part 1

# Kernels that may spill or have a stack: a pattern that their name matches, and why they may. None so far.
JUSTIFIED: dict[str, str] = {}

STRICT = ["-Werror", "all-warnings", "-Xptxas", "-v"]
# What torch.utils.cpp_extension adds to our flags, so that the check compiles what users get.
TORCHS_OWN = ["-std=c++17", "-Xcompiler=-fPIC", "--expt-relaxed-constexpr"]
TORCHS_OWN += [f"-D__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS")]
TORCHS_OWN += ["-D__CUDA_NO_BFLOAT16_CONVERSIONS__"]
HEADERS = ("*.h", "*.cuh", "*.inl")

NO_NVCC = """cuda-check: there is no nvcc, so no CUDA kernel was compiled.
Install a CUDA toolkit, 12.8 or later (no GPU and no driver is needed), and put its bin folder on the PATH or
set CUDA_HOME. On Debian and Ubuntu: the package cuda-toolkit of NVIDIA's repository; with conda:
conda install -c nvidia cuda-nvcc cuda-cudart-dev."""


class Failed(Exception):
    """Carries what the check says before it exits with 1."""


# --- part 1: compilation


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel, or of a function that was not inlined (``registers`` is 0 then)."""

    file: str
    arch: str
    name: str
    registers: int = 0
    shared: int = 0  # bytes known at compile time; dynamic shared memory is not in it
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def local_memory(self) -> bool:
        return bool(self.stack or self.spill_stores or self.spill_loads)


def setup_module(root: Path = ROOT) -> ModuleType:
    """setup.py, for the flags in it; importing it builds nothing."""
    spec = importlib.util.spec_from_file_location("customlstm_setup", root / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc() -> str | None:
    """The nvcc that a build takes, looked for where torch looks; None if there is none.

    Raises:
        Failed: the variable that names the toolkit is wrong. torch goes on to no other one, nor does this.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            found = shutil.which("nvcc", path=str(Path(home, "bin")))
            if found is None:
                raise Failed(f"{name} is {home}, which has no bin/nvcc; correct it or unset it.")
            return found
    return shutil.which("nvcc") or shutil.which("nvcc", path=USUAL_PLACE)


def jobs_here() -> int:
    """MAX_JOBS, which limits every other build of torch extensions, else the cores of this process."""
    given = os.environ.get("MAX_JOBS", "")
    return max(1, int(given)) if given.isdigit() else len(os.sched_getaffinity(0))


def toolkit_of(nvcc: str) -> Path:
    """The toolkit's folder, asked of nvcc itself: what is on the PATH may be a script somewhere else."""
    done = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]


def digest_of(source: Path, command: Iterable[str], nvcc_version: str, headers: Iterable[Path]) -> str:
    """Names a result by all that it depends on. Every header counts for every file: most include all."""
    digest = hashlib.sha256("\0".join([*command, nvcc_version, source.name]).encode())
    for path in [source, *headers]:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def parse(report: str, file: str = "", arch: str = "") -> list[Kernel]:
    """The functions in the output of ``-Xptxas -v``, in its order, with their mangled names."""
    found: dict[str, Kernel] = {}
    current = ""
    for line in report.splitlines():
        # The second comes for functions that were not inlined, too, and names those then.
        if name := re.search(r"Compiling entry function '([^']+)'|Function properties for (\S+)", line):
            current = name[1] or name[2]
            found.setdefault(current, Kernel(file, arch, current))
        elif not current:
            continue
        elif frame := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, stores, loads = map(int, frame.groups())
            found[current] = replace(found[current], stack=stack, spill_stores=stores, spill_loads=loads)
        elif used := re.search(r"Used (\d+) registers", line):
            # Belongs to the entry function, of which the properties came last.
            smem = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            cumulative = re.search(r"(\d+) bytes cumulative stack size", line)
            kernel = replace(found[current], registers=int(used[1]), shared=int(smem[1]) if smem else 0)
            found[current] = replace(kernel, stack=max(kernel.stack, int(cumulative[1]) if cumulative else 0))
    return list(found.values())


def readable(names: list[str]) -> list[str]:
    """Names as they are in the source, without namespaces and what every launch puts around the kernel."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool and names:
        said = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
        if said.returncode == 0 and len(said.stdout.splitlines()) == len(names):
            return [shorten(name) for name in said.stdout.splitlines()]
    return names


def shorten(name: str) -> str:
    text = name.replace("(anonymous namespace)::", "").replace("customlstm::", "").replace("cuda::", "")
    # c++filt writes numbers in a template as (int)4 or (MathKind)2.
    text = re.sub(r"(?<=[<, ])\(\w+\)(?=-?\d)", "", text).replace(" >", ">")
    # The type of the arguments repeats the kernel's name.
    entry = re.match(r"void launching::entry<(.*?)>\(", text)
    return entry[1] if entry else text.removeprefix("void ").partition("(")[0]


def compile_one(
    nvcc: str, flags: list[str], version: str, source: Path, arch: str, keep: Path
) -> list[Kernel]:
    """The kernels of one file for one GPU, from an earlier run if nothing has changed."""
    target = keep / f"{source.stem}.sm_{arch}.o"
    command = [*flags, *STRICT, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-c"]
    headers = {path for pattern in HEADERS for path in SOURCES.rglob(pattern)}
    headers |= {path for pattern in HEADERS for path in source.parent.glob(pattern)}
    result = keep / f"{digest_of(source, command, version, sorted(headers))}.json"
    if result.is_file():
        return [Kernel(**each) for each in json.loads(result.read_text())]
    done = subprocess.run([nvcc, *command, str(source), "-o", str(target)], capture_output=True, text=True)
    target.unlink(missing_ok=True)
    if done.returncode:
        raise Failed(f"{source.name} does not compile for sm_{arch}:\n{done.stdout}{done.stderr}".rstrip())
    kernels = parse(done.stderr + done.stdout, source.name, arch)
    names = readable([kernel.name for kernel in kernels])
    kernels = [replace(kernel, name=name) for kernel, name in zip(kernels, names, strict=True)]
    part = result.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    part.replace(result)
    return kernels


def compile_all(nvcc: str, sources: list[Path], archs: Iterable[str], keep: Path, jobs: int) -> list[Kernel]:
    keep.mkdir(parents=True, exist_ok=True)
    version = subprocess.check_output([nvcc, "--version"], text=True)
    try:
        flags = [*setup_module().compile_flags()[1], *TORCHS_OWN]
    except ImportError as error:
        raise Failed(f"the flags are in setup.py, and {sys.executable} cannot import it: {error}") from error
    begin = time.monotonic()
    kernels: list[Kernel] = []
    failures: list[str] = []
    work = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(jobs) as pool:
        started: dict[Future[list[Kernel]], tuple[Path, str]] = {}
        for source, arch in work:
            started[pool.submit(compile_one, nvcc, flags, version, source, arch, keep)] = (source, arch)
        for number, task in enumerate(as_completed(started), start=1):
            source, arch = started[task]
            outcome = f"ok, {time.monotonic() - begin:.0f} s from the start"
            try:
                kernels += task.result()
            except Failed as error:
                failures.append(str(error))
                outcome = "FAILED"
            say(f"[{number}/{len(work)}] {source.name} sm_{arch}: {outcome}")
    if failures:
        raise Failed("\n\n".join(failures))
    return sorted(kernels, key=lambda each: (each.file, each.name, int(each.arch.rstrip("af"))))


# --- part 2: the table


def table(kernels: list[Kernel]) -> str:
    head = ("kernel", "file", "arch", "registers", "shared", "stack", "spills")
    rows = [head]
    for each in kernels:
        spills = f"{each.spill_stores}+{each.spill_loads}"
        values = (each.registers or "-", each.shared, each.stack, spills if spills != "0+0" else 0)
        rows.append((each.name, each.file, f"sm_{each.arch}", *map(str, values)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        words = [text.ljust(width) for text, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [text.rjust(width) for text, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(words + numbers))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def complaints(kernels: list[Kernel], justified: dict[str, str] | None = None) -> list[str]:
    """A line for each kernel that uses local memory and may not."""
    allowed = JUSTIFIED if justified is None else justified
    return [
        f"{each.name} ({each.file}, sm_{each.arch}) uses local memory: {each.stack} bytes of stack, spills "
        f"{each.spill_stores} bytes out and {each.spill_loads} bytes back"
        for each in kernels
        if each.local_memory and not any(re.search(pattern, each.name) for pattern in allowed)
    ]


# --- part 3: the link


def cuda_torch(python: str) -> dict[str, str] | None:
    """Version and folder of that Python's torch, if it was built with CUDA."""
    code = "import json, torch as t; print(json.dumps([str(t.__version__), t.version.cuda, t.__path__[0]]))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return None
    version, cuda, folder = json.loads(done.stdout.splitlines()[-1])
    return {"version": version, "cuda": cuda, "folder": folder} if cuda else None


def nvidia_packages(torch_folder: Path) -> list[Path]:
    """The CUDA libraries that pip installed beside torch; headers among them that a small toolkit lacks."""
    beside = torch_folder.parent / "nvidia"
    return sorted(path for path in beside.glob("*") if (path / "lib").is_dir()) if beside.is_dir() else []


def link(python: str, torch: dict[str, str], nvcc: str, jobs: int) -> Path:
    """Builds the extension against that torch, and returns the library."""
    folder = BUILD / re.sub(r"[^\w.]", "_", torch["version"])
    packages = nvidia_packages(Path(torch["folder"]))
    environment = os.environ | {
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": LINKED_ARCH,
        "CUDA_HOME": str(toolkit_of(nvcc)),
        "MAX_JOBS": str(jobs),
    }
    for variable, part in (("CPLUS_INCLUDE_PATH", "include"), ("LIBRARY_PATH", "lib")):
        folders = [os.environ.get(variable, ""), *(str(package / part) for package in packages)]
        environment[variable] = os.pathsep.join(filter(None, folders))
    command = [python, "setup.py", "build_ext", "--build-lib", str(folder / "lib")]
    command += ["--build-temp", str(folder / "temp")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-60:])
        raise Failed(f"the extension does not build against torch {torch['version']}:\n{tail}")
    (library,) = (folder / "lib" / "customlstm").glob("_C.*so")
    return library


def symbols(library: Path, *which: str) -> set[str]:
    said = subprocess.run(["nm", "-D", *which, str(library)], capture_output=True, text=True).stdout
    return {line.split()[-1].partition("@")[0] for line in said.splitlines() if line.strip()}


def providers(library: Path, torch: dict[str, str]) -> Iterator[Path]:
    """The libraries that may define what ours leaves undefined: of torch, CUDA, and the compiler."""
    folder = Path(torch["folder"])
    for name in ("libc10.so", "libc10_cuda.so", "libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so"):
        yield folder / "lib" / name
    # libtorch_cuda needs both, so they are in the process and in the scope of our symbols.
    for name in ("cudart", "cublas"):
        for package in nvidia_packages(folder):
            yield from (package / "lib").glob(f"lib{name}.so*")
        yield from (folder / "lib").glob(f"lib{name}*.so*")
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True).stdout
    standard = r"lib(?:stdc\+\+|m|c|gcc_s|pthread|dl|rt|gomp)\.so|ld-linux"
    for path in re.findall(r"(/\S+) \(0x", needed):
        if re.match(standard, Path(path).name):
            yield Path(path)
    for name in ("libgomp.so.1", "libstdc++.so.6"):  # come with torch, not always by our link
        path = subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip()
        if os.path.isabs(path):
            yield Path(path)


def check_symbols(library: Path, torch: dict[str, str]) -> str:
    undefined = symbols(library, "--undefined-only") - symbols(library, "--undefined-only", "--weak")
    weak = {"__gmon_start__", "__cxa_finalize", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    defined: set[str] = set()
    from_torch: set[str] = set()
    for provider in dict.fromkeys(path.resolve() for path in providers(library, torch) if path.exists()):
        names = symbols(provider, "--defined-only")
        if re.match(r"lib(?:c10|torch)", provider.name):
            from_torch |= names & undefined
        defined |= names
    missing = {name for name in undefined - defined - weak if not re.match(r"_?Py[A-Z_]", name)}
    if missing:
        raise Failed(f"{library.name} needs what no library defines: {', '.join(readable(sorted(missing)))}")
    # torch's stable interface is C: a mangled name is of one torch version only.
    unstable = {name for name in from_torch if name.startswith("_Z")}
    # Templates of the standard library, which torch's libraries happen to hold as well, are no part of torch.
    of_standard = r"_ZN?[KRO]*S[tabsiod]|_ZT[ISV]N?S[tabsiod]|_Zn[wa]|_Zd[la]|_ZTVN10__cxxabiv1"
    unstable = sorted(name for name in unstable if not re.match(of_standard, name))
    if unstable:
        raise Failed(f"{library.name} uses torch beyond its stable ABI: {', '.join(readable(unstable))}")
    cuda = sorted(name for name in undefined if name.startswith(("cuda", "__cuda")))
    if not cuda:
        raise Failed(f"{library.name} calls no CUDA: the kernels are not in it")
    return f"{len(undefined)} symbols from outside, {len(from_torch)} torch's, {len(cuda)} CUDA's"


LOAD = """
import torch, customlstm
from customlstm import _binary
status = _binary.status()
assert status.loaded, status.reason
assert status.build["cuda"], status.build
lstm = customlstm.LSTM(3, 4)
output, _ = lstm(torch.zeros(2, 1, 3))
assert output.isfinite().all()
print("loaded, and runs on the CPU;", "GPU:", torch.cuda.is_available())
"""


def check_load(python: str, library: Path) -> str:
    chosen = {"CUSTOMLSTM_BINARY": str(library), "PYTHONPATH": str(ROOT), "LD_BIND_NOW": "1"}
    environment = os.environ | chosen
    done = subprocess.run([python, "-c", LOAD], cwd=BUILD, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".rstrip()
        raise Failed(f"{library.name} was built, but Python does not load it:\n{said}")
    return done.stdout.strip()


# --- the whole


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Compiles and links every CUDA kernel; no GPU is needed.")
    add = parser.add_argument
    add("--archs", default=",".join(ARCHS), help="GPUs to compile for (default: %(default)s)")
    add("--python", default=sys.executable, help="whose torch to link against (default: this one's)")
    add("--no-link", action="store_true", help="leave out part 3")
    add("--jobs", type=int, default=jobs_here(), help="files at a time (default: MAX_JOBS, else all cores)")
    add("sources", nargs="*", type=Path, help="files to compile (default: csrc/cuda/*.cu)")
    options = parser.parse_args(arguments)

    try:
        nvcc = find_nvcc()
    except Failed as error:
        say(f"cuda-check: {error}")
        return 2
    if nvcc is None:
        say(NO_NVCC)
        return 2
    if shutil.which(options.python) is None:  # said before the minutes that come before it is needed
        say(f"cuda-check: --python {options.python}: there is no such program.")
        return 2
    sources = options.sources or sorted((SOURCES / "cuda").glob("*.cu"))
    if not sources:
        say("cuda-check: csrc/cuda has no .cu file, so there is nothing to compile.")
        return 2
    begin = time.monotonic()
    try:
        kernels = compile_all(nvcc, sources, options.archs.split(","), BUILD / "results", options.jobs)
        say(table(kernels))
        wrong = complaints(kernels)
        if wrong:
            raise Failed("\n".join(wrong))
        torch = None if options.no_link or options.sources else cuda_torch(options.python)
        if torch:
            say(f"linking against torch {torch['version']}, with CUDA {torch['cuda']}")
            library = link(options.python, torch, nvcc, options.jobs)
            say(f"{library.name}: {check_symbols(library, torch)}")
            say(f"{library.name}: {check_load(options.python, library)}")
        elif not options.no_link and not options.sources:
            say(f"not linked: {options.python} has no torch built with CUDA; name one that has with --python")
    except Failed as error:
        say(f"cuda-check: FAILED\n{error}")
        return 1
    seconds = time.monotonic() - begin
    say(f"cuda-check: {len(kernels)} kernels compiled, none uses local memory; {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
