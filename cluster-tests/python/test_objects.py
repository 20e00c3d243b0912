"""Buckets and objects: what every client does all day."""

import datetime
import hashlib
import time

from s3test import ACCESS_KEY, DEFAULT_CHECKSUMS, ENDPOINT, S3Test, client, content, fetch, md5, signed


class Buckets(S3Test):
    def test_create_head_list_location_delete(self):
        self.s3.head_bucket(Bucket=self.bucket)
        listed = self.s3.list_buckets()
        one = [bucket for bucket in listed["Buckets"] if bucket["Name"] == self.bucket]
        self.assertEqual(len(one), 1)
        self.assertLess(abs(one[0]["CreationDate"].timestamp() - time.time()), 60)
        self.assertTrue(listed["Owner"]["ID"])
        # AWS says "no constraint" for us-east-1.
        self.assertIsNone(self.s3.get_bucket_location(Bucket=self.bucket)["LocationConstraint"])
        self.s3.delete_bucket(Bucket=self.bucket)
        self.assert_error("404", 404, self.s3.head_bucket, Bucket=self.bucket)

    def test_missing_bucket(self):
        self.assert_error("NoSuchBucket", 404, self.s3.list_objects_v2, Bucket="no-such-bucket")
        self.assert_error("NoSuchBucket", 404, self.s3.delete_bucket, Bucket="no-such-bucket")
        self.assert_error("NoSuchBucket", 404, self.s3.put_object, Bucket="no-such-bucket", Key="k", Body=b"x")
        self.assert_error("NoSuchBucket", 404, self.s3.get_object, Bucket="no-such-bucket", Key="k")

    def test_bucket_that_is_not_empty_stays(self):
        self.put("k")
        self.assert_error("BucketNotEmpty", 409, self.s3.delete_bucket, Bucket=self.bucket)
        self.assertEqual(self.body("k"), b"x")

    def test_creating_an_own_bucket_again(self):
        # us-east-1 answers 200 or 409, both are AWS.
        try:
            self.s3.create_bucket(Bucket=self.bucket)
        except self.s3.exceptions.BucketAlreadyOwnedByYou:
            pass

    def test_tags_of_a_new_bucket(self):
        # Not every boto3 knows them.
        name = f"{self.bucket}-tagged"
        tag = b"<Tag><Key>a</Key><Value>b c</Value></Tag>"
        body = b"<CreateBucketConfiguration><Tags>" + tag + b"</Tags></CreateBucketConfiguration>"
        status, _, answer = signed("PUT", f"/{name}", {}, body, hashlib.sha256(body).hexdigest())
        self.assertEqual(status, 200, answer)
        self.addCleanup(self.s3.delete_bucket, Bucket=name)
        self.assertEqual(self.s3.get_bucket_tagging(Bucket=name)["TagSet"], [{"Key": "a", "Value": "b c"}])

    def test_bad_bucket_names(self):
        for name in ["ab", "Upper-case", "with_underscore", "a..b", "192.168.1.1", "-dash", "dash-", "x" * 64]:
            status, _, body = fetch(f"{ENDPOINT}/{name}?X-Anything=1", method="PUT")
            self.assertIn(status, (400, 403), name)
        no_checks = client()
        no_checks.meta.events.unregister("before-parameter-build.s3", None)
        self.assert_error("InvalidBucketName", 400, self.s3.create_bucket, Bucket="UPPER-case")

    def test_location_constraint_of_another_region(self):
        self.assert_error(
            ("IllegalLocationConstraintException", "InvalidLocationConstraint"), 400, self.s3.create_bucket,
            Bucket="elsewhere-bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})


class Objects(S3Test):
    def test_sizes_around_every_boundary_come_back_byte_for_byte(self):
        for size in [0, 1, 511, 512, 4095, 4096, 4097, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1,
                     (4 << 20) + 3, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, (33 << 20) + 5]:
            with self.subTest(size=size):
                data = content(size, size)
                answer = self.put("k", data)
                self.assertEqual(answer["ETag"], f'"{md5(data)}"')
                got = self.get("k")
                self.assertEqual(got["ContentLength"], size)
                self.assertEqual(got["ETag"], f'"{md5(data)}"')
                self.assertTrue(got["Body"].read() == data)

    def test_headers_and_metadata_come_back(self):
        expires = datetime.datetime(2031, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
        given = dict(ContentType="text/html; charset=utf-8", CacheControl="max-age=60", ContentDisposition='a; filename="x"',
                     ContentEncoding="gzip", ContentLanguage="de", Expires=expires,
                     Metadata={"colour": "blue", "empty": "", "with-dash": "a b  c"})
        self.put("k", b"data", **given)
        for answer in (self.head("k"), self.get("k")):
            for name, value in given.items():
                if name != "Expires":
                    self.assertEqual(answer[name], value, name)
            self.assertIn("2031", str(answer.get("ExpiresString") or answer.get("Expires")))
            self.assertLess(abs(answer["LastModified"].timestamp() - time.time()), 60)
            self.assertEqual(answer["AcceptRanges"], "bytes")

    def test_default_content_type(self):
        self.put("k")
        self.assertEqual(self.head("k")["ContentType"], "binary/octet-stream")

    def test_overwrite_is_read_at_once(self):
        for n in range(30):
            self.put("k", str(n).encode())
            self.assertEqual(self.body("k"), str(n).encode())
            self.assertEqual(self.keys(), ["k"])

    def test_missing_key(self):
        self.assert_error("NoSuchKey", 404, self.get, "none")
        self.assert_error("404", 404, self.head, "none")
        self.s3.delete_object(Bucket=self.bucket, Key="none")

    def test_delete(self):
        self.put("k")
        answer = self.s3.delete_object(Bucket=self.bucket, Key="k")
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 204)
        self.assert_error("NoSuchKey", 404, self.get, "k")
        self.assertEqual(self.keys(), [])

    def test_delete_many(self):
        for n in range(5):
            self.put(f"k{n}")
        objects = [{"Key": f"k{n}"} for n in range(4)] + [{"Key": "none"}]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects})
        self.assertEqual(sorted(one["Key"] for one in answer["Deleted"]), ["k0", "k1", "k2", "k3", "none"])
        self.assertEqual(self.keys(), ["k4"])
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": "k4"}], "Quiet": True})
        self.assertNotIn("Deleted", answer)
        self.assertEqual(self.keys(), [])

    def test_delete_1000_keys(self):
        objects = [{"Key": f"k{n}"} for n in range(1000)]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects})
        self.assertEqual(len(answer["Deleted"]), 1000)

    def test_response_overrides(self):
        self.put("k", ContentType="text/plain")
        answer = self.get("k", ResponseContentType="image/png", ResponseCacheControl="no-cache",
                          ResponseContentDisposition="attachment", ResponseContentEncoding="br",
                          ResponseContentLanguage="fr")
        self.assertEqual(answer["ContentType"], "image/png")
        self.assertEqual(answer["CacheControl"], "no-cache")
        self.assertEqual(answer["ContentDisposition"], "attachment")
        self.assertEqual(answer["ContentEncoding"], "br")
        self.assertEqual(answer["ContentLanguage"], "fr")

    def test_directory_markers_and_slashes(self):
        for key in ["dir/", "dir/file", "a//b", "/leading", "trailing/"]:
            self.put(key, key.encode())
        for key in ["dir/", "dir/file", "a//b", "/leading", "trailing/"]:
            self.assertEqual(self.body(key), key.encode())
        self.assertEqual(self.keys(), sorted(["dir/", "dir/file", "a//b", "/leading", "trailing/"]))

    def test_unicode_metadata_keys_and_values(self):
        key = "ключ/日本語/🦀 é+&=?#%25"
        self.put(key, b"crab")
        self.assertEqual(self.body(key), b"crab")
        self.assertEqual(self.keys(), [key])
        self.assertEqual(self.keys(Prefix="ключ/日"), [key])

    def test_key_too_long(self):
        self.put("k" * 1024)
        self.assert_error("KeyTooLongError", 400, self.put, "k" * 1025)

    def test_request_id_is_given(self):
        answer = self.put("k")
        self.assertTrue(answer["ResponseMetadata"]["RequestId"])
        error = self.assert_error("NoSuchKey", 404, self.get, "none")
        self.assertTrue(error["ResponseMetadata"]["RequestId"])

    def test_managed_transfer_of_a_file_object(self):
        import io
        data = content(20 << 20)
        self.s3.upload_fileobj(io.BytesIO(data), self.bucket, "managed")
        back = io.BytesIO()
        self.s3.download_fileobj(self.bucket, "managed", back)
        self.assertTrue(back.getvalue() == data)
        self.assertRegex(self.head("managed")["ETag"], r'^"[0-9a-f]{32}-\d+"$')

    def test_virtual_hosted_style(self):
        self.put("k", b"virtual")
        port = ENDPOINT.rsplit(":", 1)[1]
        self.s3.put_object_acl(Bucket=self.bucket, Key="k", ACL="public-read")
        status, _, body = fetch(f"{ENDPOINT}/k", headers={"Host": f"{self.bucket}.s3.localhost:{port}"})
        self.assertEqual((status, body), (200, b"virtual"))

    def test_streaming_body_of_unknown_content_is_chunk_signed(self):
        data = content(300_000)
        signed = client(s3={"addressing_style": "path", "payload_signing_enabled": True})
        signed.put_object(Bucket=self.bucket, Key="k", Body=data)
        self.assertTrue(self.body("k") == data)

    def test_default_checksums_of_current_clients(self):
        answer = self.put("k", b"data")
        if DEFAULT_CHECKSUMS:
            self.assertIn("ChecksumCRC32", answer)
        self.assertEqual(self.body("k"), b"data")

    def test_owner(self):
        self.assertTrue(ACCESS_KEY)
        self.put("k")
        one = self.s3.list_objects_v2(Bucket=self.bucket, FetchOwner=True)["Contents"][0]
        self.assertEqual(one["Owner"]["ID"], self.s3.list_buckets()["Owner"]["ID"])

    def test_what_is_not_supported_says_so(self):
        self.assert_error("NotImplemented", 501, self.s3.put_bucket_accelerate_configuration, Bucket=self.bucket,
                          AccelerateConfiguration={"Status": "Enabled"})


class Ranges(S3Test):
    def setUp(self):
        super().setUp()
        self.data = content(3_000_000)
        self.put("k", self.data)

    def test_ranges(self):
        size = len(self.data)
        for given, first, last in [
                ("bytes=0-0", 0, 0), ("bytes=0-99", 0, 99), ("bytes=65535-65536", 65535, 65536),
                ("bytes=1000000-", 1000000, size - 1), ("bytes=-1", size - 1, size - 1),
                ("bytes=-100000", size - 100000, size - 1), ("bytes=2999999-9999999", size - 1, size - 1),
                ("bytes=-9999999", 0, size - 1), ("bytes=1048570-2097160", 1048570, 2097160)]:
            with self.subTest(given=given):
                answer = self.get("k", Range=given)
                self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
                self.assertEqual(answer["ContentRange"], f"bytes {first}-{last}/{size}")
                self.assertTrue(answer["Body"].read() == self.data[first:last + 1])

    def test_unsatisfiable_range(self):
        for given in ["bytes=3000000-", "bytes=9999999-99999999", "bytes=-0"]:
            self.assert_error("InvalidRange", 416, self.get, "k", Range=given)

    def test_nonsense_ranges_are_ignored(self):
        signer = client(signature_version="s3v4")
        for given in ["bytes=5-2", "chunks=0-1", "bytes=abc"]:
            url = signer.generate_presigned_url("get_object", {"Bucket": self.bucket, "Key": "k"})
            status, _, body = fetch(url, headers={"Range": given})
            self.assertEqual(status, 200, given)
            self.assertTrue(body == self.data)

    def test_a_download_is_resumed_only_if_the_object_is_the_same(self):
        signer = client(signature_version="s3v4")
        url = signer.generate_presigned_url("get_object", {"Bucket": self.bucket, "Key": "k"})
        status, headers, _ = fetch(url)
        self.assertEqual(status, 200)
        for same in [headers["etag"], headers["last-modified"]]:
            status, _, body = fetch(url, headers={"Range": "bytes=2999990-", "If-Range": same})
            self.assertEqual((status, len(body)), (206, 10), same)
        self.put("k", b"another")
        status, _, body = fetch(url, headers={"Range": "bytes=2999990-", "If-Range": headers["etag"]})
        self.assertEqual((status, body), (200, b"another"))

    def test_nonsense_ranges_that_are_signed_are_ignored_too(self):
        for given in ["bytes=5-2", "chunks=0-1", "bytes=abc", "bytes=0-1,3-4"]:
            answer = self.get("k", Range=given)
            self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 200, given)
            self.assertTrue(answer["Body"].read() == self.data)
            self.assertEqual(self.head("k", Range=given)["ContentLength"], len(self.data))
        self.assert_error("NoSuchKey", 404, self.get, "none", Range="chunks=0-1")

    def test_range_of_an_empty_object(self):
        self.put("empty", b"")
        self.assert_error("InvalidRange", 416, self.get, "empty", Range="bytes=0-0")

    def test_head_with_range(self):
        answer = self.head("k", Range="bytes=10-19")
        self.assertEqual(answer["ContentLength"], 10)

    def test_many_random_ranges(self):
        import random
        chooser = random.Random(7)
        for _ in range(100):
            first = chooser.randrange(len(self.data))
            last = min(len(self.data) - 1, first + chooser.randrange(400_000))
            self.assertTrue(self.body("k", Range=f"bytes={first}-{last}") == self.data[first:last + 1])


class Conditions(S3Test):
    def setUp(self):
        super().setUp()
        self.etag = self.put("k", b"data")["ETag"]
        self.modified = self.head("k")["LastModified"]
        self.before = self.modified - datetime.timedelta(hours=1)
        self.after = self.modified + datetime.timedelta(hours=1)

    def test_reads(self):
        for call in (self.get, self.head):
            code = "PreconditionFailed" if call == self.get else "412"
            call("k", IfMatch=self.etag)
            call("k", IfMatch="*")
            self.assert_error(code, 412, call, "k", IfMatch='"other"')
            self.assert_error("304", 304, call, "k", IfNoneMatch=self.etag)
            call("k", IfNoneMatch='"other"')
            self.assert_error("304", 304, call, "k", IfModifiedSince=self.modified)
            call("k", IfModifiedSince=self.before)
            self.assert_error(code, 412, call, "k", IfUnmodifiedSince=self.before)
            call("k", IfUnmodifiedSince=self.after)
            # Of both kinds, the one by ETag decides.
            call("k", IfMatch=self.etag, IfUnmodifiedSince=self.before)
            self.assert_error("304", 304, call, "k", IfNoneMatch=self.etag, IfModifiedSince=self.before)

    def conditional_put(self, key, header, value, body=b"new"):
        def add(params, **_):
            params["headers"][header] = value
        self.s3.meta.events.register("before-call.s3.PutObject", add)
        try:
            return self.put(key, body)
        finally:
            self.s3.meta.events.unregister("before-call.s3.PutObject", add)

    def test_writes(self):
        self.assert_error("PreconditionFailed", 412, self.conditional_put, "k", "If-None-Match", "*")
        self.assertEqual(self.body("k"), b"data")
        self.conditional_put("fresh", "If-None-Match", "*")
        self.assertEqual(self.body("fresh"), b"new")
        self.assert_error("PreconditionFailed", 412, self.conditional_put, "k", "If-Match", '"other"')
        self.conditional_put("k", "If-Match", self.etag)
        self.assertEqual(self.body("k"), b"new")
        self.assert_error("NoSuchKey", 404, self.conditional_put, "none", "If-Match", self.etag)


class Copies(S3Test):
    def source(self, key="source"):
        return {"Bucket": self.bucket, "Key": key}

    def copy(self, key, source="source", **arguments):
        return self.s3.copy_object(Bucket=self.bucket, Key=key, CopySource=self.source(source), **arguments)

    def test_copy_keeps_content_and_metadata(self):
        data = content(2_000_000)
        etag = self.put("source", data, ContentType="text/x", Metadata={"a": "1"})["ETag"]
        answer = self.copy("copy")
        self.assertEqual(answer["CopyObjectResult"]["ETag"], etag)
        got = self.get("copy")
        self.assertEqual((got["ContentType"], got["Metadata"]), ("text/x", {"a": "1"}))
        self.assertTrue(got["Body"].read() == data)
        # The copy does not need the source.
        self.s3.delete_object(Bucket=self.bucket, Key="source")
        self.assertTrue(self.body("copy") == data)

    def test_replace_metadata(self):
        self.put("source", ContentType="text/x", Metadata={"a": "1"})
        self.copy("copy", MetadataDirective="REPLACE", Metadata={"b": "2"}, ContentType="text/y")
        got = self.head("copy")
        self.assertEqual((got["ContentType"], got["Metadata"]), ("text/y", {"b": "2"}))

    def test_copy_onto_itself(self):
        self.put("source", Metadata={"a": "1"})
        self.assert_error("InvalidRequest", 400, self.copy, "source")
        self.copy("source", MetadataDirective="REPLACE", Metadata={"b": "2"})
        self.assertEqual(self.head("source")["Metadata"], {"b": "2"})
        self.assertEqual(self.body("source"), b"x")

    def test_tagging_directive(self):
        self.put("source", Tagging="a=1")
        self.copy("kept")
        self.copy("replaced", TaggingDirective="REPLACE", Tagging="b=2")
        tags = lambda key: self.s3.get_object_tagging(Bucket=self.bucket, Key=key)["TagSet"]
        self.assertEqual(tags("kept"), [{"Key": "a", "Value": "1"}])
        self.assertEqual(tags("replaced"), [{"Key": "b", "Value": "2"}])

    def test_between_buckets_and_odd_keys(self):
        other = self.new_bucket()
        key = "odd +&%?/ключ"
        self.put(key, b"odd")
        self.s3.copy_object(Bucket=other, Key="k", CopySource=self.source(key))
        self.assertEqual(self.s3.get_object(Bucket=other, Key="k")["Body"].read(), b"odd")

    def test_conditions_on_the_source(self):
        etag = self.put("source")["ETag"]
        self.copy("copy", CopySourceIfMatch=etag)
        self.assert_error("PreconditionFailed", 412, self.copy, "copy", CopySourceIfMatch='"other"')
        self.assert_error("PreconditionFailed", 412, self.copy, "copy", CopySourceIfNoneMatch=etag)

    def test_missing_source(self):
        self.assert_error("NoSuchKey", 404, self.copy, "copy", source="none")
        self.assert_error("NoSuchBucket", 404, self.s3.copy_object, Bucket=self.bucket, Key="copy",
                          CopySource={"Bucket": "no-such-bucket", "Key": "k"})
