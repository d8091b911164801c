"""A port belongs to one server: whichever of its ports a second one finds taken, it says so and leaves."""

import itertools
from dataclasses import replace

import httpx
import pytest

from moe_model.errors import ConfigError
from tests.coordinator.fronts_fakes import EVERYWHERE, World, make_fronts, open_fronts, opening

NAMES = ("grpc", "http", "control", "metrics", "health")


async def test_a_second_server_on_any_port_fails_in_one_line() -> None:
    first = make_fronts()
    async with opening(first) as engine:
        await open_fronts(first, engine, World())
        taken = dict(part.split("=") for part in first.describe().split())
        assert set(taken) == set(NAMES)
        for own, others in itertools.product(NAMES, NAMES):
            second = make_fronts(replace(EVERYWHERE, **{own: taken[others]}))
            with pytest.raises(
                ConfigError, match=f"^{own} address {taken[others]}: already in use"
            ) as caught:
                second.bind()
            assert "\n" not in str(caught.value)
            for port in (second.grpc, second.http, second.control, second.metrics, second.health):
                assert port is not None
                await port.close()
        async with httpx.AsyncClient(verify=False) as client:
            for name in ("http", "metrics"):
                assert (await client.get(f"http://{taken[name]}/health")).status_code == 200


async def test_only_health_alone_may_be_open_without_tls_and_keys() -> None:
    everywhere = "0.0.0.0:0"
    make_fronts(replace(EVERYWHERE, health=everywhere))
    for name in NAMES[:-1]:
        with pytest.raises(ConfigError, match=f"{name} address {everywhere}: other machines can reach it"):
            make_fronts(replace(EVERYWHERE, **{name: everywhere}))


async def test_ports_are_free_again_once_closed() -> None:
    first = make_fronts()
    async with opening(first):
        addresses = dict(part.split("=") for part in first.describe().split())
    again = make_fronts(replace(EVERYWHERE, **addresses))
    async with opening(again):
        assert again.describe() == first.describe()
