"""Downloads ONNX Runtime's WebAssembly build from npm and puts the two files that a web page needs into the package.

    python tools/vendor_web.py 1.30.0

npm checks the archive against its checksum. Afterwards run tests/test_web_page.py, and update the version in
vendor/README.md, NOTICE and site/index.html. The license and third-party notices come from the `onnxruntime` wheel.
"""

import gzip
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "src/vitrail/exporting/web/vendor"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def main(version: str) -> None:
    """Downloads the archive and writes its two files, compressed with gzip."""
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["npm", "pack", f"onnxruntime-web@{version}"], cwd=temporary, check=True)
        (archive,) = Path(temporary).glob("*.tgz")
        with tarfile.open(archive) as package:
            for name in FILES:
                content = package.extractfile(f"package/dist/{name}")
                assert content
                (VENDOR / f"{name}.gz").write_bytes(gzip.compress(content.read(), 9, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
