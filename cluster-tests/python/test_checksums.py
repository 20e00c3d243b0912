"""Checksums: sent in headers and trailers, compared, kept, given back."""

import base64
import hashlib
import zlib

from s3test import BOTO, PART, S3Test, content, md5, signed


def crc(polynomial, bits, data):
    """A reflected CRC by the definition, so that no library's bug can hide; slow, for small data."""
    value = mask = (1 << bits) - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
    return base64.b64encode((value ^ mask).to_bytes(bits // 8, "big")).decode()


ALGORITHMS = {
    "CRC32": lambda data: base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode(),
    "CRC32C": lambda data: crc(0x82F63B78, 32, data),
    "CRC64NVME": lambda data: crc(0x9A6C9329AC4BC9B5, 64, data),
    "SHA1": lambda data: base64.b64encode(hashlib.sha1(data).digest()).decode(),
    "SHA256": lambda data: base64.b64encode(hashlib.sha256(data).digest()).decode(),
}
#: Older SDKs do not know the newest one.
KNOWN = [name for name in ALGORITHMS if name != "CRC64NVME" or BOTO >= (1, 36)]


class Checksums(S3Test):
    def test_the_definitions_here_are_right(self):
        self.assertEqual(base64.b64decode(ALGORITHMS["CRC32C"](b"123456789")).hex(), "e3069283")
        self.assertEqual(base64.b64decode(ALGORITHMS["CRC64NVME"](b"123456789")).hex(), "ae8b14860a799888")

    def test_values_in_headers_are_compared_kept_and_given_back(self):
        data = content(5000)
        for name in KNOWN:
            with self.subTest(algorithm=name):
                field, value = f"Checksum{name}", ALGORITHMS[name](data)
                self.assertEqual(self.put("k", data, **{field: value})[field], value)
                self.assertEqual(self.head("k", ChecksumMode="ENABLED")[field], value)
                self.assertEqual(self.get("k", ChecksumMode="ENABLED")[field], value)
                self.assertNotIn(field, self.head("k"))
                wrong = ALGORITHMS[name](data + b"x")
                self.assert_error("BadDigest", 400, self.put, "bad", data, **{field: wrong})
                self.assert_error("404", 404, self.head, "bad")

    def test_values_in_trailers(self):
        # With ChecksumAlgorithm the SDK streams the body and sends the checksum behind it.
        for name in ["CRC32", "SHA1", "SHA256"]:
            with self.subTest(algorithm=name):
                data = content(200_000)
                answer = self.put("k", data, ChecksumAlgorithm=name)
                self.assertEqual(answer[f"Checksum{name}"], ALGORITHMS[name](data))
                self.assertTrue(self.body("k") == data)

    def test_a_wrong_value_in_a_trailer_is_refused(self):
        # Over plain HTTP some SDKs use a header instead, so this trailer is made by hand.
        for value, want in [(ALGORITHMS["CRC32"](b"hello"), 200), ("AAAAAA==", 400), ("nonsense", 400)]:
            body = f"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{value}\r\n\r\n".encode()
            headers = {"x-amz-trailer": "x-amz-checksum-crc32", "x-amz-decoded-content-length": "5",
                       "content-encoding": "aws-chunked"}
            status, _, text = signed("PUT", f"/{self.bucket}/trailer", headers, body, "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
            self.assertEqual(status, want, text)
        self.assertEqual(self.body("trailer"), b"hello")
        # aws-chunked is the transfer's encoding, not the object's.
        self.assertNotIn("ContentEncoding", self.head("trailer"))

    def test_a_trailer_that_is_announced_and_missing_is_refused(self):
        headers = {"x-amz-trailer": "x-amz-checksum-crc32", "x-amz-decoded-content-length": "5",
                   "content-encoding": "aws-chunked"}
        status, _, text = signed("PUT", f"/{self.bucket}/none", headers, b"5\r\nhello\r\n0\r\n\r\n",
                                 "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
        self.assertEqual(status, 400, text)
        self.assertEqual(self.keys(), [])

    def test_a_decoded_length_that_is_not_true_is_refused(self):
        value = ALGORITHMS["CRC32"](b"hello")
        for length in ("4", "6"):
            headers = {"x-amz-trailer": "x-amz-checksum-crc32", "x-amz-decoded-content-length": length,
                       "content-encoding": "aws-chunked"}
            body = f"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{value}\r\n\r\n".encode()
            status, _, text = signed("PUT", f"/{self.bucket}/none", headers, body, "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
            self.assertEqual(status, 400, text)
        self.assertEqual(self.keys(), [])

    def test_content_md5(self):
        data = b"data"
        right = base64.b64encode(hashlib.md5(data).digest()).decode()
        self.put("k", data, ContentMD5=right)
        self.assert_error("BadDigest", 400, self.put, "bad", b"other", ContentMD5=right)
        self.assert_error("InvalidDigest", 400, self.put, "bad", data, ContentMD5="not-base64!")
        self.assert_error("404", 404, self.head, "bad")

    def test_two_checksums_or_a_malformed_one(self):
        data = b"data"
        self.assert_error("InvalidRequest", 400, self.put, "k", data, ChecksumSHA1=ALGORITHMS["SHA1"](data),
                          ChecksumSHA256=ALGORITHMS["SHA256"](data))
        self.assert_error("InvalidRequest", 400, self.put, "k", data, ChecksumSHA256="AAAA")

    def test_composite_checksums_of_multipart(self):
        parts = [content(PART, 1), b"tail"]
        for name in ["SHA256", "CRC32"]:
            with self.subTest(algorithm=name):
                field = f"Checksum{name}"
                upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key="k", ChecksumAlgorithm=name)["UploadId"]
                done, raw_parts = [], b""
                for number, part in enumerate(parts, 1):
                    value = ALGORITHMS[name](part)
                    answer = self.part("k", upload, number, part, **{field: value})
                    self.assertEqual(answer[field], value)
                    raw_parts += base64.b64decode(value)
                    done.append({"PartNumber": number, "ETag": answer["ETag"], field: value})
                answer = self.s3.complete_multipart_upload(
                    Bucket=self.bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": done})
                want = f"{ALGORITHMS[name](raw_parts)}-2"
                self.assertEqual(answer[field], want)
                self.assertEqual(self.head("k", ChecksumMode="ENABLED")[field], want)

    def test_full_object_checksum_of_multipart(self):
        if BOTO < (1, 36):
            return
        parts = [content(PART, 1), b"tail"]
        upload = self.s3.create_multipart_upload(
            Bucket=self.bucket, Key="k", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")["UploadId"]
        done = []
        for number, part in enumerate(parts, 1):
            answer = self.part("k", upload, number, part, ChecksumCRC32=ALGORITHMS["CRC32"](part))
            done.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]})
        complete = lambda value: self.s3.complete_multipart_upload(
            Bucket=self.bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": done}, ChecksumCRC32=value,
            ChecksumType="FULL_OBJECT")
        self.assert_error("BadDigest", 400, complete, "AAAAAA==")
        whole = ALGORITHMS["CRC32"](b"".join(parts))
        self.assertEqual(complete(whole)["ChecksumCRC32"], whole)
        head = self.head("k", ChecksumMode="ENABLED")
        self.assertEqual((head["ChecksumCRC32"], head["ChecksumType"]), (whole, "FULL_OBJECT"))

    def test_wrong_checksum_of_a_part(self):
        upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key="k")["UploadId"]
        self.assert_error("BadDigest", 400, self.part, "k", upload, 1, b"data",
                          ChecksumSHA256=ALGORITHMS["SHA256"](b"other"))
        self.assertNotIn("Parts", self.s3.list_parts(Bucket=self.bucket, Key="k", UploadId=upload))

    def test_copies_keep_the_checksum(self):
        value = ALGORITHMS["SHA256"](b"data")
        self.put("k", b"data", ChecksumSHA256=value)
        self.s3.copy_object(Bucket=self.bucket, Key="copy", CopySource={"Bucket": self.bucket, "Key": "k"})
        self.assertEqual(self.head("copy", ChecksumMode="ENABLED")["ChecksumSHA256"], value)

    def test_attributes(self):
        value = ALGORITHMS["SHA256"](b"data")
        self.put("k", b"data", ChecksumSHA256=value)
        answer = self.s3.get_object_attributes(
            Bucket=self.bucket, Key="k", ObjectAttributes=["ETag", "Checksum", "ObjectSize", "StorageClass"])
        self.assertEqual(answer["Checksum"]["ChecksumSHA256"], value)
        self.assertEqual(answer["ObjectSize"], 4)
        # The one answer in which S3 writes it without quotes.
        self.assertEqual(answer["ETag"], md5(b"data"))
