"""Writes deploy/kubernetes/base/expertmesh.yaml, which is what the Helm chart renders: `make manifests`.

So what both have in common is said once, in the chart; `--check` changes nothing and fails where the file is
stale. Needs .venv-deploy (scripts/deploy_tools.py).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART, BASE = ROOT / "deploy" / "helm" / "expertmesh", ROOT / "deploy" / "kubernetes" / "base"
MANIFEST = BASE / "expertmesh.yaml"
HELM = (ROOT / ".venv-deploy" / "bin" / "python", ROOT / "tests" / "deploy" / "helm_jobs.py")
RELEASE = "expertmesh"
# What Helm says of itself.
OF_HELM = ("app.kubernetes.io/managed-by: ", "helm.sh/chart: ")
HEADER = "# Rendered of the chart in deploy/helm by `make manifests`; a change here by hand does not last.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the file is stale")
    arguments = parser.parse_args()
    text = manifest()
    if not arguments.check:
        MANIFEST.write_text(text, encoding="utf-8")
    elif not MANIFEST.is_file() or MANIFEST.read_text(encoding="utf-8") != text:
        print(f"{MANIFEST.relative_to(ROOT)} is stale: run make manifests", file=sys.stderr)
        return 1
    return 0


def manifest() -> str:
    """All files that the chart renders, one after the other."""
    values = yaml.safe_load((BASE / "values.yaml").read_text(encoding="utf-8"))
    order = {"chart": str(CHART), "release": RELEASE, "jobs": [{"values": values, "lint_it": False}]}
    done = subprocess.run(
        [str(each) for each in HELM], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"deploy_manifests: {done.stderr.strip().splitlines()[-1]}")
    (answer,) = json.loads(done.stdout)
    if "error" in answer:
        sys.exit(f"deploy_manifests: {answer['error']}")
    files = [text for name, text in sorted(answer["files"].items()) if not name.endswith("NOTES.txt")]
    documents = [_plain(text) for text in files if text.strip()]
    return HEADER + "".join(f"---\n{text}\n" for text in documents)


def _plain(text: str) -> str:
    lines = (line.rstrip() for line in text.strip().removeprefix("---").strip().splitlines())
    return "\n".join(line for line in lines if line and not line.strip().startswith(OF_HELM))


if __name__ == "__main__":
    sys.exit(main())
