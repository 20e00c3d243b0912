"""Who may do what: signatures, presigned URLs, POST forms, policies, ACLs, CORS, tags."""

import base64
import datetime
import hashlib
import hmac
import json
import time
import urllib.parse

from s3test import ACCESS_KEY, ADDRESS, ENDPOINT, SECRET_KEY, S3Test, client, content, fetch, raw


def form(fields, file, name="f"):
    """A multipart/form-data body and its content type."""
    boundary = "holdfast-test-boundary"
    body = b""
    for key, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
    body += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'.encode()
    body += b"Content-Type: application/octet-stream\r\n\r\n" + file + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


class Signatures(S3Test):
    def test_wrong_secret_and_unknown_key(self):
        wrong = client(secret_key="wrong")
        self.assert_error("SignatureDoesNotMatch", 403, wrong.list_objects_v2, Bucket=self.bucket)
        unknown = client(access_key="HFUNKNOWN00000000000")
        self.assert_error("InvalidAccessKeyId", 403, unknown.list_objects_v2, Bucket=self.bucket)

    def test_anonymous_is_refused(self):
        anonymous = client(anonymous=True)
        self.put("k")
        self.assert_error("AccessDenied", 403, anonymous.get_object, Bucket=self.bucket, Key="k")
        self.assert_error("AccessDenied", 403, anonymous.put_object, Bucket=self.bucket, Key="k", Body=b"no")
        self.assert_error("AccessDenied", 403, anonymous.list_buckets)
        self.assertEqual(self.body("k"), b"x")

    def test_another_region_in_the_scope(self):
        import boto3
        from botocore.config import Config
        other = boto3.client("s3", endpoint_url=ENDPOINT, region_name="eu-west-1", aws_access_key_id=ACCESS_KEY,
                             aws_secret_access_key=SECRET_KEY,
                             config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}))
        # Either taken, as many S3 servers do, or refused with AWS's code; never another error.
        try:
            other.list_objects_v2(Bucket=self.bucket)
        except other.exceptions.ClientError as error:
            self.assertEqual(error.response["Error"]["Code"], "AuthorizationHeaderMalformed")


class Presigned(S3Test):
    def presign(self, operation, seconds=300, **arguments):
        return self.s3.generate_presigned_url(operation, ExpiresIn=seconds,
                                              Params={"Bucket": self.bucket, "Key": "k", **arguments})

    def v4(self):
        return client(signature_version="s3v4")

    def setUp(self):
        super().setUp()
        self.s3 = self.v4()

    def test_get_put_head_delete(self):
        status, _, _ = fetch(self.presign("put_object"), "PUT", b"by url")
        self.assertEqual(status, 200)
        self.assertEqual(self.body("k"), b"by url")
        self.assertEqual(fetch(self.presign("get_object"))[::2], (200, b"by url"))
        self.assertEqual(fetch(self.presign("head_object"), "HEAD")[0], 200)
        self.assertEqual(fetch(self.presign("delete_object"), "DELETE")[0], 204)
        self.assert_error("NoSuchKey", 404, self.get, "k")

    def test_replayed_while_valid_and_refused_after(self):
        self.put("k")
        begun = time.monotonic()
        url = self.presign("get_object", seconds=6)
        for _ in range(2):
            status = fetch(url)[0]
            # The stamp is cut to whole seconds. A machine that stands still may let it expire meanwhile.
            self.assertTrue(status == 200 or time.monotonic() - begun > 4, status)
        deadline = time.monotonic() + 30
        while (answer := fetch(url))[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        self.assertEqual(answer[0], 403)
        self.assertIn(b"expired", answer[2].lower())

    def test_a_url_is_good_for_its_method_key_and_parameters_only(self):
        self.put("k")
        self.put("other")
        url = self.presign("get_object")
        self.assertEqual(fetch(url, "DELETE")[0], 403)
        self.assertEqual(fetch(url.replace("/k?", "/other?"))[0], 403)
        self.assertEqual(fetch(url + "&versionId=x")[0], 403)
        self.assertEqual(fetch(url.replace("X-Amz-Expires=300", "X-Amz-Expires=3000"))[0], 403)
        self.assertEqual(self.body("k"), b"x")

    def test_response_overrides_are_signed(self):
        self.put("k")
        status, headers, _ = fetch(self.presign("get_object", ResponseContentType="text/css"))
        self.assertEqual((status, headers["content-type"]), (200, "text/css"))

    def test_signed_headers_have_to_be_sent(self):
        url = self.presign("put_object", ContentType="text/plain")
        self.assertEqual(fetch(url, "PUT", b"x", {"Content-Type": "text/html"})[0], 403)
        self.assertEqual(fetch(url, "PUT", b"x", {"Content-Type": "text/plain"})[0], 200)

    def test_headers_that_a_url_carries_count(self):
        # As SDKs for JavaScript and Go sign them, with the checksum of an empty body.
        from botocore.auth import S3SigV4QueryAuth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
        request = AWSRequest("PUT", url=f"{ENDPOINT}/{self.bucket}/hoisted", params={
            "x-amz-acl": "public-read", "x-amz-meta-colour": "blue green", "x-amz-tagging": "a=b",
            "x-amz-checksum-crc32": "AAAAAA==", "x-amz-sdk-checksum-algorithm": "CRC32"})
        S3SigV4QueryAuth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1", expires=300).add_auth(request)
        status, _, body = fetch(request.url, "PUT", b"by url")
        self.assertEqual(status, 200, body)
        self.assertEqual(fetch(f"{ENDPOINT}/{self.bucket}/hoisted")[::2], (200, b"by url"))
        self.assertEqual(self.head("hoisted")["Metadata"], {"colour": "blue green"})
        self.assertEqual(self.get("hoisted")["TagCount"], 1)

    def test_more_than_a_week_is_refused(self):
        self.put("k")
        status, _, body = fetch(self.presign("get_object", seconds=604801))
        self.assertIn(status, (400, 403), body)


class PostForms(S3Test):
    def fields(self, key, conditions=(), seconds=300, bucket=True):
        now = datetime.datetime.now(datetime.timezone.utc)
        day, stamp = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        scope = f"{day}/us-east-1/s3/aws4_request"
        fields = {"key": key, "x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-credential": f"{ACCESS_KEY}/{scope}",
                  "x-amz-date": stamp}
        policy = {"expiration": (now + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                  "conditions": [*[{"bucket": self.bucket}][:bucket], ["starts-with", "$key", key.split("$")[0][:3]],
                                 *[{name: fields[name]} for name in fields if name != "key"], *conditions]}
        encoded = base64.b64encode(json.dumps(policy).encode()).decode()
        secret = ("AWS4" + SECRET_KEY).encode()
        for part in scope.split("/"):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        fields["policy"] = encoded
        fields["x-amz-signature"] = hmac.new(secret, encoded.encode(), hashlib.sha256).hexdigest()
        return fields

    def post(self, fields, file):
        body, kind = form(fields, file, "name.txt")
        return fetch(f"{ENDPOINT}/{self.bucket}", "POST", body, {"Content-Type": kind})

    def test_upload(self):
        data = content(300_000)
        status, _, body = self.post(self.fields("forms/a"), data)
        self.assertEqual(status, 204, body)
        self.assertTrue(self.body("forms/a") == data)

    def test_file_name_and_success_status(self):
        extra = {"success_action_status": "201", "Content-Type": "text/plain"}
        fields = self.fields("for/${filename}", [{"success_action_status": "201"}, {"Content-Type": "text/plain"}])
        status, _, body = self.post({**fields, **extra}, b"x")
        self.assertEqual(status, 201, body)
        self.assertIn(b"<Key>for/name.txt</Key>", body)
        self.assertEqual(self.head("for/name.txt")["ContentType"], "text/plain")

    def test_refusals(self):
        good = self.fields("forms/a", [["content-length-range", 1, 10]])
        self.assertEqual(self.post({**good, "x-amz-signature": "0" * 64}, b"x")[0], 403)
        self.assertEqual(self.post({**good, "key": "elsewhere"}, b"x")[0], 403)
        status, _, body = self.post(good, b"x" * 11)
        self.assertEqual(status, 400)
        self.assertIn(b"EntityTooLarge", body)
        status, _, body = self.post(good, b"")
        self.assertIn(b"EntityTooSmall", body)
        self.assertEqual(self.post(self.fields("forms/a", seconds=-10), b"x")[0], 403)
        self.assertEqual(self.post(self.fields("forms/a", bucket=False), b"x")[0], 403, "it is for any bucket")
        self.assertEqual(self.keys(), [])
        self.assertEqual(self.post(good, b"x")[0], 204)

    def test_boto3_makes_forms(self):
        post = client(signature_version="s3v4").generate_presigned_post(self.bucket, "boto/key")
        body, kind = form(post["fields"], b"posted")
        status, _, answer = fetch(post["url"], "POST", body, {"Content-Type": kind})
        self.assertEqual(status, 204, answer)
        self.assertEqual(self.body("boto/key"), b"posted")


class Policies(S3Test):
    def allow(self, actions, resource="/*", principal="*", effect="Allow", **more):
        statement = {"Effect": effect, "Principal": principal, "Action": actions,
                     "Resource": f"arn:aws:s3:::{self.bucket}{resource}", **more}
        self.s3.put_bucket_policy(Bucket=self.bucket,
                                  Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))

    def setUp(self):
        super().setUp()
        self.put("public/k", b"open")
        self.put("private/k", b"closed")
        self.anonymous = client(anonymous=True)

    def test_anonymous_reads_what_is_allowed_and_no_more(self):
        self.allow("s3:GetObject", "/public/*")
        self.assertEqual(fetch(self.url("public/k"))[::2], (200, b"open"))
        self.assertEqual(fetch(self.url("private/k"))[0], 403)
        self.assertEqual(fetch(self.url("public/k"), "DELETE")[0], 403)
        self.assert_error("AccessDenied", 403, self.anonymous.list_objects_v2, Bucket=self.bucket)

    def test_anonymous_lists_under_a_condition(self):
        self.allow("s3:ListBucket", "", Condition={"StringLike": {"s3:prefix": "public/*"}})
        page = self.anonymous.list_objects_v2(Bucket=self.bucket, Prefix="public/")
        self.assertEqual([one["Key"] for one in page["Contents"]], ["public/k"])
        self.assert_error("AccessDenied", 403, self.anonymous.list_objects_v2, Bucket=self.bucket, Prefix="private/")
        self.assert_error("AccessDenied", 403, self.anonymous.list_objects_v2, Bucket=self.bucket)

    def test_anonymous_writes_where_allowed(self):
        self.allow(["s3:PutObject"], "/inbox/*")
        self.anonymous.put_object(Bucket=self.bucket, Key="inbox/a", Body=b"hi")
        self.assertEqual(self.body("inbox/a"), b"hi")
        self.assert_error("AccessDenied", 403, self.anonymous.put_object, Bucket=self.bucket, Key="a", Body=b"hi")

    def test_source_address_condition(self):
        self.allow("s3:GetObject", Condition={"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}})
        self.assertEqual(fetch(self.url("public/k"))[0], 200)
        self.allow("s3:GetObject", Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}})
        self.assertEqual(fetch(self.url("public/k"))[0], 403)

    def test_deny_beats_allow(self):
        statements = [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{self.bucket}/*"},
            {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject",
             "Resource": f"arn:aws:s3:::{self.bucket}/private/*"}]
        self.s3.put_bucket_policy(Bucket=self.bucket,
                                  Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
        self.assertEqual(fetch(self.url("public/k"))[0], 200)
        self.assertEqual(fetch(self.url("private/k"))[0], 403)

    def test_get_delete_and_status(self):
        self.assert_error("NoSuchBucketPolicy", 404, self.s3.get_bucket_policy, Bucket=self.bucket)
        self.allow("s3:GetObject")
        policy = json.loads(self.s3.get_bucket_policy(Bucket=self.bucket)["Policy"])
        self.assertEqual(policy["Statement"][0]["Action"], "s3:GetObject")
        self.assertTrue(self.s3.get_bucket_policy_status(Bucket=self.bucket)["PolicyStatus"]["IsPublic"])
        self.s3.delete_bucket_policy(Bucket=self.bucket)
        self.assertEqual(fetch(self.url("public/k"))[0], 403)

    def test_bad_policies(self):
        for bad in ["not json", "{}", '{"Version":"2012-10-17","Statement":[{"Effect":"Maybe"}]}',
                    json.dumps({"Version": "2012-10-17", "Statement": [
                        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
                         "Resource": "arn:aws:s3:::another-bucket/*"}]})]:
            self.assert_error("MalformedPolicy", 400, self.s3.put_bucket_policy, Bucket=self.bucket, Policy=bad)


class Acls(S3Test):
    def test_public_read_object(self):
        self.put("k", b"open", ACL="public-read")
        self.assertEqual(fetch(self.url("k"))[::2], (200, b"open"))
        self.s3.put_object_acl(Bucket=self.bucket, Key="k", ACL="private")
        self.assertEqual(fetch(self.url("k"))[0], 403)
        self.s3.put_object_acl(Bucket=self.bucket, Key="k", ACL="public-read")
        self.assertEqual(fetch(self.url("k"))[0], 200)
        grants = self.s3.get_object_acl(Bucket=self.bucket, Key="k")["Grants"]
        self.assertIn("READ", [grant["Permission"] for grant in grants if "AllUsers" in grant["Grantee"].get("URI", "")])

    def test_public_read_bucket_lists_but_does_not_open_objects(self):
        self.put("k", b"closed")
        self.s3.put_bucket_acl(Bucket=self.bucket, ACL="public-read")
        self.assertEqual([one["Key"] for one in client(anonymous=True).list_objects_v2(Bucket=self.bucket)["Contents"]],
                         ["k"])
        self.assertEqual(fetch(self.url("k"))[0], 403)
        grants = self.s3.get_bucket_acl(Bucket=self.bucket)["Grants"]
        self.assertEqual(len(grants), 2)

    def test_acls_that_are_not_supported_are_refused(self):
        self.put("k")
        self.assert_error(("NotImplemented", "InvalidArgument"), 501, self.s3.put_object_acl, Bucket=self.bucket, Key="k",
                          ACL="public-read-write")


class Cors(S3Test):
    RULES = {"CORSRules": [{"AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["https://*.example.com"],
                            "AllowedHeaders": ["x-amz-*", "content-type"], "ExposeHeaders": ["ETag"],
                            "MaxAgeSeconds": 120}]}

    def preflight(self, origin="https://app.example.com", method="PUT", headers="content-type"):
        return fetch(self.url("k"), "OPTIONS", headers={
            "Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers})

    def test_configuration(self):
        self.assert_error("NoSuchCORSConfiguration", 404, self.s3.get_bucket_cors, Bucket=self.bucket)
        self.s3.put_bucket_cors(Bucket=self.bucket, CORSConfiguration=self.RULES)
        self.assertEqual(self.s3.get_bucket_cors(Bucket=self.bucket)["CORSRules"], self.RULES["CORSRules"])
        self.s3.delete_bucket_cors(Bucket=self.bucket)
        self.assert_error("NoSuchCORSConfiguration", 404, self.s3.get_bucket_cors, Bucket=self.bucket)

    def test_preflight(self):
        self.assertEqual(self.preflight()[0], 403)
        self.s3.put_bucket_cors(Bucket=self.bucket, CORSConfiguration=self.RULES)
        status, headers, _ = self.preflight()
        self.assertEqual(status, 200)
        self.assertEqual(headers["access-control-allow-origin"], "https://app.example.com")
        self.assertIn("PUT", headers["access-control-allow-methods"])
        self.assertIn("content-type", headers["access-control-allow-headers"].lower())
        self.assertEqual(headers["access-control-max-age"], "120")
        self.assertEqual(self.preflight(origin="https://evil.org")[0], 403)
        self.assertEqual(self.preflight(method="DELETE")[0], 403)
        self.assertEqual(self.preflight(headers="x-other")[0], 403)

    def test_actual_requests_carry_the_headers(self):
        self.s3.put_bucket_cors(Bucket=self.bucket, CORSConfiguration=self.RULES)
        self.put("k", ACL="public-read")
        _, headers, _ = fetch(self.url("k"), headers={"Origin": "https://app.example.com"})
        self.assertEqual(headers["access-control-allow-origin"], "https://app.example.com")
        self.assertIn("etag", headers["access-control-expose-headers"].lower())
        _, headers, _ = fetch(self.url("k"), headers={"Origin": "https://evil.org"})
        self.assertNotIn("access-control-allow-origin", headers)
        # Errors carry them too, or a browser cannot read the error.
        status, headers, _ = fetch(self.url("none"), headers={"Origin": "https://app.example.com"})
        self.assertGreaterEqual(status, 400)
        self.assertIn("access-control-allow-origin", headers)


class Tagging(S3Test):
    TAGS = [{"Key": "a", "Value": "1"}, {"Key": "b c", "Value": "ü+/="}]

    def tags(self, key="k", **arguments):
        answer = self.s3.get_object_tagging(Bucket=self.bucket, Key=key, **arguments)["TagSet"]
        return sorted(answer, key=lambda tag: tag["Key"])

    def test_object_tags(self):
        self.put("k", Tagging=urllib.parse.urlencode({"a": "1", "b c": "ü+/="}))
        self.assertEqual(self.tags(), self.TAGS)
        self.assertEqual(self.get("k")["TagCount"], 2)
        self.s3.put_object_tagging(Bucket=self.bucket, Key="k", Tagging={"TagSet": self.TAGS[:1]})
        self.assertEqual(self.tags(), self.TAGS[:1])
        self.s3.delete_object_tagging(Bucket=self.bucket, Key="k")
        self.assertEqual(self.tags(), [])
        self.assert_error("NoSuchKey", 404, self.tags, "none")

    def test_limits(self):
        self.put("k")
        put = lambda tags: self.s3.put_object_tagging(Bucket=self.bucket, Key="k", Tagging={"TagSet": tags})
        eleven = [{"Key": str(n), "Value": "v"} for n in range(11)]
        self.assert_error(("BadRequest", "InvalidTag"), 400, put, eleven)
        put(eleven[:10])
        self.assert_error("InvalidTag", 400, put, [{"Key": "k" * 129, "Value": "v"}])
        self.assert_error("InvalidTag", 400, put, [{"Key": "k", "Value": "v" * 257}])
        self.assert_error("InvalidTag", 400, put, [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}])
        self.assertEqual(len(self.tags()), 10)

    def test_bucket_tags(self):
        self.assert_error("NoSuchTagSet", 404, self.s3.get_bucket_tagging, Bucket=self.bucket)
        self.s3.put_bucket_tagging(Bucket=self.bucket, Tagging={"TagSet": self.TAGS})
        got = self.s3.get_bucket_tagging(Bucket=self.bucket)["TagSet"]
        self.assertEqual(sorted(got, key=lambda tag: tag["Key"]), self.TAGS)
        self.s3.delete_bucket_tagging(Bucket=self.bucket)
        self.assert_error("NoSuchTagSet", 404, self.s3.get_bucket_tagging, Bucket=self.bucket)


class Smuggling(S3Test):
    def test_two_content_lengths_and_both_framings_are_refused(self):
        for headers in ["Content-Length: 5\r\nContent-Length: 6\r\n",
                        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                        "Content-Length: -1\r\n", "Content-Length: 99999999999999999999\r\n"]:
            answer = raw(f"PUT /{self.bucket}/k HTTP/1.1\r\nHost: {ADDRESS}\r\n{headers}\r\nhello".encode())
            status = int(answer.split(b" ")[1]) if answer else 400
            self.assertGreaterEqual(status, 400, headers)
        self.assertEqual(self.keys(), [])
