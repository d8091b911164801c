"""Helm for tests, run by the interpreter of .venv-deploy, which has it as a library.

Reads {"chart": PATH, "release": NAME, "jobs": [{"lint_it": bool, "values": {...}}]} as JSON, and answers with
a list: for each job its findings, the texts of its rendered files, or the error that ended it.
"""

import json
import sys
from typing import Any

from helm_python import Chart, HelmError, lint

NAMESPACE = "models"


def main() -> None:
    order = json.load(sys.stdin)
    json.dump([_do(order["chart"], order["release"], **job) for job in order["jobs"]], sys.stdout)


def _do(path: str, release: str, values: dict[str, Any], *, lint_it: bool) -> dict[str, Any]:
    try:
        if lint_it:
            return {"findings": lint(path, values, strict=True)["messages"]}
        with Chart.load(path) as chart:
            return {"files": chart.render(values, name=release, namespace=NAMESPACE)}
    except HelmError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main()
