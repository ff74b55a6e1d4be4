"""Nothing secret stays in what an engine says, and what is not secret stays readable."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.redaction import MASK, redact, secret_values

SECRET = "Zk3x9PqTr7Vw2"


@pytest.mark.req("OC-CTRL-2041")
@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}==",
        f"request failed: GET /x?api_key={SECRET}&n=1",
        f"X-Api-Key: {SECRET}",
        f"apikey = '{SECRET}'",
        f"argv: llama-server --api-key {SECRET} -m x",
        f'{{"apiKey": "{SECRET}", "n": 1}}',
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"aws_session_token={SECRET}",
        f"export DB_PASSWORD='{SECRET} and {SECRET}'",
        f"password: {SECRET}",
        f'{{"client_secret":"{SECRET}"}}',
        f"HF_TOKEN={SECRET}",
        f"MY_KEY={SECRET}",
        f"https://user:{SECRET}@host.example/path",
        f"postgresql://{SECRET}@db/name",
        f"--token={SECRET}",
        f"password={SECRET};{SECRET}&{SECRET}",
    ],
)
def test_secrets_are_taken_out(line: str) -> None:
    redacted = redact(line)
    assert SECRET not in redacted
    assert MASK in redacted


@pytest.mark.req("OC-CTRL-2041")
@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "hf_Abcdefgh123",
        "hf_abcdefghijklmnopqrst",
        "ghp_0123456789abcdefABCD",
        "sk-proj-0123456789abcd",
        "nvapi-0123456789abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_well_known_tokens_are_taken_out_wherever_they_stand(token: str) -> None:
    assert redact(f"cannot use {token}, sorry") == f"cannot use {MASK}, sorry"


@pytest.mark.parametrize(
    "line",
    [
        "print_info: EOS token             = 2 '<|im_end|>'",
        "slot update_slots: id 0 | n_tokens = 308, cache_tokens=12, token = 5",
        "llama_model_loader: - kv 14: llama.attention.key_length u32 = 64",
        "load_tensors: CPU_Mapped model buffer size =    92.10 MiB",
        "error: hf_transfer is not installed, see https://example.org/docs@v2/x",
        "failed to open '/models/a.gguf' (No such file or directory)",
    ],
)
def test_what_an_operator_needs_stays(line: str) -> None:
    assert redact(line) == line


@pytest.mark.req("OC-CTRL-2041")
@settings(max_examples=200)
@given(
    before=st.text(max_size=40),
    secret=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=8, max_size=40),
    after=st.text(max_size=40),
)
def test_a_known_secret_never_survives(before: str, secret: str, after: str) -> None:
    assert secret not in redact(before + secret + after, [secret]).replace(MASK, " ")


def test_short_values_are_no_known_secrets_and_longer_ones_come_first() -> None:
    assert redact("version 1 of abc", ["1", "abc"]) == "version 1 of abc"
    assert redact("x abcdefgh1234 y", ["abcdefgh", "abcdefgh1234"]) == f"x {MASK} y"


def test_an_environment_names_its_secrets() -> None:
    env = {"LLAMA_API_KEY": "one", "HOME": "two", "Db_Passwd": "three", "X_CREDENTIALS": "four", "A_TOKEN": "five"}
    assert secret_values(env) == ("one", "three", "four", "five")
