"""Lifecycle rules: the API with its errors, and that they are carried out. The node's days are short: see run_tests.py."""

import datetime
import time

from s3test import S3Test, client

#: Longer than anything takes on a loaded machine.
PATIENCE_SECONDS = 120
DAYS = {"Expiration": {"Days": 1}}


def rule(**fields):
    return {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": ""}, **fields}


class Lifecycle(S3Test):
    def configure(self, *rules, bucket=None):
        return self.s3.put_bucket_lifecycle_configuration(
            Bucket=bucket or self.bucket, LifecycleConfiguration={"Rules": list(rules)})

    def configured(self):
        return self.s3.get_bucket_lifecycle_configuration(Bucket=self.bucket)["Rules"]

    def refused(self, code, *rules):
        return self.assert_error(code, 400, self.configure, *rules)

    def eventually(self, what, holds):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            self.assertLess(time.monotonic(), deadline, f"{what} does not come true")
            time.sleep(0.2)

    def versions(self):
        listed = self.s3.list_object_versions(Bucket=self.bucket)
        return listed.get("Versions", []), listed.get("DeleteMarkers", [])

    def test_rules_come_back_as_they_were_put(self):
        self.assert_error("NoSuchLifecycleConfiguration", 404, self.configured)
        midnight = datetime.datetime(2040, 2, 29, tzinfo=datetime.timezone.utc)
        rules = [
            {"ID": "prefix", "Status": "Disabled", "Prefix": "old/", "Expiration": {"Date": midnight}},
            {"ID": "single", "Status": "Enabled", "Filter": {"Tag": {"Key": "k", "Value": "v"}},
             "Expiration": {"Days": 7}},
            {"ID": "and", "Status": "Enabled",
             "Filter": {"And": {"Prefix": "p/", "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}],
                                "ObjectSizeGreaterThan": 10, "ObjectSizeLessThan": 1 << 40}},
             "NoncurrentVersionExpiration": {"NoncurrentDays": 3, "NewerNoncurrentVersions": 100}},
            {"ID": "markers", "Status": "Enabled", "Filter": {"Prefix": ""},
             "Expiration": {"ExpiredObjectDeleteMarker": True},
             "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 4}},
        ]
        self.configure(*rules)
        self.assertEqual(self.configured(), rules)
        self.s3.delete_bucket_lifecycle(Bucket=self.bucket)
        self.assert_error("NoSuchLifecycleConfiguration", 404, self.configured)
        self.s3.delete_bucket_lifecycle(Bucket=self.bucket)

    def test_the_limits_of_s3(self):
        self.configure(*[rule(ID=str(number), **DAYS) for number in range(1000)])
        self.assertEqual(len(self.configured()), 1000)
        self.refused("MalformedXML", *[rule(ID=str(number), **DAYS) for number in range(1001)])
        self.configure(rule(ID="x" * 255, **DAYS))
        self.refused("InvalidArgument", rule(ID="x" * 256, **DAYS))
        self.refused("InvalidArgument", rule(**DAYS), rule(**DAYS))
        self.refused("MalformedXML", rule(**{"Status": "Maybe"}, **DAYS))
        self.refused("MalformedXML", {"ID": "a", "Status": "Enabled", **DAYS})
        self.refused("InvalidRequest", rule())
        self.refused("InvalidArgument", rule(Expiration={"Days": 0}))
        noon = datetime.datetime(2040, 2, 29, 12, tzinfo=datetime.timezone.utc)
        self.refused("InvalidArgument", rule(Expiration={"Date": noon}))
        midnight = noon.replace(hour=0)
        self.refused("MalformedXML", rule(Expiration={"Date": midnight, "Days": 1}))
        self.refused("MalformedXML", rule(Expiration={"Days": 1, "ExpiredObjectDeleteMarker": True}))
        tag = {"Filter": {"Tag": {"Key": "k", "Value": "v"}}}
        self.refused("InvalidRequest", rule(**tag, Expiration={"ExpiredObjectDeleteMarker": True}))
        self.refused("InvalidRequest", rule(**tag, AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}))
        self.refused("InvalidArgument", rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 0}))
        for expiration in [{"NoncurrentDays": 0}, {"NoncurrentDays": 1, "NewerNoncurrentVersions": 0},
                           {"NoncurrentDays": 1, "NewerNoncurrentVersions": 101}]:
            self.refused("InvalidArgument", rule(NoncurrentVersionExpiration=expiration))
        sizes = {"Filter": {"And": {"ObjectSizeGreaterThan": 5, "ObjectSizeLessThan": 5}}}
        self.refused("InvalidRequest", rule(**sizes, **DAYS))
        self.assertEqual(self.configured()[0]["ID"], "x" * 255, "what was refused changed nothing")

    def test_there_is_no_cold_tier(self):
        for moves in [{"Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]},
                      {"NoncurrentVersionTransitions": [{"NoncurrentDays": 1, "StorageClass": "GLACIER"}]}]:
            response = self.refused("InvalidStorageClass", rule(**DAYS, **moves))
            self.assertIn("STANDARD", response["Error"]["Message"])

    def test_only_who_may_configures(self):
        anonymous = client(anonymous=True)
        self.assert_error("AccessDenied", 403, anonymous.get_bucket_lifecycle_configuration, Bucket=self.bucket)
        self.assert_error("AccessDenied", 403, anonymous.delete_bucket_lifecycle, Bucket=self.bucket)
        self.assert_error("NoSuchBucket", 404, self.configure, rule(**DAYS), bucket="t-no-such-bucket")

    def test_answers_tell_when_an_object_expires(self):
        midnight = datetime.datetime(2040, 2, 29, tzinfo=datetime.timezone.utc)
        self.configure(rule(ID="leap day", Filter={"Prefix": "a"}, Expiration={"Date": midnight}))
        told = 'expiry-date="Wed, 29 Feb 2040 00:00:00 GMT", rule-id="leap%20day"'
        self.assertEqual(self.put("a")["Expiration"], told)
        self.assertEqual(self.head("a")["Expiration"], told)
        self.assertEqual(self.get("a")["Expiration"], told)
        copied = self.s3.copy_object(Bucket=self.bucket, Key="aa", CopySource=f"{self.bucket}/a")
        self.assertEqual(copied["Expiration"], told)
        self.assertEqual(self.multipart("aaa", [b"x"])["Expiration"], told)
        self.assertNotIn("Expiration", self.put("b"))
        self.assertNotIn("Expiration", self.head("b"))

    def test_an_object_disappears_and_another_stays(self):
        self.put("gone/a")
        self.put("gone/tagged", Tagging="keep=yes")
        self.put("stays")
        self.configure(rule(ID="short", Filter={"Prefix": "gone/a"}, **DAYS),
                       rule(ID="tag", Filter={"Tag": {"Key": "keep", "Value": "no"}}, **DAYS))
        self.eventually("gone/a is gone", lambda: self.keys() == ["gone/tagged", "stays"])
        self.assert_error("NoSuchKey", 404, self.get, "gone/a")
        # Its time has passed; with these tags it is due at once.
        self.s3.put_object_tagging(
            Bucket=self.bucket, Key="gone/tagged", Tagging={"TagSet": [{"Key": "keep", "Value": "no"}]})
        self.eventually("gone/tagged is gone", lambda: self.keys() == ["stays"])

    def test_a_versioned_object_gets_a_marker_and_all_goes_in_the_end(self):
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})
        version = self.put("k", b"kept")["VersionId"]
        self.configure(rule(**DAYS))
        self.eventually("a marker hides it", lambda: self.keys() == [])
        versions, markers = self.versions()
        self.assertEqual([one["VersionId"] for one in versions], [version])
        self.assertEqual([one["IsLatest"] for one in markers], [True])
        self.assertEqual(self.body("k", VersionId=version), b"kept")
        self.configure(rule(ID="old", NoncurrentVersionExpiration={"NoncurrentDays": 1}),
                       rule(ID="markers", Expiration={"ExpiredObjectDeleteMarker": True}))
        self.eventually("nothing is left", lambda: self.versions() == ([], []))

    def test_an_unfinished_upload_is_aborted(self):
        upload = self.s3.create_multipart_upload(Bucket=self.bucket, Key="k")["UploadId"]
        self.part("k", upload, 1, b"x")
        self.configure(rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}))
        self.eventually("the upload is aborted",
                        lambda: not self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads"))
        self.assert_error("NoSuchUpload", 404, self.part, "k", upload, 2, b"y")
