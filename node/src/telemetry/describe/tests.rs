use std::collections::BTreeSet;
use std::path::Path;

/// The names of metrics in a source text that stand right behind one of `macros`.
fn names(text: &str, macros: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in macros.iter().flat_map(|name| text.split(name).skip(1)) {
        let quoted = part.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
        found.extend(quoted.filter(|name| name.starts_with("holdfast_")).map(str::to_owned));
    }
    found
}

fn sources(dir: &Path, texts: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            sources(&entry.path(), texts);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            texts.push(std::fs::read_to_string(entry.path()).unwrap());
        }
    }
}

#[test]
fn every_metric_has_a_help_text() {
    let node = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for dir in ["src", "storage/src", "../actors/src"] {
        sources(&node.join(dir), &mut texts);
    }
    let text = texts.concat();
    let used = names(&text, &[" counter!(", "::counter!(", "gauge!(", "histogram!("]);
    let described = names(&text, &["describe_counter!(", "describe_gauge!(", "describe_histogram!("]);
    assert!(used.len() > 50, "the search itself is broken: {used:?}");
    assert_eq!(used.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new());
    let unknown: Vec<_> = super::COUNTS_OF_TROUBLE.into_iter().filter(|name| !used.contains(*name)).collect();
    assert_eq!(unknown, Vec::<&str>::new(), "nobody counts them");
}

#[test]
fn every_metric_that_the_manuals_name_is_there() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let described = include_str!("../describe.rs").to_owned() + include_str!("../../s3/meters.rs");
    let mut named = 0;
    for manual in ["operations.md", "events.md", "tiers.md", "performance.md"] {
        let text = std::fs::read_to_string(docs.join(manual)).unwrap();
        for part in text.split("holdfast_").skip(1) {
            named += 1;
            let rest: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            // `holdfast_metadata_cache_*` means all that begin so.
            let end = if part[rest.len()..].starts_with('*') { "" } else { "\"" };
            let name = ["_bucket", "_count", "_sum"].iter().find_map(|end| rest.strip_suffix(end)).unwrap_or(&rest);
            assert!(described.contains(&format!("\"holdfast_{name}{end}")), "{manual}: holdfast_{rest}");
        }
    }
    assert!(named > 30, "the search itself is broken: {named}");
}
