"""A real Prometheus with the files of deploy/monitoring, before a server that a test has started."""

import math
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from scaling.hosts.ray_hosts import wait_until
from tests.deploy.monitoring import MONITORING, RULES
from tests.deploy.tools import tool

# Scrapes and evaluations are this often, in the place of every 15 s; what an alert waits for is shorter by
# the same factor. Ranges, as of `rate(...[5m])`, are the rules' own.
INTERVAL = 0.5
FASTER = 15 / INTERVAL
PATIENCE = 120.0

_DURATION = re.compile(r"(\d+)([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_COMPARISON = re.compile(r"([<>]=?|[=!]=)(?![~=])")


class Prometheus:
    """A context manager. `target` is HOST:PORT of metrics over TLS; `ca` and `key` are files."""

    def __init__(self, folder: Path, target: str, ca: Path, key: Path) -> None:
        self._folder = folder
        self._target = target
        self._files = {"ca.pem": ca, "metrics_key": key}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._http = httpx.Client(base_url=f"http://{self._address}", timeout=30, trust_env=False)

    def __enter__(self) -> Self:
        self._folder.mkdir()
        config, self._log = self._configured(), (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self._address}",
            ],
            stderr=self._log,
        )
        try:
            self.until(self._is_ready)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def values(self, expression: str) -> list[float]:
        """Of each series that an expression gives now."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return [float(each["value"][1]) for each in answer["data"]["result"]]

    def has_numbers(self, expression: str) -> bool:
        """Whether some of those are numbers: a quantile of nothing is none."""
        return any(map(math.isfinite, self.values(expression)))

    def rules(self) -> list[dict[str, Any]]:
        """As Prometheus has them, with how their last evaluation was."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def firing(self, name: str) -> list[dict[str, Any]]:
        """The alerts of this name that fire."""
        alerts = self._http.get("/api/v1/alerts").json()["data"]["alerts"]
        return [a for a in alerts if a["labels"]["alertname"] == name and a["state"] == "firing"]

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for it, as long as Prometheus runs."""

        def is_so() -> bool:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
            return bool(condition())

        wait_until(is_so, PATIENCE, "it has not come about")

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _configured(self) -> Path:
        """The files of deploy/monitoring, of which only times, paths and the target are others."""
        text = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
        for name, path in self._files.items():
            assert f"/run/secrets/{name}" in text
            text = text.replace(f"/run/secrets/{name}", str(path))
        config = yaml.safe_load(text)
        config["global"] = dict.fromkeys(config["global"], f"{INTERVAL * 1000:g}ms")
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"] = [{"targets": [self._target]}]
        rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = f"{1000 * seconds(rule['for']) / FASTER:.0f}ms"
        (self._folder / RULES.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return self._folder / "prometheus.yml"


def seconds(duration: str) -> float:
    """Of a duration as Prometheus writes it."""
    parts = _DURATION.findall(duration)
    assert parts, duration
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def without_thresholds(expression: str) -> str:
    """An alert's expression, which then gives 0 or 1 for each series, also while it does not fire."""
    outside = re.split(r"(\{[^}]*\})", expression)
    return "".join(p if p.startswith("{") else _COMPARISON.sub(r"\1 bool", p) for p in outside)
