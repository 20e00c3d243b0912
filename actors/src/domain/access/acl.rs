//! Canned ACLs: `private` and `public-read`.
//!
//! Holdfast knows no other grants; bucket policies express the rest. ACLs are read and written in S3's form all the
//! same: a list of grants that is exactly what a canned ACL stands for is taken as that ACL.

use crate::ports::metadata::CannedAcl;

/// The group that stands for everybody, also anonymous callers.
pub const ALL_USERS_URI: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

/// Why an ACL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// S3 knows it, Holdfast does not.
    #[error("the ACL {0:?} is not supported; use private, public-read or a bucket policy")]
    NotSupported(String),
    /// Nobody knows it.
    #[error("{0:?} is not a canned ACL")]
    Unknown(String),
    /// Grants beyond what a canned ACL stands for.
    #[error(
        "these grants are not supported: only those of the canned ACLs private and public-read are; use a bucket policy"
    )]
    Grants,
}

/// Who is granted something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grantee<'a> {
    /// A user, by name.
    User(&'a str),
    /// Everybody.
    AllUsers,
}

/// What is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Everything.
    FullControl,
    /// Listing a bucket, reading an object.
    Read,
}

/// The ACL that the header `x-amz-acl` names.
///
/// # Errors
/// [`AclError::NotSupported`], [`AclError::Unknown`].
pub fn from_canned_name(name: &str) -> Result<CannedAcl, AclError> {
    match name {
        "private" => Ok(CannedAcl::Private),
        "public-read" => Ok(CannedAcl::PublicRead),
        // The owner of a bucket always has full control of the objects in it, so these add nothing to `private`.
        "bucket-owner-full-control" | "bucket-owner-read" => Ok(CannedAcl::Private),
        "public-read-write" | "authenticated-read" | "aws-exec-read" | "log-delivery-write" => {
            Err(AclError::NotSupported(name.to_owned()))
        }
        _ => Err(AclError::Unknown(name.to_owned())),
    }
}

/// The canned ACL that stands for these grants.
///
/// # Errors
/// [`AclError::Grants`] if there is none.
pub fn from_grants(owner: &str, grants: &[(Grantee<'_>, Permission)]) -> Result<CannedAcl, AclError> {
    let mut acl = CannedAcl::Private;
    for (grantee, permission) in grants {
        match (grantee, permission) {
            // The owner's right to read is part of full control.
            (Grantee::User(user), _) if *user == owner => {}
            (Grantee::AllUsers, Permission::Read) => acl = CannedAcl::PublicRead,
            _ => return Err(AclError::Grants),
        }
    }
    Ok(acl)
}

/// The grants that a canned ACL stands for.
pub fn grants(acl: CannedAcl, owner: &str) -> Vec<(Grantee<'_>, Permission)> {
    let mut grants = vec![(Grantee::User(owner), Permission::FullControl)];
    if acl == CannedAcl::PublicRead {
        grants.push((Grantee::AllUsers, Permission::Read));
    }
    grants
}

/// Whether a bucket's ACL lets everybody perform an action on the bucket.
pub fn bucket_acl_allows(acl: CannedAcl, action: &str) -> bool {
    acl == CannedAcl::PublicRead
        && matches!(action, "s3:ListBucket" | "s3:ListBucketVersions" | "s3:ListBucketMultipartUploads")
}

/// Whether some object's ACL could let everybody perform an action: only then need the object be looked up.
pub fn object_acl_may_allow(action: &str) -> bool {
    matches!(action, "s3:GetObject" | "s3:GetObjectVersion")
}

/// Whether an object's ACL lets everybody perform an action on the object.
pub fn object_acl_allows(acl: CannedAcl, action: &str) -> bool {
    acl == CannedAcl::PublicRead && object_acl_may_allow(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_of_a_canned_acl_are_read_back_as_it() {
        for acl in [CannedAcl::Private, CannedAcl::PublicRead] {
            assert_eq!(from_grants("ann", &grants(acl, "ann")), Ok(acl));
        }
        assert_eq!(from_grants("ann", &[]), Ok(CannedAcl::Private));
    }

    #[test]
    fn other_grants_are_refused_and_not_ignored() {
        for grant in [
            (Grantee::User("bob"), Permission::Read),
            (Grantee::User("bob"), Permission::FullControl),
            (Grantee::AllUsers, Permission::FullControl),
        ] {
            assert_eq!(from_grants("ann", &[grant]), Err(AclError::Grants));
        }
    }

    #[test]
    fn canned_names_are_taken_refused_or_unknown() {
        assert_eq!(from_canned_name("public-read"), Ok(CannedAcl::PublicRead));
        assert_eq!(from_canned_name("bucket-owner-full-control"), Ok(CannedAcl::Private));
        assert!(matches!(from_canned_name("public-read-write"), Err(AclError::NotSupported(_))));
        assert!(matches!(from_canned_name("Private"), Err(AclError::Unknown(_))));
    }

    #[test]
    fn public_read_allows_reading_and_nothing_else() {
        assert!(bucket_acl_allows(CannedAcl::PublicRead, "s3:ListBucket"));
        assert!(!bucket_acl_allows(CannedAcl::PublicRead, "s3:GetObject"), "a public bucket's objects stay private");
        assert!(!bucket_acl_allows(CannedAcl::Private, "s3:ListBucket"));
        assert!(object_acl_allows(CannedAcl::PublicRead, "s3:GetObject"));
        assert!(!object_acl_allows(CannedAcl::PublicRead, "s3:GetObjectAcl"));
        assert!(!object_acl_allows(CannedAcl::Private, "s3:GetObject"));
    }
}
