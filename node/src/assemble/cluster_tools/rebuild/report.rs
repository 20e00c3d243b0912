//! What a rebuild tells.

use std::collections::BTreeSet;

use serde::Serialize;

/// What was found and made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// Chunks on this node's disks.
    pub chunks: u64,
    /// Chunks whose label cannot be read.
    pub unreadable: u64,
    /// Buckets found.
    pub buckets: u64,
    /// Object versions made, or to be made.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of them those without their MD5, since some chunk is elsewhere.
    pub without_md5: u64,
    /// Of them those that lie in a cold tier.
    pub cold: u64,
    /// Cold tiers that objects lie in or are to be moved to, which have to be added again.
    pub tiers: BTreeSet<String>,
    /// Contents older than another of the same key and version: overwritten.
    pub superseded: u64,
    /// Versions that the metadata had already.
    pub known: u64,
    /// Contents that begin on this node and end on none that was walked until now: another node has their end, or the
    /// write broke off.
    pub unended: u64,
    /// Of the objects those that came back by their end alone, without owner, headers, tags and ACL.
    pub without_head: u64,
    /// Parts that were left for another round, since what their object is to have was not found until now.
    pub waiting: u64,
    /// Multipart uploads that came back as unfinished ones, or would.
    pub uploads: u64,
    /// Their parts.
    pub parts: u64,
    /// Uploads that were completed after that, and are objects now.
    pub completed: u64,
    /// Where the database has lost commits: nodes that are to be walked, too, or once more, before orphans are given up
    /// again.
    pub unwalked: BTreeSet<String>,
    /// Whether nothing was written.
    pub dry_run: bool,
}

impl RebuildReport {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}{} objects ({} bytes) in {} buckets from {} chunks\n{} overwritten contents and {} that were known left out\n\
             {} objects have no MD5 as ETag, since some of their chunks are on other nodes\n\
             {} multipart uploads with {} parts, of which {} were completed; {} labels cannot be read\n",
            if self.dry_run { "would rebuild: " } else { "rebuilt: " },
            self.objects,
            self.bytes,
            self.buckets,
            self.chunks,
            self.superseded,
            self.known,
            self.without_md5,
            self.uploads,
            self.parts,
            self.completed,
            self.unreadable
        );
        if self.unended > 0 && self.dry_run {
            text.push_str(&format!(
                "{} contents begin here and do not end here: whether another node has their end is seen when they are rebuilt\n",
                self.unended
            ));
        } else if self.unended > 0 {
            text.push_str(&format!(
                "{} contents begin here, and end on no node that was walked until now. When all were, twice, these are writes that \
                 broke off: --unended brings them back as far as they are there, where nothing else has their name\n",
                self.unended
            ));
        }
        if self.without_head + self.waiting > 0 {
            text.push_str(&format!(
                "{} objects came back without owner, headers, tags and ACL, and {} parts wait: the nodes that were walked before this one \
                 and this one have to be walked once more, with --add\n",
                self.without_head, self.waiting
            ));
        }
        if !self.unwalked.is_empty() {
            let nodes: Vec<&str> = self.unwalked.iter().map(String::as_str).collect();
            text.push_str(&format!(
                "The database has lost commits: orphans are kept until these nodes were walked, too, or once more where parts wait: {}\n",
                nodes.join(", ")
            ));
        }
        if !self.tiers.is_empty() {
            let names: Vec<&str> = self.tiers.iter().map(String::as_str).collect();
            text.push_str(&format!(
                "{} objects lie in cold tiers. Add these tiers again with `holdfast tier add`, under the same names: {}\n",
                self.cold,
                names.join(", ")
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_elsewhere_is_called_broken_off_only_by_who_has_looked_for_it() {
        let report = RebuildReport { unended: 3, ..RebuildReport::default() };
        assert!(report.text().contains("3 contents") && report.text().contains("--unended"), "{}", report.text());
        let counted = RebuildReport { dry_run: true, ..report };
        assert!(counted.text().contains("3 contents") && !counted.text().contains("broke off"), "{}", counted.text());
        assert!(!RebuildReport::default().text().contains("contents begin"));
    }

    #[test]
    fn nodes_that_are_still_to_be_walked_are_named() {
        let nodes = BTreeSet::from(["00000000000000aa".to_owned(), "00000000000000bb".to_owned()]);
        let report = RebuildReport { unwalked: nodes, ..RebuildReport::default() };
        assert!(report.text().contains("00000000000000aa, 00000000000000bb"), "{}", report.text());
        assert!(!RebuildReport::default().text().contains("lost commits"));
    }
}
