"""A virtual environment for every peer, from benchmarks/peers/requirements/PEER.txt.

    python -m benchmarks.peers.environments            # all of them: 8 GB
    python -m benchmarks.peers.environments nncf

Where torch is needed, the version is one of which a build without CUDA was at hand; to be sure of one, install it
into the environment first. An environment that is there already is brought up to date.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.catalogue import OURSELVES, PEERS

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path("work-models/peers")


def python_of(peer: str, environments: Path) -> Path:
    """The interpreter that a peer's driver runs in; ours runs in this one."""
    return Path(sys.executable) if peer == OURSELVES else environments.absolute() / peer / "bin/python"


def installed_bytes(peer: str, environments: Path) -> int:
    """What a peer's environment takes on disk."""
    return sum(path.lstat().st_size for path in (environments / peer).rglob("*") if not path.is_dir())


def version_of(python: Path, package: str) -> str:
    """The installed version of a package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def make(peer: str, environments: Path) -> None:
    """Make the environment, or bring it up to date. Raises CalledProcessError where pip fails."""
    python = python_of(peer, environments)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environments / peer], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", REQUIREMENTS / f"{peer}.txt"], check=True)


def main() -> None:
    names = [name for name in PEERS if name != OURSELVES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", choices=[[], *names], help="only these")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where they are made")
    options = parser.parse_args()
    for peer in options.peers or names:
        make(peer, options.environments)
        python = python_of(peer, options.environments)
        size = installed_bytes(peer, options.environments)
        print(f"{peer} {version_of(python, PEERS[peer].package)}: {size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
