"""Listing: V1, V2, prefixes, delimiters, pages, encodings."""

from s3test import S3Test

KEYS = ["a", "a/1", "a/2", "a/b/1", "b", "b-1", "c/1", "c/2/x", "d", "z/z/z/z"]


class Listing(S3Test):
    def setUp(self):
        super().setUp()
        for key in KEYS:
            self.put(key, key.encode())

    def both(self, **arguments):
        """The same question to V1 and V2; keys and prefixes of each."""
        for call in (self.s3.list_objects, self.s3.list_objects_v2):
            page = call(Bucket=self.bucket, **arguments)
            yield ([one["Key"] for one in page.get("Contents", [])],
                   [one["Prefix"] for one in page.get("CommonPrefixes", [])], page)

    def test_all_keys_in_byte_order(self):
        for keys, prefixes, page in self.both():
            self.assertEqual(keys, sorted(KEYS, key=str.encode))
            self.assertEqual(prefixes, [])
            self.assertFalse(page["IsTruncated"])

    def test_entries_have_size_etag_time_class(self):
        from s3test import md5
        for _, _, page in self.both():
            for one in page["Contents"]:
                self.assertEqual(one["Size"], len(one["Key"]))
                self.assertEqual(one["ETag"], f'"{md5(one["Key"].encode())}"')
                self.assertEqual(one["StorageClass"], "STANDARD")
                self.assertTrue(one["LastModified"])

    def test_prefix_and_delimiter(self):
        cases = [
            (dict(Delimiter="/"), ["a", "b", "b-1", "d"], ["a/", "c/", "z/"]),
            (dict(Prefix="a/", Delimiter="/"), ["a/1", "a/2"], ["a/b/"]),
            (dict(Prefix="a"), ["a", "a/1", "a/2", "a/b/1"], []),
            (dict(Prefix="b"), ["b", "b-1"], []),
            (dict(Prefix="none"), [], []),
            (dict(Prefix="c/", Delimiter="x"), ["c/1"], ["c/2/x"]),
            (dict(Prefix="z/z", Delimiter="/"), [], ["z/z/"]),
        ]
        for arguments, want_keys, want_prefixes in cases:
            with self.subTest(arguments=arguments):
                for keys, prefixes, _ in self.both(**arguments):
                    self.assertEqual((keys, prefixes), (want_keys, want_prefixes))

    def test_pages_of_every_size_give_everything_once(self):
        for size in range(1, len(KEYS) + 2):
            for delimiter in (None, "/"):
                arguments = {"Delimiter": delimiter} if delimiter else {}
                whole = [(keys, prefixes) for keys, prefixes, _ in self.both(**arguments)][1]
                found, token = ([], []), None
                while True:
                    more = {"ContinuationToken": token} if token else {}
                    page = self.s3.list_objects_v2(Bucket=self.bucket, MaxKeys=size, **arguments, **more)
                    keys = [one["Key"] for one in page.get("Contents", [])]
                    prefixes = [one["Prefix"] for one in page.get("CommonPrefixes", [])]
                    self.assertEqual(page["KeyCount"], len(keys) + len(prefixes))
                    self.assertLessEqual(page["KeyCount"], size)
                    found[0].extend(keys)
                    found[1].extend(prefixes)
                    token = page.get("NextContinuationToken")
                    self.assertEqual(bool(token), page["IsTruncated"])
                    if not token:
                        break
                self.assertEqual(found, whole)

    def test_v1_markers(self):
        found, marker = [], ""
        while True:
            page = self.s3.list_objects(Bucket=self.bucket, MaxKeys=3, Marker=marker, Delimiter="/")
            found += [one["Key"] for one in page.get("Contents", [])]
            found += [one["Prefix"] for one in page.get("CommonPrefixes", [])]
            if not page["IsTruncated"]:
                break
            marker = page["NextMarker"]
        self.assertEqual(sorted(found), sorted(["a", "b", "b-1", "d", "a/", "c/", "z/"]))

    def test_start_after(self):
        self.assertEqual(self.keys(StartAfter="b"), ["b-1", "c/1", "c/2/x", "d", "z/z/z/z"])
        self.assertEqual(self.keys(StartAfter="bb", Prefix="c/"), ["c/1", "c/2/x"])
        self.assertEqual(self.keys(StartAfter="zzz"), [])

    def test_max_keys_zero(self):
        page = self.s3.list_objects_v2(Bucket=self.bucket, MaxKeys=0)
        self.assertEqual(page["KeyCount"], 0)
        self.assertFalse(page["IsTruncated"])

    def test_bad_arguments(self):
        self.assert_error("InvalidArgument", 400, self.s3.list_objects_v2, Bucket=self.bucket, MaxKeys=-1)
        self.assert_error("InvalidArgument", 400, self.s3.list_objects_v2, Bucket=self.bucket,
                          ContinuationToken="not-a-token")

    def test_deleted_keys_are_not_listed(self):
        self.s3.delete_object(Bucket=self.bucket, Key="a/1")
        for keys, _, _ in self.both(Prefix="a/"):
            self.assertEqual(keys, ["a/2", "a/b/1"])

    def test_more_than_a_page_of_1000(self):
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: self.put(f"many/{n:05}"), range(1100)))
        page = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="many/")
        self.assertEqual((page["KeyCount"], page["IsTruncated"]), (1000, True))
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="many/")
        self.assertEqual([one["Key"] for page in pages for one in page["Contents"]],
                         [f"many/{n:05}" for n in range(1100)])

    def test_url_encoding(self):
        self.put("odd/\x01 +&<>", b"x")
        page = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="odd/", EncodingType="url")
        self.assertEqual(page["EncodingType"], "url")
        self.assertIn(page["Contents"][0]["Key"], ("odd/%01+%2B%26%3C%3E", "odd/%01%20%2B%26%3C%3E"))
