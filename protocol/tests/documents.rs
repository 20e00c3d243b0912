//! What the documents of the repository name is there: links, headings that links lead to, and files and folders of the
//! tree.
//!
//! It stands with this crate as the one that builds fastest; it needs nothing of it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every file and folder, relative to the repository; folders end with a slash.
fn tree() -> BTreeSet<String> {
    let (root, mut found) = (root(), BTreeSet::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            if !path.is_dir() {
                found.insert(name);
            } else if !matches!(path.file_name().unwrap().to_str(), Some("target" | ".git")) {
                found.insert(format!("{name}/"));
                folders.push(path);
            }
        }
    }
    found
}

/// The documents, each with its text.
fn documents(tree: &BTreeSet<String>) -> Vec<(&str, String)> {
    let is_document = |name: &&String| name.ends_with(".md") && (!name.contains('/') || name.starts_with("docs/"));
    tree.iter().filter(is_document).map(|name| (&**name, std::fs::read_to_string(root().join(name)).unwrap())).collect()
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands between backquotes.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// What links lead to within the repository: the file, and the heading.
fn links(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let targets =
        text.match_indices("](").filter_map(|(at, _)| text[at + 2..].split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://")).map(|target| match target.split_once('#') {
        Some((file, heading)) => (file, Some(heading)),
        None => (target, None),
    })
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept =
        heading.trim_start_matches('#').trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// `from` and `to`, put together as a reader of the document `from` understands `to`.
fn beside(from: &str, to: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether a path of a document is one of the tree. `name*` stands for all whose names begin so, and a module may be
/// named without its ending.
fn is_there(tree: &BTreeSet<String>, path: &str) -> bool {
    match path.split_once('*') {
        Some((start, _)) => tree.range(start.to_owned()..).next().is_some_and(|found| found.starts_with(start)),
        None => {
            let path = path.trim_end_matches('/');
            [path.to_owned(), format!("{path}/"), format!("{path}.rs")].iter().any(|path| tree.contains(path))
        }
    }
}

#[test]
fn links_of_documents_lead_to_files_and_headings_that_are_there() {
    let tree = tree();
    let documents = documents(&tree);
    assert!(documents.iter().any(|(name, _)| *name == "README.md"), "the documents are found");
    let mut broken = Vec::new();
    for (name, text) in &documents {
        for (file, heading) in links(&prose(text)) {
            let target = if file.is_empty() { (*name).to_owned() } else { beside(name, file) };
            let leads_there = is_there(&tree, &target)
                && heading.is_none_or(|heading| {
                    let text = std::fs::read_to_string(root().join(&target)).unwrap();
                    prose(&text).lines().any(|line| line.starts_with('#') && anchor(line) == heading)
                });
            if !leads_there {
                broken.push(format!(
                    "{name}: {file}{}",
                    heading.map(|heading| format!("#{heading}")).unwrap_or_default()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn paths_that_documents_name_are_in_the_tree() {
    let tree = tree();
    let folders: Vec<&String> = tree.iter().filter(|name| name.find('/') == Some(name.len() - 1)).collect();
    let is_plain = |span: &&str| span.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-*".contains(&b));
    let (mut missing, mut seen) = (Vec::new(), 0);
    for (name, text) in documents(&tree) {
        for span in code_spans(&prose(&text)).filter(is_plain) {
            let from_the_top = folders.iter().any(|folder| span.starts_with(folder.as_str()));
            // In the descriptions of the architecture a path may be cut short at its beginning.
            let describes = matches!(name, "ARCHITECTURE.md" | "docs/internals.md");
            let cut_short = describes && span.ends_with(".rs") && !from_the_top;
            let there = (from_the_top && is_there(&tree, span))
                || (cut_short && tree.iter().any(|found| found.ends_with(&format!("/{span}"))));
            seen += usize::from(from_the_top || cut_short);
            if (from_the_top || cut_short) && !there {
                missing.push(format!("{name}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(seen > 100, "paths are recognised: {seen}");
}

#[test]
fn links_headings_and_paths_are_told_from_the_rest() {
    let text =
        "See [a](docs/a.md#two-words) and [b](https://example.com/x), `node/src` and `x`.\n```\n[c](no.md)\n```\n";
    let prose = prose(text);
    assert_eq!(links(&prose).collect::<Vec<_>>(), [("docs/a.md", Some("two-words"))]);
    assert_eq!(code_spans(&prose).collect::<Vec<_>>(), ["node/src", "x"]);
    assert_eq!(anchor("## Two words: `twice`"), "two-words-twice");
    assert_eq!(beside("docs/adr/0001.md", "../a.md"), "docs/a.md");
    let tree = BTreeSet::from(["node/".to_owned(), "node/a.rs".to_owned(), "node/ab/".to_owned()]);
    assert!(["node", "node/", "node/a", "node/a*", "node/ab/"].iter().all(|path| is_there(&tree, path)));
    assert!(["node/b", "node/b*", "nod"].iter().all(|path| !is_there(&tree, path)));
}
