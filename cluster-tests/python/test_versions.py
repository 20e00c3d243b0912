"""Versioning and delete markers."""

from s3test import S3Test


class Versioning(S3Test):
    def enable(self, status="Enabled"):
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": status})

    def versions(self, **arguments):
        page = self.s3.list_object_versions(Bucket=self.bucket, **arguments)
        return page.get("Versions", []), page.get("DeleteMarkers", [])

    def test_status(self):
        self.assertNotIn("Status", self.s3.get_bucket_versioning(Bucket=self.bucket))
        self.enable()
        self.assertEqual(self.s3.get_bucket_versioning(Bucket=self.bucket)["Status"], "Enabled")
        self.enable("Suspended")
        self.assertEqual(self.s3.get_bucket_versioning(Bucket=self.bucket)["Status"], "Suspended")

    def test_every_version_is_kept_and_read(self):
        self.enable()
        ids = [self.put("k", str(n).encode())["VersionId"] for n in range(4)]
        self.assertEqual(len(set(ids)), 4)
        self.assertEqual(self.body("k"), b"3")
        for n, version in enumerate(ids):
            self.assertEqual(self.body("k", VersionId=version), str(n).encode())
            self.assertEqual(self.head("k", VersionId=version)["VersionId"], version)
        listed, _ = self.versions()
        self.assertEqual([one["VersionId"] for one in listed], ids[::-1])
        self.assertEqual([one["IsLatest"] for one in listed], [True, False, False, False])

    def test_delete_marker_hides_and_its_deletion_shows_again(self):
        self.enable()
        version = self.put("k", b"kept")["VersionId"]
        marker = self.s3.delete_object(Bucket=self.bucket, Key="k")
        self.assertTrue(marker["DeleteMarker"])
        error = self.assert_error("NoSuchKey", 404, self.get, "k")
        headers = error["ResponseMetadata"]["HTTPHeaders"]
        self.assertEqual(headers.get("x-amz-delete-marker"), "true")
        self.assertEqual(self.keys(), [])
        self.assertEqual(self.body("k", VersionId=version), b"kept")
        self.assert_error("MethodNotAllowed", 405, self.get, "k", VersionId=marker["VersionId"])
        _, markers = self.versions()
        self.assertEqual([(one["VersionId"], one["IsLatest"]) for one in markers], [(marker["VersionId"], True)])
        gone = self.s3.delete_object(Bucket=self.bucket, Key="k", VersionId=marker["VersionId"])
        self.assertTrue(gone["DeleteMarker"])
        self.assertEqual(self.body("k"), b"kept")

    def test_deleting_the_newest_version_uncovers_the_one_before(self):
        self.enable()
        old = self.put("k", b"old")["VersionId"]
        new = self.put("k", b"new")["VersionId"]
        self.s3.delete_object(Bucket=self.bucket, Key="k", VersionId=new)
        self.assertEqual(self.body("k"), b"old")
        self.s3.delete_object(Bucket=self.bucket, Key="k", VersionId=old)
        self.assert_error("NoSuchKey", 404, self.get, "k")
        self.assertEqual(self.versions(), ([], []))

    def test_null_versions(self):
        self.put("k", b"before")
        self.enable()
        self.put("k", b"versioned")
        self.assertEqual(self.body("k", VersionId="null"), b"before")
        self.enable("Suspended")
        self.assertEqual(self.put("k", b"suspended").get("VersionId", "null"), "null")
        # The null version was replaced; the other stays.
        self.assertEqual(self.body("k"), b"suspended")
        self.assertEqual(self.body("k", VersionId="null"), b"suspended")
        listed, _ = self.versions()
        self.assertEqual(len(listed), 2)
        self.s3.delete_object(Bucket=self.bucket, Key="k")
        listed, markers = self.versions()
        self.assertEqual([one["VersionId"] for one in markers], ["null"])
        self.assertEqual(len(listed), 1)

    def test_copy_of_a_version_restores_it(self):
        self.enable()
        old = self.put("k", b"old")["VersionId"]
        self.put("k", b"new")
        answer = self.s3.copy_object(Bucket=self.bucket, Key="k",
                                     CopySource={"Bucket": self.bucket, "Key": "k", "VersionId": old})
        self.assertEqual(answer["CopySourceVersionId"], old)
        self.assertEqual(self.body("k"), b"old")
        self.assertEqual(len(self.versions()[0]), 3)

    def test_listing_of_versions_in_pages(self):
        self.enable()
        want = []
        for key in ("a", "b", "dir/c"):
            ids = [self.put(key, str(n).encode())["VersionId"] for n in range(3)]
            want += [(key, version) for version in ids[::-1]]
        for size in (1, 2, 4, 20):
            found, markers = [], {}
            while True:
                page = self.s3.list_object_versions(Bucket=self.bucket, MaxKeys=size, **markers)
                found += [(one["Key"], one["VersionId"]) for one in page.get("Versions", [])]
                if not page["IsTruncated"]:
                    break
                markers = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
            self.assertEqual(found, want)
        page = self.s3.list_object_versions(Bucket=self.bucket, Delimiter="/")
        self.assertEqual([one["Prefix"] for one in page["CommonPrefixes"]], ["dir/"])

    def test_deleting_many_versions(self):
        self.enable()
        ids = [self.put("k", str(n).encode())["VersionId"] for n in range(3)]
        objects = [{"Key": "k", "VersionId": version} for version in ids[1:]]
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects})
        self.assertEqual(len(answer["Deleted"]), 2)
        self.assertEqual(self.body("k"), b"0")
        answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": "k"}]})
        self.assertTrue(answer["Deleted"][0]["DeleteMarker"])

    def test_a_bucket_with_only_old_versions_is_not_empty(self):
        self.enable()
        self.put("k")
        self.s3.delete_object(Bucket=self.bucket, Key="k")
        self.assert_error("BucketNotEmpty", 409, self.s3.delete_bucket, Bucket=self.bucket)

    def test_unknown_versions(self):
        self.enable()
        version = self.put("k")["VersionId"]
        self.assert_error("InvalidArgument", 400, self.get, "k", VersionId="no-version-at-all!")
        self.put("other")
        self.assert_error("NoSuchVersion", 404, self.get, "other", VersionId=version)

    def test_multipart_makes_a_version(self):
        self.enable()
        answer = self.multipart("k", [b"one"])
        self.assertEqual(self.body("k", VersionId=answer["VersionId"]), b"one")
