use holdfast_protocol::fuzz::{Target, damage};

use super::*;

fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("holdfast.toml");
    std::fs::write(&file, text).unwrap();
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load(Some(&file), environment, &Overrides::default()).map(|loaded| loaded.config)
}

fn the_fault(text: &str, environment: &[(&str, &str)]) -> ConfigError {
    let mut faults = load_text(text, environment).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let text = "[s3]\naddr = \"127.0.0.1:1\"\nregion = \"file\"\n";
    let config = load_text(text, &[("HOLDFAST_S3_REGION", "env"), ("HOLDFAST_LIMITS_READ_JOBS", "7")]).unwrap();
    assert_eq!((config.s3.region.as_str(), config.s3.addr.port()), ("env", 1));
    assert_eq!((config.limits.read_jobs, config.admin.addr.port()), (7, 9001));
    let flags = Overrides { s3_addr: Some("127.0.0.1:3".parse().unwrap()), ..Overrides::default() };
    assert_eq!(apply(config, &flags).s3.addr.port(), 3);
}

#[test]
fn localhost_is_an_address_and_other_names_are_named_with_their_line() {
    let text = "[s3]\naddr = \"localhost:1\"\n[cluster]\npeer_addr = \"localhost:2\"\n";
    let config = load_text(text, &[("HOLDFAST_ADMIN_ADDR", "localhost:3")]).unwrap();
    assert_eq!(config.s3.addr.to_string(), "127.0.0.1:1");
    assert_eq!(config.cluster.peer_addr.to_string(), "127.0.0.1:2");
    assert_eq!(config.admin.addr.to_string(), "127.0.0.1:3");
    let fault = the_fault("[s3]\n\naddr = \"node1:9000\"\n", &[]);
    assert_eq!(fault.position.unwrap().0, 3, "{fault}");
    assert!(fault.message.contains("node1:9000"), "{fault}");
}

#[test]
fn lists_and_aliases_come_from_the_environment() {
    let config = load_text(
        "",
        &[("HOLDFAST_NODE_DISKS", "/a, /b"), ("HOLDFAST_DATA_DIR", "/data"), ("HOLDFAST_ACCESS_KEY", "x")],
    )
    .unwrap();
    assert_eq!(config.node.disks, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(config.node.data_dir, PathBuf::from("/data"));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
    let fault = the_fault("[s3]\nregion = \"x\"\nadr = \"127.0.0.1:9000\"\n", &[]);
    assert_eq!(fault.position, Some((3, 1)));
    assert_eq!(fault.hint.unwrap(), "did you mean `addr`?");
}

#[test]
fn a_wrong_unit_is_named_with_its_line() {
    let fault = the_fault("[limits]\n\nqueue_wait = \"10 parsec\"\n", &[]);
    assert_eq!(fault.position.unwrap().0, 3);
    assert!(fault.message.contains("10 parsec"), "{fault}");
}

#[test]
fn a_level_with_a_slip_of_the_pen_does_not_silence_the_log() {
    for wrong in ["warning", "inf", "info,holdfast_storage", "a=loud"] {
        let fault = the_fault(&format!("[log]\n\nlevel = \"{wrong}\"\n"), &[]);
        assert_eq!(fault.position.map(|(line, _)| line), Some(3), "{wrong}: {fault}");
    }
    for right in ["off", "WARN", "info,holdfast_storage=debug", "warn,holdfast=info", "info,[s3_request]=trace"] {
        assert!(load_text("", &[("HOLDFAST_LOG_LEVEL", right)]).is_ok(), "{right}");
    }
}

#[test]
fn a_value_of_another_type_is_told_how_to_be_written() {
    for (text, hint) in [
        ("[limits]\nread_jobs = \"5\"\n", "whole number"),
        ("[s3]\nregion = 5\n", "in quotes"),
        ("[node]\ndata_dir = 5\n", "in quotes"),
        ("[lifecycle]\nenabled = \"no\"\n", "true or false"),
        ("[node]\ndisks = \"/srv/one\"\n", "a list"),
    ] {
        let fault = the_fault(text, &[]);
        assert!(fault.position.is_some() && fault.hint.as_ref().is_some_and(|told| told.contains(hint)), "{fault}");
    }
}

#[test]
fn a_value_out_of_range_is_named_with_its_line() {
    let fault = the_fault("[limits]\nread_jobs = 0\n", &[]);
    assert_eq!(fault.position, Some((2, 13)));
    assert!(fault.hint.is_some());
}

#[test]
fn a_cluster_without_metadata_is_named_with_its_line() {
    let fault = the_fault("[cluster]\nzookeeper = \"127.0.0.1:2181/holdfast\"\n", &[]);
    assert_eq!(fault.position, Some((2, 13)), "{fault}");
    assert!(fault.hint.as_ref().unwrap().contains("metadata.url"), "{fault}");
    let fault = the_fault("[metadata]\nurl = \"mysql://u@h/d\"\n", &[]);
    assert_eq!(fault.position.unwrap().0, 2, "{fault}");
    assert!(fault.hint.as_ref().unwrap().contains("cluster.zookeeper"), "{fault}");
}

#[test]
fn the_clusters_place_stands_once_behind_the_last_server() {
    let with = |ensemble: &str| format!("[metadata]\nurl = \"mysql://u@h/d\"\n[cluster]\nzookeeper = \"{ensemble}\"\n");
    assert!(load_text(&with("a:1,b:1/x"), &[]).is_ok());
    let fault = the_fault(&with("a:1/x,b:1/x"), &[]);
    assert_eq!(fault.position.map(|(line, _)| line), Some(4), "{fault}");
    assert!(fault.message.contains("not an ensemble"), "{fault}");
}

#[test]
fn an_address_that_nobody_can_reach_is_refused() {
    let cluster =
        "[metadata]\nurl = \"mysql://u@h/d\"\n[cluster]\nzookeeper = \"h:1/x\"\npeer_addr = \"0.0.0.0:9002\"\n";
    let fault = the_fault(cluster, &[]);
    assert!(fault.message.starts_with("cluster.peer_addr"), "{fault}");
    let told = format!("{cluster}advertise_peer = \"node1.example:9002\"\n");
    assert!(load_text(&told, &[]).unwrap().cluster.is_on());
    let fault = the_fault(&format!("{cluster}advertise_peer = \"node1\"\n"), &[]);
    assert!(fault.message.starts_with("cluster.advertise_peer"), "{fault}");
}

#[test]
fn a_password_in_the_url_is_refused() {
    let text = "[cluster]\nzookeeper = \"h:1/x\"\n[metadata]\nurl = \"mysql://u:secret@h/d\"\n";
    let fault = the_fault(text, &[]);
    assert!(fault.hint.as_ref().unwrap().contains("password_file"), "{fault}");
}

#[test]
fn a_ca_that_would_check_nothing_is_refused() {
    let text = "[cluster]\nzookeeper = \"h:1/x\"\n[metadata]\nurl = \"mysql://u@h/d\"\ntls_ca = \"/ca.pem\"\n";
    let fault = the_fault(text, &[]);
    assert!(fault.hint.as_ref().unwrap().contains("verify-identity"), "{fault}");
    assert!(load_text(&format!("{text}tls = \"verify-ca\"\n"), &[]).is_ok());
}

#[test]
fn blocks_of_addresses_are_checked() {
    let fault = the_fault("[limits]\nconnections_exempt = [\"10.0.0.0/8\", \"balancer\"]\n", &[]);
    assert_eq!(fault.position.unwrap().0, 2, "{fault}");
    let config = load_text("", &[("HOLDFAST_LIMITS_CONNECTIONS_EXEMPT", "10.0.0.0/8, fd00::/8")]).unwrap();
    assert_eq!(config.limits.connections_exempt, ["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(config.limits.connections_of_address(), 2_500);
    let config = load_text("[limits]\nconnections = 3\n", &[]).unwrap();
    assert_eq!(config.limits.connections_of_address(), 1);
}

#[test]
fn a_faulty_variable_is_named() {
    let fault = the_fault("", &[("HOLDFAST_S3_ADDR", "nowhere")]);
    assert_eq!(fault.source, "environment variable HOLDFAST_S3_ADDR");
    let fault = the_fault("", &[("HOLDFAST_S3_REGON", "x")]);
    assert_eq!(fault.hint.unwrap(), "did you mean `HOLDFAST_S3_REGION`?");
    let fault = the_fault("", &[("HOLDFAST_LIMITS_WRITE_JOBS", "0")]);
    assert_eq!(fault.source, "environment variable HOLDFAST_LIMITS_WRITE_JOBS");
}

#[test]
fn a_system_file_that_cannot_be_looked_at_is_not_taken_for_absent() {
    let dir = tempfile::tempdir().unwrap();
    let (working, system) = (dir.path().join("working.toml"), dir.path().join("system.toml"));
    assert_eq!(usual_file(&working, &system), None);
    std::fs::write(&system, "").unwrap();
    assert_eq!(usual_file(&working, &system).as_deref(), Some(&*system));
    assert_eq!(usual_file(&working, &system.join("below")), None, "there is nothing below a file");
    // Whoever runs the tests may look everywhere: a loop of links is what nobody can follow.
    let around = dir.path().join("around");
    std::os::unix::fs::symlink(&around, &around).unwrap();
    assert_eq!(usual_file(&working, &around).as_deref(), Some(&*around));
    std::fs::write(&working, "").unwrap();
    assert_eq!(usual_file(&working, &system).as_deref(), Some(&*working));
}

#[test]
fn bytes_that_are_no_text_are_named_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("holdfast.toml");
    std::fs::write(&file, b"[s3]\nregion = \"\xff\"\n").unwrap();
    let faults = load(Some(&file), [], &Overrides::default()).map(|loaded| loaded.config).unwrap_err();
    assert_eq!(faults[0].position, Some((2, 11)), "{faults:?}");
}

#[test]
fn syntax_errors_have_a_position() {
    assert_eq!(the_fault("[s3]\nregion = \n", &[]).position.unwrap().0, 2);
}

#[test]
fn damaged_configurations_are_refused_with_a_place_in_them() {
    fn body(bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match merge("file", text, [("HOLDFAST_S3_REGION".to_owned(), text.to_owned())]) {
            Ok((config, _)) => {
                for fault in check::faults(&config) {
                    position_of(text, fault.key.0, fault.key.1);
                }
                // What was read is written, and read as the same.
                let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
                assert_eq!(again, config);
            }
            Err(faults) => {
                for (line, column) in faults.iter().filter_map(|fault| fault.position) {
                    assert!(line <= text.matches('\n').count() + 1 && column <= text.len() + 1, "{line}:{column}");
                }
            }
        }
    }
    fn seeds() -> Vec<Vec<u8>> {
        let small = "[node]\ndata_dir = \"/d\u{e9}\"\ndisks = [\"/a\", '/b']\n[limits]\nread_jobs = 7 # so many\n\
                     queue_wait = \"10 s\"\ninflight_bytes = \"64 MiB\"\n[cluster]\nzookeeper = \"h:1,g:2/x\"\n\
                     advertise_peer = \"[::1]:9002\"\n[metadata]\nurl = \"mysql://u@h/d\"\n[log]\nlevel = \"info,a=debug\"\n";
        vec![small.into(), include_bytes!("../../../../holdfast.example.toml").to_vec()]
    }
    damage::run(&[Target { name: "configuration", body, seeds }], 500);
}

#[test]
fn a_disk_is_not_fenced_for_its_silence_before_it_is_found_silent() {
    let fault = the_fault("[storage]\nfence_unresponsive_after = \"10 s\"\n", &[]);
    assert_eq!(fault.position.unwrap().0, 2, "{fault}");
    assert!(the_fault("[storage]\nunresponsive_after = \"10 ms\"\n", &[]).message.contains("unresponsive_after"));
    let unwatched = load_text("[storage]\nunresponsive_after = \"0 s\"\n", &[]).unwrap();
    assert_eq!(unwatched.storage.unresponsive_after.nonzero(), None);
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let text = include_str!("../../../../holdfast.example.toml");
    let config: Config = toml::from_str(text).unwrap();
    assert_eq!(config, Config::default());
    for (section, key, _) in known_keys() {
        let commented = text.contains(&format!("\n# {key} ="));
        assert!(position_of(text, &section, &key).is_some() || commented, "{section}.{key} is not in the example");
    }
}

#[test]
fn the_manual_names_every_key_with_its_default() {
    let text = include_str!("../../../../docs/configuration.md");
    // Written as people write them; the test above holds them to what is built in.
    let example: Table = toml::from_str(include_str!("../../../../holdfast.example.toml")).unwrap();
    for (section, key, _) in known_keys() {
        let default = example.get(&section).and_then(|keys| keys.get(&key));
        let default = default.map(|value| format!("`{value}`")).unwrap_or_default();
        let row = format!("\n| `{section}.{key}` | {default} | ");
        assert!(text.contains(&row), "the manual has no such row: {row}");
    }
}
