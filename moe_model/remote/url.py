"""The URL of a checkpoint: its parts, and how it may be shown."""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from moe_model.errors import ConfigError

# fsspec's names, and the extra packages that each needs.
SCHEMES = {"file": None, "gs": "gcs", "http": "http", "https": "http", "s3": "s3"}
_QUERY, _USER = re.compile(r"\?\S*"), re.compile(r"//[^/@\s]*@")


def is_url(given: str) -> bool:
    return "://" in given


def without_secrets(text: str) -> str:
    """A text that may have URLs in it: a query may be a signature, and before @ stands a password."""
    return _USER.sub("//", _QUERY.sub("?...", text))


@dataclass(frozen=True, slots=True)
class CheckpointUrl:
    """Of a folder. `given` may hold secrets, `shown` has none."""

    given: str
    parts: SplitResult

    @classmethod
    def parse(cls, given: str) -> "CheckpointUrl":
        """Raises ConfigError."""
        try:
            parts = urlsplit(given.strip())
            host = parts.hostname
        except ValueError as error:
            raise ConfigError(f"{without_secrets(given)[:200]}: {error}") from None
        shown = without_secrets(given)[:200]
        if parts.scheme not in SCHEMES:
            raise ConfigError(f"{shown}: {parts.scheme!r} is not one of {', '.join(SCHEMES)}")
        if (parts.scheme == "file") == bool(host):
            what = "a path, as in file:///models/mine" if parts.scheme == "file" else "a host or a bucket"
            raise ConfigError(f"{shown}: has to name {what}")
        if parts.fragment or (parts.query and parts.scheme not in ("http", "https")):
            raise ConfigError(f"{shown}: a folder has no # and, but with http, no ? in its URL")
        return cls(given.strip(), parts._replace(path=parts.path.rstrip("/")))

    @property
    def shown(self) -> str:
        host = self.parts.netloc.rpartition("@")[2]
        return urlunsplit((self.parts.scheme, host, self.parts.path, "", ""))

    @property
    def name(self) -> str:
        """Of the model: the last part of the path, else the bucket."""
        return unquote(self.parts.path.rpartition("/")[2]) or self.parts.hostname or "model"

    def file(self, name: str) -> str:
        """The URL of a file in it, with the query of the folder: a signature may be for all of it."""
        folder = quote(self.parts.path, safe="/%:@!$&'()*+,;=~")
        return urlunsplit(self.parts._replace(path=f"{folder}/{quote(name)}"))

    @property
    def path(self) -> str:
        """As fsspec takes it, for what is no HTTP: paths of buckets and of disks are not quoted."""
        return f"{self.parts.scheme}://{self.parts.netloc}{self.parts.path}"
