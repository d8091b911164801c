"""Makes .venv-loads, load generators of others: `python scripts/load_tools.py [NAME ...]`.

Each has an environment of its own in there, with the versions of scripts/loads/NAME.txt. What this
environment has already (torch above all) they see as well, which saves gigabytes. Of vLLM only what
`vllm bench serve` imports is installed: the rest needs CUDA.
"""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-loads"
PINS = ROOT / "scripts" / "loads"
# What they name as their dependencies is not installed.
ALONE = ("vllm",)


def main(names: Sequence[str]) -> int:
    known = sorted(path.stem for path in PINS.glob("*.txt"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"load_tools: {', '.join(unknown)}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        try:
            if install(name):
                print(f"installed {name}", flush=True)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"load_tools: {name}: {error}", file=sys.stderr)
            return 1
    return 0


def install(name: str) -> bool:
    """Where what is pinned has changed; says whether there was something to do. Raises CalledProcessError,
    after what pip says, and OSError."""
    pins, folder = PINS / f"{name}.txt", ENVIRONMENTS / name
    mark = folder / ".installed"
    wanted = hashlib.sha256(pins.read_bytes() + "\n".join(shared()).encode()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="ascii") == wanted:
        return False
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # Read last, so that the tool's own versions come first.
    Path(packages, "zz_shared.pth").write_text("\n".join(shared()) + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *(["--no-deps"] if name in ALONE else []), "-r", str(pins)], check=True)
    mark.write_text(wanted, encoding="ascii")
    return True


def shared() -> list[str]:
    """Folders of packages that this interpreter sees, without the repository itself."""
    return [path for path in sys.path if path.endswith("site-packages")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
