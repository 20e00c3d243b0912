//! `holdfast bucket …`

use clap::Subcommand;
use holdfast_protocol::admin::{Bucket, NewBucket, SetStorageClass};

use super::CliResult;
use super::client::{ClientArgs, segment};
use super::output::{Output, table, timestamp};

#[derive(Subcommand)]
pub(super) enum BucketCommand {
    /// Make a bucket for a user.
    #[command(after_help = "Example:\n  holdfast bucket create photos --owner alice")]
    Create {
        /// 3 to 63 lower-case letters, digits, hyphens and dots.
        name: String,
        /// The user who owns it.
        #[arg(long, default_value = crate::assemble::ROOT_USER)]
        owner: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List buckets, of one owner or of all.
    List {
        /// Only this user's.
        #[arg(long)]
        owner: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one bucket.
    Show {
        /// The bucket.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show or set the storage class of objects that are stored without one.
    #[command(after_help = "Objects that are there stay where they are: `holdfast tier move` moves them. Examples:
  holdfast bucket storage-class photos             shows it
  holdfast bucket storage-class photos OSS
  holdfast bucket storage-class photos STANDARD    the cluster's own disks")]
    StorageClass {
        /// The bucket.
        name: String,
        /// The name of a tier, or STANDARD.
        class: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a bucket that holds no objects, older versions, delete markers or unfinished uploads.
    Delete {
        /// The bucket.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(super) async fn run(command: BucketCommand, out: Output) -> CliResult {
    match command {
        BucketCommand::Create { name, owner, client } => {
            let bucket: Bucket = client.connect()?.post("/buckets", &NewBucket { name, owner }).await?;
            out.print(&bucket, |bucket| format!("bucket {} created for {}\n", bucket.name, bucket.owner))?;
        }
        BucketCommand::List { owner, client } => {
            let buckets: Vec<Bucket> = client.connect()?.list("/buckets", owner.as_deref()).await?;
            out.print(&buckets, |buckets| rows(buckets))?;
        }
        BucketCommand::Show { name, client } => {
            let bucket: Bucket = client.connect()?.get(&format!("/buckets/{}", segment(&name))).await?;
            out.print(&bucket, |bucket| rows(std::slice::from_ref(bucket)))?;
        }
        BucketCommand::StorageClass { name, class, client } => {
            let api = client.connect()?;
            let path = format!("/buckets/{}", segment(&name));
            let bucket: Bucket = match class {
                None => api.get(&path).await?,
                Some(class) => api.put(&format!("{path}/storage-class"), &SetStorageClass { class }).await?,
            };
            let class = serde_json::json!({ "bucket": bucket.name, "storage_class": bucket.storage_class });
            out.print(&class, |_| format!("{}\n", bucket.storage_class))?;
        }
        BucketCommand::Delete { name, client } => {
            client.connect()?.delete(&format!("/buckets/{}", segment(&name))).await?;
            out.print(&serde_json::json!({ "deleted": name }), |_| format!("bucket {name} deleted\n"))?;
        }
    }
    Ok(())
}

fn rows(buckets: &[Bucket]) -> String {
    let row = |bucket: &Bucket| {
        [
            bucket.name.clone(),
            bucket.owner.clone(),
            bucket.versioning.clone(),
            bucket.storage_class.clone(),
            timestamp(bucket.created_ms),
            bucket.configured.join(","),
        ]
    };
    table(["NAME", "OWNER", "VERSIONING", "CLASS", "CREATED", "CONFIGURED"], buckets.iter().map(row))
}
