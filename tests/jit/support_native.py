"""Generated cells and the functions that they may use, compiled for every value type and called by ctypes."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from customlstm.jit import Program, generate

ROOT = Path(__file__).parents[2]
#: Packs of this many rows; with any number of lanes they divide PADDED.
ROWS = 2
PADDED = 96

_FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
_FLAGS += ["-fno-math-errno", "-ffp-contract=off"]  # as the library is compiled: setup.py
#: Value types: what is above the namespace, and what opens it.
KINDS = {
    "default": ("", "#define CUSTOMLSTM_VECTOR_BYTES 16\n#define CUSTOMLSTM_HAS_FMA 0\n"),
    "avx2": (
        '#include <immintrin.h>\n#pragma GCC target("avx2,fma,f16c")\n',
        "#define CUSTOMLSTM_VECTOR_BYTES 32\n#define CUSTOMLSTM_HAS_FMA 1\n",
    ),
    "avx512": (
        '#include <immintrin.h>\n#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")\n',
        "#define CUSTOMLSTM_VECTOR_BYTES 64\n#define CUSTOMLSTM_HAS_FMA 1\n",
    ),
    "cuda": ("", ""),  # the value type of a GPU, by a host compiler
}
_CPU = f"""
#define CUSTOMLSTM_INLINE inline __attribute__((always_inline))
#define CUSTOMLSTM_NOINLINE __attribute__((noinline))
#include "cpu/vec.inl"
#include "cpu/math.inl"
#include "cpu/functions.inl"
template <class S> struct Value {{
  using V = Pack<S, {ROWS}>;
  static constexpr int kCount = {ROWS} * Vec<S>::kLanes;
  static V load(const S* p) {{
    V x;
    for (int r = 0; r < {ROWS}; ++r) x.row[r] = Vec<S>::load(p + r * Vec<S>::kLanes);
    return x;
  }}
  static void store(const V& x, S* p) {{
    for (int r = 0; r < {ROWS}; ++r) x.row[r].store(p + r * Vec<S>::kLanes);
  }}
}};
"""
_CUDA = """
#define CUSTOMLSTM_INLINE CUSTOMLSTM_DEVICE
template <class S> struct Value {
  using V = cuda::Scalar<S>;
  static constexpr int kCount = 1;
  static V load(const S* p) { return {*p}; }
  static void store(const V& x, S* p) { *p = x.x; }
};
"""
# Arrays are [values][n]; n is a multiple of the pack.
_RUN = """
template <class Cell, class S>
void forward(const S* a, const S* w, S* s, S* h, S* saved, int64_t n) {
  using Load = Value<S>;
  using V = typename Load::V;
  CellParams<S> params{};
  for (int64_t at = 0; at < n; at += Load::kCount) {
    V va[Cell::kGates], vw[Cell::kParameters + 1] = {}, vs[Cell::kStates], vh, vsaved[Cell::kSaved];
    for (int k = 0; k < Cell::kGates; ++k) va[k] = Load::load(a + k * n + at);
    for (int k = 0; k < Cell::kParameters; ++k) vw[k] = Load::load(w + k * n + at);
    for (int k = 0; k < Cell::kStates; ++k) vs[k] = Load::load(s + k * n + at);
    Cell::template forward<V, S>(params, va, vw, vs, vh, vsaved);
    for (int k = 0; k < Cell::kStates; ++k) Load::store(vs[k], s + k * n + at);
    for (int k = 0; k < Cell::kSaved; ++k) Load::store(vsaved[k], saved + k * n + at);
    Load::store(vh, h + at);
  }
}
template <class Cell, class S>
void backward(const S* saved, const S* w, const S* s_prev, const S* s, const S* dh, S* ds, S* da, S* dw,
              int64_t n) {
  using Load = Value<S>;
  using V = typename Load::V;
  CellParams<S> params{};
  for (int64_t at = 0; at < n; at += Load::kCount) {
    V vsaved[Cell::kSaved], vw[Cell::kParameters + 1] = {}, vprev[Cell::kStates], vs[Cell::kStates];
    V vds[Cell::kStates], vda[Cell::kGates], vdw[Cell::kParameters + 1];
    for (int k = 0; k < Cell::kSaved; ++k) vsaved[k] = Load::load(saved + k * n + at);
    for (int k = 0; k < Cell::kParameters; ++k) vw[k] = Load::load(w + k * n + at);
    for (int k = 0; k < Cell::kStates; ++k) vprev[k] = Load::load(s_prev + k * n + at);
    for (int k = 0; k < Cell::kStates; ++k) vs[k] = Load::load(s + k * n + at);
    for (int k = 0; k < Cell::kStates; ++k) vds[k] = Load::load(ds + k * n + at);
    Cell::template backward<V, S>(params, vsaved, vw, vprev, vs, Load::load(dh + at), vds, vda, vdw);
    for (int k = 0; k < Cell::kStates; ++k) Load::store(vds[k], ds + k * n + at);
    for (int k = 0; k < Cell::kGates; ++k) Load::store(vda[k], da + k * n + at);
    for (int k = 0; k < Cell::kParameters; ++k) Load::store(vdw[k], dw + k * n + at);
  }
}
"""
_EXPORT = '#define EXPORT extern "C" __attribute__((visibility("default")))\n'


def _cell_exports(kind: str, cell: int, prefix: str) -> str:
    lines = []
    for name, s in (("f32", "float"), ("f64", "double")):
        struct = f"{prefix}cell_{cell}::UserCell"
        lines.append(
            f"EXPORT void forward_{kind}_{cell}_{name}(const {s}* a, const {s}* w, {s}* s, {s}* h, {s}* "
            f"saved, int64_t n) {{ {prefix}forward<{struct}, {s}>(a, w, s, h, saved, n); }}\n"
            f"EXPORT void backward_{kind}_{cell}_{name}(const {s}* saved, const {s}* w, const {s}* s_prev, "
            f"const {s}* s, const {s}* dh, {s}* ds, {s}* da, {s}* dw, int64_t n) "
            f"{{ {prefix}backward<{struct}, {s}>(saved, w, s_prev, s, dh, ds, da, dw, n); }}\n"
        )
    return "".join(lines)


def _function_exports(kind: str, name: str, arity: int, prefix: str) -> tuple[str, str]:
    """Text inside and outside of the namespace."""
    lines = []
    call = {"neg": "-x", "div": "x / y"}.get(name, f"{name}({', '.join('xyzu'[:arity])})")
    arguments = ", ".join(f"const S* {x}_" for x in "xyzu"[:arity])
    loads = "".join(f"const auto {x} = Value<S>::load({x}_ + at); " for x in "xyzu"[:arity])
    body = f"{loads}Value<S>::store({call}, out + at);"
    body = f"for (int64_t at = 0; at < n; at += Value<S>::kCount) {{ {body} }}"
    inner = f"template <class S> void apply_{name}({arguments}, S* out, int64_t n) {{ {body} }}\n"
    for short, s in (("f32", "float"), ("f64", "double")):
        given = ", ".join(f"const {s}* {x}" for x in "xyzu"[:arity])
        lines.append(
            f"EXPORT void apply_{kind}_{name}_{short}({given}, {s}* out, int64_t n) "
            f"{{ {prefix}apply_{name}<{s}>({', '.join('xyzu'[:arity])}, out, n); }}\n"
        )
    return inner, "".join(lines)


def _source(kind: str, programs: list[Program], functions: dict[str, int]) -> str:
    above, macros = KINDS[kind]
    text = '#include <cstddef>\n#include <cstdint>\n#include "cells/activation.h"\n#include "types.h"\n'
    if kind == "cuda":
        text += '#include "cuda/functions.h"\n'
    text += _EXPORT + above + macros + "namespace customlstm {\nnamespace test_" + kind + " {\n"
    text += "using namespace cuda;\n" + _CUDA if kind == "cuda" else _CPU
    text += _RUN
    prefix = f"customlstm::test_{kind}::"
    outside = ""
    for number, program in enumerate(programs):
        text += f"namespace cell_{number} {{\n{generate(program)}}}\n"
        outside += _cell_exports(kind, number, prefix)
    for name, arity in functions.items():
        inner, outer = _function_exports(kind, name, arity, prefix)
        text += inner
        outside += outer
    return text + "}\n}\n" + outside


def compiler() -> list[str]:
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shlex.split(command)[:1]


def kinds() -> list[str]:
    """The value types that this machine can run."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    wanted = {
        "default": (),
        "avx2": ("avx2", "fma"),
        "avx512": ("avx512dq", "avx512bw", "avx512vl"),
        "cuda": (),
    }
    return [kind for kind, needs in wanted.items() if all(f" {x} " in f"{flags} " for x in needs)]


@dataclass(frozen=True)
class Library:
    """Compiled programs and functions."""

    library: ctypes.CDLL
    programs: list[Program]

    def forward(
        self, kind: str, cell: int, gates: Tensor, parameters: Tensor, states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [n], new states [S, n] and saved [K, n] from [G, n], [P, n] and [S, n]."""
        n, states = gates.size(1), states.clone()
        h, saved = gates.new_empty(n), gates.new_empty(self.programs[cell].saved_count, n)
        self._call(f"forward_{kind}_{cell}", gates, parameters, states, h, saved)
        return h, states, saved

    def backward(
        self,
        kind: str,
        cell: int,
        saved: Tensor,
        parameters: Tensor,
        previous: Tensor,
        states: Tensor,
        dh: Tensor,
        dstates: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of previous states, gates and parameters."""
        dstates = dstates.clone()
        da = dh.new_empty(len(self.programs[cell].gates), dh.size(0))
        dw = torch.empty_like(parameters)
        self._call(f"backward_{kind}_{cell}", saved, parameters, previous, states, dh, dstates, da, dw)
        return dstates, da, dw

    def apply(self, kind: str, name: str, *arguments: Tensor) -> Tensor:
        """An elementary function of [n]."""
        n = arguments[0].numel()
        padded = [torch.cat([x, x.new_ones(-n % PADDED)]) for x in arguments]
        result = torch.empty_like(padded[0])
        self._call(f"apply_{kind}_{name}", *padded, result)
        return result[:n]

    def _call(self, name: str, *tensors: Tensor) -> None:
        dtype = tensors[0].dtype
        assert all(x.is_contiguous() and x.dtype == dtype for x in tensors)
        function = getattr(self.library, f"{name}_{'f32' if dtype == torch.float32 else 'f64'}")
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
        assert tensors[0].size(-1) % PADDED == 0
        function(*pointers, ctypes.c_int64(tensors[0].size(-1)))


def build(directory: Path, programs: list[Program], functions: dict[str, int]) -> Library:
    """One library of all programs and of functions, given by name and number of arguments."""

    def compile_one(kind: str) -> Path:
        source, object_file = directory / f"{kind}.cpp", directory / f"{kind}.o"
        source.write_text(_source(kind, programs, functions))
        command = [*compiler(), *_FLAGS, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(object_file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
        return object_file

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, kinds()))
    library = directory / "cells.so"
    link = [*compiler(), "-shared", "-o", str(library), *map(str, objects)]
    done = subprocess.run(link, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(link)}\n{done.stderr[:4000]}"
    return Library(ctypes.CDLL(str(library)), programs)
