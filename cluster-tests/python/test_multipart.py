"""Multipart uploads and S3's rules for them."""

import hashlib
import threading

from s3test import PART, S3Test, content


class Multipart(S3Test):
    def create(self, key="k", **arguments):
        return self.s3.create_multipart_upload(Bucket=self.bucket, Key=key, **arguments)["UploadId"]

    def complete(self, upload, parts, key="k", **arguments):
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
        return self.s3.complete_multipart_upload(
            Bucket=self.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **arguments)

    def test_three_parts_and_their_etag(self):
        parts = [content(PART, 1), content(PART + 12345, 2), content(777, 3)]
        answer = self.multipart("k", parts, ContentType="text/x", Metadata={"m": "1"})
        digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
        self.assertEqual(answer["ETag"], f'"{digest}-3"')
        got = self.get("k")
        self.assertEqual((got["ETag"], got["ContentType"], got["Metadata"]), (answer["ETag"], "text/x", {"m": "1"}))
        self.assertTrue(got["Body"].read() == b"".join(parts))

    def test_ranges_over_part_boundaries(self):
        data = content(2 * PART + 100)
        self.multipart("k", [data[:PART], data[PART:2 * PART], data[2 * PART:]])
        for first, last in [(PART - 1, PART), (0, 2 * PART), (2 * PART - 5, 2 * PART + 99), (PART, 2 * PART - 1)]:
            self.assertTrue(self.body("k", Range=f"bytes={first}-{last}") == data[first:last + 1])

    def test_part_number_reads_one_part(self):
        parts = [content(PART, 1), content(99, 2)]
        self.multipart("k", parts)
        got = self.get("k", PartNumber=2)
        self.assertEqual(got["PartsCount"], 2)
        self.assertEqual(got["ContentRange"], f"bytes {PART}-{PART + 98}/{PART + 99}")
        self.assertTrue(got["Body"].read() == parts[1])
        self.assertEqual(self.head("k", PartNumber=1)["ContentLength"], PART)
        self.assert_error(("InvalidPartNumber", "InvalidPart", "InvalidRange"), 416, self.get, "k", PartNumber=3)

    def test_nothing_is_visible_before_completion_or_after_abort(self):
        upload = self.create()
        self.part("k", upload, 1, b"x")
        self.assertEqual(self.keys(), [])
        self.assert_error("NoSuchKey", 404, self.get, "k")
        self.s3.abort_multipart_upload(Bucket=self.bucket, Key="k", UploadId=upload)
        self.assert_error("NoSuchUpload", 404, self.part, "k", upload, 2, b"x")
        self.assert_error("NoSuchUpload", 404, self.s3.list_parts, Bucket=self.bucket, Key="k", UploadId=upload)

    def test_gaps_and_any_order_of_upload(self):
        upload = self.create()
        etags = {number: self.part("k", upload, number, content(PART, number))["ETag"] for number in (70, 3)}
        self.complete(upload, [(3, etags[3]), (70, etags[70])])
        self.assertTrue(self.body("k") == content(PART, 3) + content(PART, 70))

    def test_completing_again_is_answered_alike_until_the_object_is_another(self):
        upload = self.create()
        parts = [(1, self.part("k", upload, 1, b"only")["ETag"])]
        first = self.complete(upload, parts)
        self.assertEqual(self.complete(upload, parts)["ETag"], first["ETag"])
        self.put("k", b"another")
        self.assert_error("NoSuchUpload", 404, self.complete, upload, parts)
        self.assertEqual(self.body("k"), b"another")

    def test_a_part_sent_again_replaces_the_first(self):
        upload = self.create()
        old = self.part("k", upload, 1, b"old")["ETag"]
        new = self.part("k", upload, 1, b"new")["ETag"]
        self.assert_error("InvalidPart", 400, self.complete, upload, [(1, old)])
        self.complete(upload, [(1, new)])
        self.assertEqual(self.body("k"), b"new")

    def test_parts_left_out_are_not_in_the_object(self):
        upload = self.create()
        first = self.part("k", upload, 1, content(PART, 1))["ETag"]
        self.part("k", upload, 2, content(PART, 2))
        self.complete(upload, [(1, first)])
        self.assertTrue(self.body("k") == content(PART, 1))

    def test_rules_of_completion(self):
        upload = self.create()
        one = self.part("k", upload, 1, b"small")["ETag"]
        two = self.part("k", upload, 2, b"small too")["ETag"]
        self.assert_error("EntityTooSmall", 400, self.complete, upload, [(1, one), (2, two)])
        self.assert_error("InvalidPartOrder", 400, self.complete, upload, [(2, two), (1, one)])
        self.assert_error("InvalidPart", 400, self.complete, upload, [(1, one), (9, two)])
        self.assert_error("InvalidPart", 400, self.complete, upload, [(1, '"00000000000000000000000000000000"')])
        self.assert_error("MalformedXML", 400, self.complete, upload, [])
        # None of these refusals spoiled the upload.
        self.complete(upload, [(2, two)])
        self.assertEqual(self.body("k"), b"small too")

    def test_part_numbers(self):
        upload = self.create()
        for number in (0, 10001):
            self.assert_error("InvalidArgument", 400, self.part, "k", upload, number, b"x")
        etag = self.part("k", upload, 10000, b"last")["ETag"]
        self.complete(upload, [(10000, etag)])
        self.assertEqual(self.body("k"), b"last")

    def test_unknown_upload(self):
        self.assert_error("NoSuchUpload", 404, self.part, "k", "no-such-upload", 1, b"x")
        self.assert_error("NoSuchUpload", 404, self.complete, "no-such-upload", [(1, '"e"')])
        self.assert_error("NoSuchUpload", 404, self.s3.abort_multipart_upload, Bucket=self.bucket, Key="k",
                          UploadId="no-such-upload")
        upload = self.create("k")
        self.assert_error("NoSuchUpload", 404, self.part, "other-key", upload, 1, b"x")

    def test_list_parts_in_pages(self):
        upload = self.create()
        for number in (1, 2, 3, 5):
            self.part("k", upload, number, b"x" * number)
        found, marker = [], 0
        while True:
            page = self.s3.list_parts(Bucket=self.bucket, Key="k", UploadId=upload, MaxParts=2, PartNumberMarker=marker)
            found += [(part["PartNumber"], part["Size"]) for part in page["Parts"]]
            if not page["IsTruncated"]:
                break
            marker = page["NextPartNumberMarker"]
        self.assertEqual(found, [(1, 1), (2, 2), (3, 3), (5, 5)])

    def test_list_uploads(self):
        uploads = {(key, self.create(key)) for key in ("a", "a", "dir/b", "dir/c")}
        listed = self.s3.list_multipart_uploads(Bucket=self.bucket)
        self.assertEqual({(one["Key"], one["UploadId"]) for one in listed["Uploads"]}, uploads)
        grouped = self.s3.list_multipart_uploads(Bucket=self.bucket, Delimiter="/")
        self.assertEqual([one["Prefix"] for one in grouped["CommonPrefixes"]], ["dir/"])
        self.assertEqual(len(grouped["Uploads"]), 2)
        found, key_marker, id_marker = set(), "", ""
        while True:
            markers = {"KeyMarker": key_marker, "UploadIdMarker": id_marker} if key_marker else {}
            page = self.s3.list_multipart_uploads(Bucket=self.bucket, MaxUploads=1, **markers)
            found |= {(one["Key"], one["UploadId"]) for one in page["Uploads"]}
            if not page["IsTruncated"]:
                break
            key_marker, id_marker = page["NextKeyMarker"], page["NextUploadIdMarker"]
        self.assertEqual(found, uploads)

    def test_part_copy(self):
        data = content(12_000_000)
        self.put("source", data)
        upload = self.create()
        copy = lambda number, given: self.s3.upload_part_copy(
            Bucket=self.bucket, Key="k", UploadId=upload, PartNumber=number,
            CopySource={"Bucket": self.bucket, "Key": "source"}, **given)["CopyPartResult"]["ETag"]
        one = copy(1, {"CopySourceRange": "bytes=1000-6999999"})
        two = copy(2, {})
        self.assertEqual(two, f'"{hashlib.md5(data).hexdigest()}"')
        self.complete(upload, [(1, one), (2, two)])
        self.assertTrue(self.body("k") == data[1000:7_000_000] + data)

    def test_part_copy_of_a_bad_range(self):
        self.put("source", b"small")
        upload = self.create()
        self.assert_error(("InvalidArgument", "InvalidRange"), 400, self.s3.upload_part_copy, Bucket=self.bucket, Key="k",
                          UploadId=upload, PartNumber=1, CopySource={"Bucket": self.bucket, "Key": "source"},
                          CopySourceRange="bytes=0-99")

    def test_parts_sent_at_the_same_time(self):
        upload = self.create()
        etags = {}

        def send(number):
            etags[number] = self.part("k", upload, number, content(PART, number))["ETag"]
        threads = [threading.Thread(target=send, args=(number,)) for number in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.complete(upload, sorted(etags.items()))
        self.assertTrue(self.body("k") == b"".join(content(PART, number) for number in range(1, 7)))

    def test_abort_is_not_undone_by_a_late_part_and_copies_of_complete_objects_work(self):
        self.multipart("k", [content(PART, 1), b"tail"])
        self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource={"Bucket": self.bucket, "Key": "k"})
        self.assertTrue(self.body("copy") == content(PART, 1) + b"tail")

    def test_wrong_md5_of_a_part(self):
        upload = self.create()
        self.assert_error("BadDigest", 400, self.part, "k", upload, 1, b"data",
                          ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
