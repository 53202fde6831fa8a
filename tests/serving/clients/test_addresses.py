"""Addresses as text, and proxies that calls within this machine must not take."""

from urllib.parse import urlsplit

import pytest
import requests.utils

from sparktier.serving.clients.addresses import http_url, no_proxy_env


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "[fe80::1]", "replica-0.example"])
def test_a_url_tells_host_and_port_apart(host: str) -> None:
    parts = urlsplit(http_url(host, 8000))
    assert (parts.hostname, parts.port) == (host.strip("[]"), 8000)


@pytest.mark.parametrize(
    "listed",
    [{}, {"NO_PROXY": "a.example"}, {"no_proxy": "*"}, {"NO_PROXY": "a.example, *", "no_proxy": ""}],
    ids=str,
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_is_reached_without_the_proxy(
    host: str, listed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HTTP_PROXY": "http://proxy.example:1"} | listed | no_proxy_env(listed)).items():
        monkeypatch.setenv(name, value)
    assert requests.utils.get_environ_proxies(http_url(host, 8000)) == {}


def test_hosts_that_were_listed_stay_listed() -> None:
    found = no_proxy_env({"NO_PROXY": "a.example,127.0.0.1", "no_proxy": "b.example"})
    assert set(found) == {"NO_PROXY", "no_proxy"}
    assert {"a.example", "b.example", "127.0.0.1"} <= set(found["no_proxy"].split(","))
    assert found["NO_PROXY"] == found["no_proxy"]
