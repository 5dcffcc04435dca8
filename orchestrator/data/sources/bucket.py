"""A bucket of any S3-compatible store: list, ask and read; the only importer of botocore.

Credentials are found as every AWS tool finds them, in the environment and in the files of the user who asks, and are
never part of what is written down. All calls may be made from many threads.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orchestrator.data.sources.git import some_of
from orchestrator.errors import ConfigError, RequestError, nearest
from orchestrator.system.extras import installing

AT_ONCE = 32
"""Connections at the same time."""

_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
_NOT_THERE = ("NoSuchBucket", "NoSuchKey", "NoSuchVersion", "404")
_REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A prefix of a bucket and how to reach it; None stands for what AWS's own settings say."""

    bucket: str
    prefix: str
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An object as the bucket lists it; `version` is empty where it keeps none."""

    key: str
    size: int
    etag: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the store says of one object: its SHA-256, the size of its first part, and what its ETag is."""

    sha256: str | None
    first_part_bytes: int
    md5_in_etag: bool


class UnreadableError(Exception):
    """An object, or all of them, cannot be read; the text says why. `code` is the store's own, if it answered."""

    def __init__(self, why: str, *, code: str = "") -> None:
        super().__init__(why)
        self.gone, self.refused = code in _NOT_THERE, code in _REFUSED


def parse(url: str) -> tuple[str, str]:
    """Return a URL's bucket and prefix; raises ConfigError."""
    if match := _URL.fullmatch(url):
        return match[1], match[2] or ""
    raise ConfigError(f"{url!r} names no bucket", fix="write the data version's `url` as s3://bucket/prefix")


class Bucket:
    """An open bucket; raises RequestError if it cannot be reached with these settings."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client = _client(address)

    @property
    def endpoint_url(self) -> str | None:
        """Where it is, if it is not at AWS: also when only the environment said so."""
        found = str(self._client.meta.endpoint_url)
        return None if (urlsplit(found).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")) else found

    def versioned(self) -> bool:
        """Return whether the bucket keeps versions, as far as the user may know."""
        try:
            with _plain_errors():
                status = self._client.get_bucket_versioning(Bucket=self.address.bucket).get("Status")
        except UnreadableError as error:
            if not error.refused:
                raise
            return False
        return status in ("Enabled", "Suspended")

    def objects(self, prefix: str, *, versions: bool) -> Iterator[Listed]:
        """Yield the newest version of each object whose key starts with the prefix."""
        call, kind = ("list_object_versions", "Versions") if versions else ("list_objects_v2", "Contents")
        with _plain_errors():
            for page in self._client.get_paginator(call).paginate(Bucket=self.address.bucket, Prefix=prefix):
                for row in page.get(kind, ()):
                    if row.get("IsLatest", True):
                        version = str(row.get("VersionId", ""))
                        yield Listed(key=row["Key"], size=row["Size"], etag=row["ETag"].strip('"'), version=version)

    def neighbours(self, prefix: str) -> list[str]:
        """Return what lies beside a prefix, or beside the nearest one above it: keys, and prefixes with a `/`."""
        above = prefix.rstrip("/").rpartition("/")[0]
        folder = f"{above}/" if above else ""
        with _plain_errors():
            page = self._client.list_objects_v2(Bucket=self.address.bucket, Prefix=folder, Delimiter="/")
        folders = [row["Prefix"] for row in page.get("CommonPrefixes", ())]
        found = sorted(folders + [row["Key"] for row in page.get("Contents", ()) if row["Key"] != folder])
        return found if found or not above else self.neighbours(above)

    def siblings(self) -> list[str]:
        """Return the names of the user's buckets, as far as they may be listed."""
        try:
            with _plain_errors():
                return [row["Name"] for row in self._client.list_buckets().get("Buckets", ())]
        except UnreadableError:
            return []

    def ask(self, listed: Listed) -> Answer:
        with _plain_errors():
            answer = self._client.head_object(**self._named(listed.key, listed.version), ChecksumMode="ENABLED")
            encryption = str(answer.get("ServerSideEncryption", ""))
            whole = str(answer.get("ChecksumType", "FULL_OBJECT")) == "FULL_OBJECT"
            checksum = str(answer.get("ChecksumSHA256", "")) if whole else ""
            part = listed.size
            if "-" in listed.etag:
                first = self._client.head_object(**self._named(listed.key, listed.version), PartNumber=1)
                part = int(first["ContentLength"])
        return Answer(
            sha256=base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None,
            first_part_bytes=part,
            md5_in_etag=not encryption.startswith("aws:kms") and "SSECustomerAlgorithm" not in answer,
        )

    def read(self, key: str, version: str, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the object's bytes; every chunk but the last has `chunk_bytes`."""
        with _plain_errors():
            body = self._client.get_object(**self._named(key, version))["Body"]
            try:
                while chunk := body.read(chunk_bytes):
                    yield chunk
            finally:
                body.close()

    def _named(self, key: str, version: str) -> dict[str, str]:
        named = {"Bucket": self.address.bucket, "Key": key}
        return {**named, "VersionId": version} if version else named


def refusal(bucket: Bucket | None, address: Address, error: UnreadableError) -> RequestError:
    """Return the error for a bucket that cannot be read."""
    if error.gone and bucket:
        known = bucket.siblings()
        hint = nearest(address.bucket, known)
        why = f"there are {some_of(known, address.bucket)}" if known else str(error)
        return RequestError(f"there is no bucket {address.bucket!r}{hint}", why=why, fix="correct the version's `url`")
    return RequestError(
        f"{address.url} cannot be read", why=str(error), fix=f"see what it says: {listing_command(address)}"
    )


def listing_command(address: Address) -> str:
    """Return a command that shows what AWS's own program sees there."""
    options = {"--endpoint-url": address.endpoint_url, "--profile": address.profile, "--region": address.region}
    given = "".join(f" {name} {value}" for name, value in options.items() if value)
    return f"aws{given} s3 ls '{address.url}'"


def _client(address: Address) -> Any:
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ProfileNotFound
    except ImportError as error:
        what = "S3 needs a package that is not installed"
        raise RequestError(what, why=str(error), fix=installing("s3")) from error
    config = Config(
        max_pool_connections=AT_ONCE,
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 3},
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it tells in each log where it found credentials
    session = botocore.session.Session(profile=address.profile)
    try:
        region = (
            address.region or session.get_config_variable("region") or "us-east-1"
        )  # a store of one's own needs any
        return session.create_client("s3", endpoint_url=address.endpoint_url, region_name=region, config=config)
    except ProfileNotFound as error:
        known = session.available_profiles
        raise RequestError(
            f"there is no profile {address.profile!r}{nearest(address.profile or '', known)}",
            why=f"AWS's configuration has {some_of(known, address.profile or '')}" if known else str(error),
            fix="correct the data version's `profile`, or: aws configure",
        ) from error
    except (BotoCoreError, ValueError) as error:
        fix = "correct `endpoint_url`, `region` or `profile`"
        raise ConfigError(f"{address.url} cannot be reached", why=str(error), fix=fix) from error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what botocore and the network raise into UnreadableError."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        fix = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, where this runs"
        raise UnreadableError(f"no credentials: {fix}") from error
    except ClientError as error:
        code, text = str(error.response["Error"].get("Code")), str(error.response["Error"].get("Message"))
        refused = "access refused: " if code in _REFUSED else ""
        raise UnreadableError(f"{refused}{text} ({code})", code=code) from error
    except (BotoCoreError, OSError) as error:  # urllib3's errors while a body is read are botocore's, too
        raise UnreadableError(str(error)) from error
