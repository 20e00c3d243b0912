"""What the boto3 tests share: clients, buckets of their own, errors by code."""

import datetime
import hashlib
import hmac
import os
import random
import socket
import string
import unittest
import urllib.error
import urllib.request

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

ADDRESS = os.environ["TEST_S3_ADDRESS"]
ADMIN = os.environ["TEST_ADMIN_ADDRESS"]
ENDPOINT = f"http://{ADDRESS}"
ACCESS_KEY = os.environ["TEST_ACCESS_KEY"]
SECRET_KEY = os.environ["TEST_SECRET_KEY"]
PART = 5 << 20
BOTO = tuple(int(part) for part in boto3.__version__.split(".")[:2])
#: From 1.36 on boto3 sends a checksum in a trailer with every upload, unasked.
DEFAULT_CHECKSUMS = BOTO >= (1, 36)


def client(access_key=ACCESS_KEY, secret_key=SECRET_KEY, anonymous=False, service="s3", **config):
    config.setdefault("s3", {"addressing_style": "path"})
    config.setdefault("retries", {"max_attempts": 0})
    if anonymous:
        config["signature_version"] = UNSIGNED
    return boto3.client(
        service, endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id=access_key,
        aws_secret_access_key=secret_key, config=Config(connect_timeout=10, read_timeout=60, **config))


def content(size, seed=1):
    return random.Random(seed).randbytes(size)


def md5(data):
    return hashlib.md5(data).hexdigest()


def fetch(url, method="GET", data=None, headers=None):
    """A plain HTTP request; status, headers and body, whatever the status."""
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, dict((k.lower(), v) for k, v in response.headers.items()), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict((k.lower(), v) for k, v in error.headers.items()), error.read()


def signed(method, path, headers, body, payload_hash):
    """A request signed here, for bodies that no SDK sends. `path` needs no encoding and has no query."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {**headers, "host": ADDRESS, "x-amz-date": now, "x-amz-content-sha256": payload_hash}
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = f"{method}\n{path}\n\n{lines}\n{names}\n{payload_hash}"
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + SECRET_KEY).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}")
    del headers["host"]
    return fetch(f"{ENDPOINT}{path}", method, body, headers)


class S3Test(unittest.TestCase):
    """Each test has a client and an empty bucket of its own."""

    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.s3 = client()

    def setUp(self):
        self.bucket = self.new_bucket()

    def new_bucket(self, **arguments):
        name = "t-" + "".join(random.choices(string.ascii_lowercase + string.digits, k=20))
        self.s3.create_bucket(Bucket=name, **arguments)
        self.addCleanup(self.remove_bucket, name)
        return name

    def remove_bucket(self, name):
        try:
            for upload in self.s3.list_multipart_uploads(Bucket=name).get("Uploads", []):
                self.s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
            for page in self.s3.get_paginator("list_object_versions").paginate(Bucket=name):
                for one in page.get("Versions", []) + page.get("DeleteMarkers", []):
                    self.s3.delete_object(Bucket=name, Key=one["Key"], VersionId=one["VersionId"])
            self.s3.delete_bucket(Bucket=name)
        except ClientError as error:
            # A test may have removed its bucket itself.
            if error.response["Error"]["Code"] != "NoSuchBucket":
                raise

    def put(self, key, body=b"x", **arguments):
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **arguments)

    def get(self, key, **arguments):
        return self.s3.get_object(Bucket=self.bucket, Key=key, **arguments)

    def body(self, key, **arguments):
        return self.get(key, **arguments)["Body"].read()

    def head(self, key, **arguments):
        return self.s3.head_object(Bucket=self.bucket, Key=key, **arguments)

    def keys(self, **arguments):
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket=self.bucket, **arguments).get("Contents", [])]

    def url(self, key, query=""):
        return f"{ENDPOINT}/{self.bucket}/{key}{query}"

    def assert_error(self, code, status, call, *arguments, **named):
        """`call` fails with this code (one of several, if a tuple) and status."""
        codes = code if isinstance(code, tuple) else (code,)
        with self.assertRaises(ClientError) as caught:
            call(*arguments, **named)
        response = caught.exception.response
        self.assertIn(response["Error"]["Code"], codes)
        self.assertEqual(response["ResponseMetadata"]["HTTPStatusCode"], status)
        return response

    def multipart(self, key, parts, **arguments):
        """Uploads `parts` and completes; the answer to the completion."""
        upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key=key, **arguments)["UploadId"]
        done = []
        for number, part in enumerate(parts, 1):
            etag = self.part(key, upload, number, part)["ETag"]
            done.append({"PartNumber": number, "ETag": etag})
        return self.s3.complete_multipart_upload(
            Bucket=self.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": done})

    def part(self, key, upload, number, body, **arguments):
        return self.s3.upload_part(
            Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=body, **arguments)


def raw(request):
    """Bytes to the socket, bytes back until the server closes or nothing comes for 10 s."""
    host, port = ADDRESS.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionError, TimeoutError):
            pass
        return answer
