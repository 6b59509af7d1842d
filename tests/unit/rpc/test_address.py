"""Where a node is, by its URL."""

from __future__ import annotations

import pytest

from progressor.errors import ConfigError
from progressor.rpc.address import Address, read_url

RIGHT = {
    "thrift://127.0.0.1:8023": Address("thrift", "127.0.0.1", 8023, "/v1/progressor"),
    "thrifts://Node.Example:1/": Address("thrifts", "node.example", 1, "/v1/progressor"),
    "thrift://[::1]:8023": Address("thrift", "::1", 8023, "/v1/progressor"),
    "http://node": Address("http", "node", 80, "/v1/progressor"),
    "https://node": Address("https", "node", 443, "/v1/progressor"),
    "http://node:8022/behind/a/proxy/": Address("http", "node", 8022, "/behind/a/proxy"),
}
WRONG = {
    "127.0.0.1:8023": "url: expected one of thrift://, thrifts://, http://, https://, got ''",
    "ftp://h:1": "url: expected one of thrift://, thrifts://, http://, https://, got 'ftp'",
    "thrift://h": "url: expected a port from 1 to 65535 behind the host h",
    "thrift://h:0": "url: expected a port from 1 to 65535 behind the host h",
    "http://h:65536": "url: expected a port from 1 to 65535 behind the host h",
    "thrift://h:port": "url: expected a port from 1 to 65535 behind the host h",
    "thrift://:1": "url: there is no host behind thrift://",
    "http://": "url: there is no host behind http://",
    "thrift://h:1/path": "url: expected nothing behind thrift://h:1",
    "http://h/path?query": "url: expected nothing behind http://h",
    "http://user:hunter2@h": "url: a user or a password has no place in it: give the secret by itself",
    "http://[::1": "url: Invalid IPv6 URL",
    "thrift://a..b:1": "url: no host has the name a..b: expected parts of 1 to 63 characters",
    f"http://{'a' * 64}.b": f"url: no host has the name {'a' * 64}.b: expected parts of 1 to 63 characters",
    "": "url: expected one of thrift://, thrifts://, http://, https://, got ''",
}


@pytest.mark.parametrize("url", RIGHT)
def test_addresses(url: str) -> None:
    assert read_url(url) == RIGHT[url]


def test_an_address_is_shown_as_a_url() -> None:
    assert str(read_url("thrift://[::1]:8023")) == "thrift://[::1]:8023"
    assert str(read_url("https://node/path")) == "https://node:443"


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_is_refused_with_the_part_that_is_wrong(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_url(url)
    assert str(caught.value) == WRONG[url]
    assert "hunter2" not in str(caught.value)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a string, got int"):
        read_url(5)  # type: ignore[arg-type]
