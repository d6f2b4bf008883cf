//! Between sessions, the engine keeps one relay image.

use crate::support::session::{Folder, Session, raw};

const RELAYS: [&str; 4] = ["images", "-q", "--filter", "label=kfp-creds.role=relay"];

#[test]
fn images_of_older_builds_are_removed_when_one_is_loaded() {
    raw(&RELAYS).lines().for_each(|id| drop(raw(&["rmi", "-f", id])));
    // Any image can have the label; one with another name is not ours to remove.
    for name in ["kfp-creds-relay:older", "kfp-creds-test-stranger:latest"] {
        let folder = Folder::new("older");
        let steps = format!("FROM scratch\nCOPY Dockerfile /{name}\nLABEL kfp-creds.role=relay\n");
        std::fs::write(folder.0.join("Dockerfile"), steps).unwrap();
        raw(&["build", "-q", "-t", name, &folder.0.display().to_string()]);
    }
    let session = Session::offline("", &[]);
    assert!(session.said().contains("loading the relay image"), "{}", session.said());
    let tags = raw(&[&["images", "--format", "{{.Repository}}:{{.Tag}}"], &RELAYS[2..]].concat());
    raw(&["rmi", "-f", "kfp-creds-test-stranger"]);
    assert!(!tags.contains("kfp-creds-relay:older") && tags.contains("stranger"), "{tags}");
    assert_eq!(tags.lines().count(), 2, "{tags}");
}
