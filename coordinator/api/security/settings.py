"""Security of the fronts: what an operator has set, put together and checked before anything listens.

Knows no transport; the environment's key comes as an argument.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields

from coordinator.api.grpc.address import is_loopback, parse_address
from coordinator.api.security.api_keys import ApiKeys
from coordinator.api.security.auth import Authenticator, KeyAuthenticator, NoAuthenticator
from coordinator.api.security.quotas import KeyQuotas, NoQuotas, Quotas
from coordinator.api.security.tls import TlsFiles
from coordinator.config.key_limits import Limits
from coordinator.config.security import SecurityConfig
from coordinator.metrics.ledger import Ledger
from moe_model.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Security:
    """What the fronts are given. `keys` and `tls` are None where there are none."""

    config: SecurityConfig
    authenticator: Authenticator
    quotas: Quotas
    keys: ApiKeys | None
    tls: TlsFiles | None

    @classmethod
    def open(
        cls, config: SecurityConfig, secret: str | None = None, ledger: Ledger | None = None
    ) -> "Security":
        """`secret` is one more key, from the environment; `ledger` has what keys take. Raises ConfigError,
        naming the file at fault."""
        tls = None if config.tls is None else TlsFiles(config.tls)
        if config.api_key_file is None and secret is None:
            return cls(config, NoAuthenticator(), NoQuotas(), None, tls)
        keys = ApiKeys.open(config.api_key_file, secret)

        def limits_of(name: str) -> Limits:
            return with_defaults(keys.limits_of(name) or Limits(), config.key_limits)

        return cls(config, KeyAuthenticator(keys), KeyQuotas(limits_of, ledger=ledger), keys, tls)

    @property
    def with_reflection(self) -> bool:
        given = self.config.reflection
        return self.keys is None if given is None else given

    def check_addresses(self, addresses: Mapping[str, str]) -> None:
        """Listening addresses by what listens there. Raises ConfigError for one that is open to strangers."""
        lacking = [what for what, found in (("TLS", self.tls), ("API keys", self.keys)) if found is None]
        for name, address in addresses.items():
            host, _ = parse_address(address, name)
            if is_loopback(host) or not lacking:
                continue
            missing = " and ".join(lacking)
            if not self.config.insecure:
                raise ConfigError(
                    f"{name} address {address}: other machines can reach it, without {missing}; "
                    "set up TLS and API keys, listen on 127.0.0.1, or say --insecure"
                )
            logger.warning("INSECURE: %s on %s is open to other machines without %s", name, address, missing)


def with_defaults(limits: Limits, defaults: Limits) -> Limits:
    """Each limit, or the default where it is not given."""
    values = {field.name: getattr(limits, field.name) for field in fields(Limits)}
    filled = {name: getattr(defaults, name) if value is None else value for name, value in values.items()}
    return Limits(**filled)
