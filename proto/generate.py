"""Write the generated code beside the .proto files. Run: python proto/generate.py [OUTPUT_FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path

PROTO = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Compile every .proto file of kvproto into `output`; raises SystemExit with the compiler's status on failure."""
    from grpc_tools import protoc

    include = Path(protoc.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("kvproto/**/*.proto"))
    options = [f"-I{PROTO}", f"-I{include}", f"--python_out={output}", f"--pyi_out={output}", f"--grpc_python_out={output}"]
    status = protoc.main(["protoc", *options, *files])
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO)
