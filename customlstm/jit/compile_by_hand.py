"""``python -m customlstm.jit.compile_by_hand ARCH INCLUDES SOURCE...``: what an error of a GPU's build names.

Compiles each SOURCE as the build did, ``name.cu`` to ``name.cubin``, and prints what NVRTC says and where it
is: in a temporary folder, since a file that is added to a folder of the cache may spoil the build in it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .build_error import NoCompilerError
from .nvrtc import CompileFailure, compile_file


def main(arch: str, includes: str, *sources: str) -> int:
    folder = Path(tempfile.mkdtemp(prefix="customlstm-"))
    for source in map(Path, sources):
        try:
            image, log = compile_file(source.resolve(), Path(includes), arch)
        except (CompileFailure, NoCompilerError) as error:
            print(error, file=sys.stderr)
            return 1
        target = folder / f"{source.stem}.cubin"
        target.write_bytes(image)
        print(log.replace("\0", "").strip(), target, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
