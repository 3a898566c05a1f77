"""A secret in a text of another's becomes ``***``; what only looks a little like one stays readable."""

from __future__ import annotations

import json
import logging
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.text.redaction import HIDDEN, Redacting, redacted

CANARY = "c4n4ry-V4lue-0f-a-s3cret"

SECRETS = [
    f"postgresql://admin:{CANARY}@db.example:5432/optuna",
    f"could not connect to postgresql+psycopg://admin:p%40{CANARY}@db/x?sslmode=require",
    f"ProxyError: http://user:{CANARY}@proxy.example:3128",
    f"https://{CANARY}@git.example/org/repo",
    f"s3://key:{CANARY}@bucket/path",
    f"redis://:{CANARY}@host:6379/0",
    f"password={CANARY}",
    f"PGPASSWORD={CANARY} psql",
    f"connection failed: host=db user=u password='{CANARY}' dbname=x",
    f'{{"api_key": "{CANARY}", "region": "x"}}',
    f"AWS_SECRET_ACCESS_KEY: {CANARY}",
    f"client_secret={CANARY}&grant_type=x",
    f"https://host/path?access_token={CANARY}&x=1",
    f"hf-token: {CANARY}",
    f"Authorization: Bearer {CANARY}",
    f"'authorization': 'Basic {CANARY}=='",
    f'private_key = "{CANARY}"',
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_taken_out(text: str) -> None:
    found = redacted(text, {})
    assert CANARY not in found
    assert HIDDEN in found
    assert redacted(found, {}) == found


SHAPED = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "hf_" + "abcdefghijklmnopqrstuvwxyz",
    "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_" + "abcdefghijklmnopqrstuvwxyz",
    "xoxb-" + "123456789012-abcdef",
    "AIza" + "a" * 35,
    "sk-" + "proj-abcdefghijklmnopqrst",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0.c2ln",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SHAPED)
def test_a_secret_is_known_by_its_shape(secret: str) -> None:
    assert redacted(f"before {secret} after", {}) == f"before {HIDDEN} after"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MY_PASSWORD", "RAY_AUTH_TOKEN", "PGPASSWORD"],
)  # fmt: skip
def test_the_value_of_a_secret_variable_is_taken_out_wherever_it_stands(name: str) -> None:
    text = f"refused {CANARY[:4]}: x{CANARY}y"
    assert redacted(text, {name: CANARY}) == f"refused {CANARY[:4]}: x{HIDDEN}y"


def test_the_password_in_a_url_of_the_environment_is_taken_out_by_itself() -> None:
    environment = {
        "DATABASE_URL": "postgresql://admin:s3cr%40t-word@db/x",
        "HTTPS_PROXY": "http://p",
    }
    found = redacted("user admin, password s3cr@t-word or s3cr%40t-word", environment)
    assert found == f"user admin, password {HIDDEN} or {HIDDEN}"


ORDINARY = [
    "data.forget.max_tokens: must be at least 1, got max_tokens=0",
    "eos_token='<|endoftext|>' pad_token=<pad> bos_token: None",
    "the tokenizer has pad_token_id=50256, n_tokens=123456789",
    "KeyError: 'adapter.rank'; key 'space' is given twice; keep one",
    "--set: key=value is expected, got 'x'",
    "RAY_AUTH_TOKEN_PATH=/home/u/.ray/auth_token_2",
    "/tmp/pytest-1/tokenizer.json: not JSON: Expecting value (column 1)",
    "hub:org/name@0123456789abcdef, see https://example.org/a@b?c=d@e",
    "TOKENIZERS_PARALLELISM=false; OutOfMemoryError: 2 GiB",
    "learning_rate=0.0001 rank=8 exponent=0.5",
    "ask user@example.org",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_message_stays_as_it_is(text: str) -> None:
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "PWD": "/tmp/pytest-1",
        "KEYBOARD": "learning",
    }
    assert redacted(text, environment) == text


@given(
    value=st.text(string.ascii_letters + string.digits + "+/_-.!%#", min_size=6, max_size=60),
    around=st.text(max_size=40),
)
def test_no_value_of_a_secret_variable_is_left(value: str, around: str) -> None:
    assert value not in redacted(f"{around}{value}{around}", {"HF_TOKEN": value})


@given(text=st.text(max_size=300))
def test_any_text_is_taken_and_twice_is_as_once(text: str) -> None:
    once = redacted(text, {})
    assert redacted(once, {}) == once


def test_json_stays_json() -> None:
    text = json.dumps({"password": CANARY, "a": [1, "token: x"], "url": f"x://u:{CANARY}@h/"})
    assert json.loads(redacted(text, {}))["password"] == HIDDEN


def test_a_line_of_a_log_has_no_secret_in_its_traceback() -> None:
    try:
        raise RuntimeError(f"postgresql://admin:{CANARY}@db")
    except RuntimeError as err:
        record = logging.LogRecord(
            "n", logging.ERROR, "f", 1, "broke with %s", (f"password={CANARY}",), (type(err), err, err.__traceback__)
        )  # fmt: skip
    line = Redacting().format(record)
    assert CANARY not in line
    assert "RuntimeError: postgresql://***@db" in line
