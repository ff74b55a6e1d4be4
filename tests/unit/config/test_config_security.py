"""Sections `auth` and `server`: roles, the keys file, TLS and proxies."""

import hashlib
from pathlib import Path
from typing import get_args

import pytest

from contracts.config import KeyRole
from orchestrator.app import door_of, ingress_settings
from orchestrator.cluster.http_connection import HttpLimits
from orchestrator.cluster.listener_tls import TlsFiles
from orchestrator.configfile import loads
from orchestrator.local_run import _with_key
from tests.unit.config.config_kit import POOL, only

KEY = f"name: k, tenant: t, sha256: {'ab' * 32}"


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
def test_the_ingress_gets_what_the_file_says() -> None:
    text = f"""{POOL}auth:
  keys: [{{{KEY}, roles: [operate, observe]}}]
  keys_file: more/keys.yaml
  protect_metrics: true
server:
  head_max_bytes: 1000
  headers_max: 10
  request_timeout_ms: 2000
  write_timeout_ms: 3000
  connections_max: 7
  streams_max: 3
  body_max_bytes: 5000
  trusted_proxies: [10.0.0.0/8, "::1"]
  tls: {{cert_file: door.crt, key_file: /etc/door.key, client_ca_file: ca.crt}}
"""
    config = loads(text, "f.yaml", base=Path("/etc/llorch"), files=False).config
    settings = ingress_settings(config)
    assert settings.keys[0].roles == ("operate", "observe")
    assert settings.keys_file == Path("/etc/llorch/more/keys.yaml")
    assert (settings.protect_metrics, settings.streams_max, settings.body_max_bytes) == (True, 3, 5000)
    assert settings.request_timeout_ms == 2000
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1/128")
    door = door_of(config, 8123)
    assert (door.port, door.connections_max, door.limits) == (8123, 7, HttpLimits(1000, 10, 2000, 3000))
    folder = Path("/etc/llorch")
    assert door.tls == TlsFiles(folder / "door.crt", Path("/etc/door.key"), folder / "ca.crt")


def test_what_is_left_out_is_safe() -> None:
    config = loads(f"{POOL}auth: {{keys: [{{{KEY}}}]}}\n", "f.yaml", base=Path(), files=False).config
    assert ingress_settings(config).keys[0].roles == ("submit",)
    assert door_of(config, 1).tls is None
    assert ingress_settings(config).trusted_proxies == ()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"auth: {{keys: [{{{KEY}, roles: []}}]}}\n", 6),
        (f"auth: {{keys: [{{{KEY}, roles: [root]}}]}}\n", 6),
        ("server: {trusted_proxies: [10.0.0.1/8]}\n", 6),
        ("server: {trusted_proxies: [everyone]}\n", 6),
        ("server: {tls: {cert_file: a}}\n", 6),
        ("server: {headers_max: 0}\n", 6),
    ],
)
def test_what_makes_no_sense_is_refused_in_its_place(text: str, line: int) -> None:
    assert only(POOL + text).line == line


def warned(text: str) -> str:
    return " ".join(str(warning) for warning in loads(POOL + text, "f.yaml", base=Path(), files=False).warnings)


@pytest.mark.req("ORCH-3035")
def test_keys_without_an_operator_are_warned_of() -> None:
    assert "no key has the role `operate`" in warned(f"auth: {{keys: [{{{KEY}}}]}}\n")
    assert "operate" not in warned(f"auth: {{keys: [{{{KEY}, roles: [operate]}}]}}\n")
    assert "auth" not in warned("auth: {keys_file: keys.yaml}\n")
    assert "no API keys" in warned("")


@pytest.mark.req("ORCH-3035")
def test_a_development_key_may_do_everything_and_is_made_only_where_there_are_none() -> None:
    made, key = _with_key(loads(POOL, "f.yaml", base=Path(), files=False).config)
    (entry,) = made.auth.keys
    assert entry.roles == list(get_args(KeyRole))
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()
    for auth in (f"auth: {{keys: [{{{KEY}}}]}}\n", "auth: {keys_file: keys.yaml}\n", "auth: {enabled: false}\n"):
        config = loads(POOL + auth, "f.yaml", base=Path(), files=False).config
        assert _with_key(config) == (config, "")
