"""Addresses of storages: what is taken, and that no credential is kept or shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import UserError
from core.text.redaction import redacted
from tuning.storage.address import below, checked, is_url, split_run


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/sweeps/", "s3://bucket/sweeps"),
        ("s3://b/p?endpoint_override=h:9000&scheme=http", "s3://b/p?endpoint_override=h:9000&scheme=http"),
        ("gs://bucket/p", "gs://bucket/p"),
        ("gcs://bucket/p", "gs://bucket/p"),
        ("gs://anonymous@bucket/p", "gs://anonymous@bucket/p"),
        ("file:///mnt/shared/", "/mnt/shared"),
        ("file:///mnt/with%20space", "/mnt/with space"),
        ("/mnt/a/../shared", "/mnt/shared"),
    ],
)  # fmt: skip
def test_an_address_is_kept_in_one_form(given: str, kept: str) -> None:
    assert checked(given) == kept
    assert checked(kept) == kept


def test_a_folder_is_kept_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked("shared") == str(tmp_path / "shared")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "an address is expected, got nothing"),
        ("ftp://host/x", "s3:// or gs:// .* is expected, got ftp://host/x"),
        ("s3:///x", "a bucket is expected after s3://"),
        ("file://host/x", "file:///ABSOLUTE/FOLDER is expected"),
        ("s3://KEY:canary@bucket/x", r"s3://\*\*\*@bucket/x holds credentials before the @"),
        ("s3://KEY@bucket/x", "holds credentials before the @"),
        ("s3://bucket/x?secret_key=1", "holds secret_key="),
        ("s3://bucket/x?X-Amz-Signature=1", "holds X-Amz-Signature="),
        ("az://user:canary@host/x", r"got az://\*\*\*@host/x"),
    ],
)
def test_an_address_that_is_not_taken_is_refused_without_its_secrets(given: str, said: str) -> None:
    with pytest.raises(UserError, match=f"--storage: .*{said}") as caught:
        checked(given)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("storage", "run"),
    [
        ("s3://bucket/sweeps?region=eu-west-1", "s3://bucket/sweeps/demo?region=eu-west-1"),
        ("s3://bucket", "s3://bucket/demo"),
        ("/mnt/shared", "/mnt/shared/demo"),
    ],
)
def test_a_run_lies_below_its_storage(storage: str, run: str) -> None:
    assert below(storage, "demo") == run
    assert split_run(run) == (storage, "demo")


def test_a_storage_alone_names_no_run() -> None:
    with pytest.raises(UserError, match="URL/NAME is expected"):
        split_run("s3://bucket")


def test_a_path_is_no_url() -> None:
    assert not is_url("runs/demo") and not is_url("/mnt/a:b") and is_url("s3://b/x")


def test_what_a_library_says_is_shown_without_credentials() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "canary", "AWS_SESSION_TOKEN": "", "HOME": "/root"}
    said = "cannot reach http://me:pass@host/x with canary of /root"
    shown = redacted(said, environment)
    assert shown == "cannot reach http://***@host/x with *** of /root"
    assert redacted("nothing", os.environ) == "nothing"
