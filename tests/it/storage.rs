//! The client of Cloud Storage against a fake at the wire, which checks the requests.

use std::sync::Arc;
use std::time::Duration;

use kfp_creds::secret::Secret;
use kfp_creds::source::SourceError;
use kfp_creds::source::http::client::{Limits, Upstream};
use kfp_creds::source::storage::{Storage, StorageReader};

use crate::support::fake_google::CANARY;
use crate::support::fake_storage::{FakeStorage, Play};
use crate::support::session::Folder;

const ACCOUNT: &str = "reader@p.iam.gserviceaccount.com";

struct Fixture {
    fake: FakeStorage,
    storage: Storage,
    token: Secret<String>,
    folder: Folder,
}

fn limits() -> Limits {
    let (call, pause) = (Duration::from_secs(2), Duration::from_millis(5));
    Limits { call, mint: Duration::from_secs(10), tries: 3, pause }
}

impl Fixture {
    fn new() -> Self {
        let fake = FakeStorage::start(|token| (token == "ya29.canary-reading").then(|| ACCOUNT.to_string()));
        fake.allow(ACCOUNT, "bucket");
        let upstream: Arc<Upstream> = Upstream::new(limits(), vec![]).unwrap();
        let storage = Storage::new(upstream, fake.url());
        Self {
            storage,
            fake,
            token: Secret::new("ya29.canary-reading".into()),
            folder: Folder::new("objects"),
        }
    }

    fn by(&self) -> StorageReader<'_> {
        StorageReader { token: &self.token, account: ACCOUNT, user_project: None }
    }

    /// The content of an object, after its metadata.
    async fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let found = self.storage.object(self.by(), "bucket", name).await?.expect("it is there");
        let file = self.folder.0.join("file");
        self.storage.download(self.by(), "bucket", &found, &file).await?;
        Ok(std::fs::read(file).unwrap())
    }
}

#[track_caller]
fn refused<T>(outcome: Result<T, SourceError>, words: &str) {
    match outcome {
        Err(SourceError::Refused(why)) => {
            assert!(why.contains(words) && !why.contains(CANARY), "{why}");
        }
        Err(other) => panic!("not final: {other}"),
        Ok(_) => panic!("it passed"),
    }
}

#[track_caller]
fn transient<T>(outcome: Result<T, SourceError>, words: &str) {
    match outcome {
        Err(SourceError::Transient(why)) => {
            assert!(why.contains(words) && !why.contains(CANARY), "{why}");
        }
        Err(other) => panic!("final: {other}"),
        Ok(_) => panic!("it passed"),
    }
}

#[tokio::test]
async fn an_object_is_read_whole_and_in_one_generation() {
    let fixture = Fixture::new();
    let large: Vec<u8> = (0..500_001_u32).map(|n| ((n * 7) >> 3) as u8).collect();
    for (name, content) in [("dir/ü #?&%.csv", b"1,2\n".to_vec()), ("empty", vec![]), ("large", large)] {
        fixture.fake.put("bucket", name, content.clone());
        assert!(fixture.read(name).await.unwrap() == content, "{name}");
    }
    assert!(fixture.fake.asked().iter().all(|asked| asked.account == ACCOUNT), "{:?}", fixture.fake.asked());
    // The object was replaced between the two requests.
    fixture.fake.put("bucket", "a", "old");
    let old = fixture.storage.object(fixture.by(), "bucket", "a").await.unwrap().unwrap();
    fixture.fake.put("bucket", "a", "new");
    let file = fixture.folder.0.join("file");
    refused(fixture.storage.download(fixture.by(), "bucket", &old, &file).await, "no such object any more");
    assert_eq!(fixture.storage.object(fixture.by(), "bucket", "b").await.unwrap(), None);
}

#[tokio::test]
async fn every_storage_request_names_the_quota_project() {
    let fixture = Fixture::new();
    fixture.fake.put("bucket", "dir/a", "x");
    fixture.fake.wants_payer("payer-project");
    refused(fixture.read("dir/a").await, "the reader pays for this bucket");
    let by = |project: &'static str| StorageReader { user_project: Some(project), ..fixture.by() };
    refused(
        fixture.storage.object(by("another"), "bucket", "dir/a").await,
        "roles/storage.objectViewer on bucket, or, if it may not charge the quota project another: grant it \
         roles/serviceusage.serviceUsageConsumer there",
    );
    let by = by("payer-project");
    let found = fixture.storage.list(by, "bucket", "dir/", 10).await.unwrap();
    fixture.storage.download(by, "bucket", &found[0], &fixture.folder.0.join("file")).await.unwrap();
}

#[tokio::test]
async fn a_list_is_read_page_by_page_to_its_bound() {
    let fixture = Fixture::new();
    for number in 0..25 {
        fixture.fake.put("bucket", &format!("dir/{number:02}"), "x");
    }
    fixture.fake.put("bucket", "dir-other", "x");
    fixture.fake.pages_of(7);
    let all = fixture.storage.list(fixture.by(), "bucket", "dir/", 25).await.unwrap();
    let names: Vec<String> = all.into_iter().map(|found| found.name).collect();
    assert_eq!(names, (0..25).map(|number| format!("dir/{number:02}")).collect::<Vec<_>>());
    refused(fixture.storage.list(fixture.by(), "bucket", "dir/", 24).await, "more than 24 objects");
    assert_eq!(fixture.storage.list(fixture.by(), "bucket", "none/", 10).await.unwrap(), []);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let fixture = Fixture::new();
    fixture.fake.put("bucket", "a", "x");
    refused(
        fixture.storage.object(fixture.by(), "others", "a").await,
        "reader@p.iam.gserviceaccount.com may not read it; grant it roles/storage.objectViewer on others",
    );
    let stranger = Secret::new("ya29.another".into());
    let by = StorageReader { token: &stranger, ..fixture.by() };
    refused(fixture.storage.object(by, "bucket", "a").await, "does not take the token");
    // Requests for content get errors as plain text, which are not taken for a proxy's.
    fixture.fake.play("media", Play::Status(403));
    refused(fixture.read("a").await, "answered 403: reader@p.iam.gserviceaccount.com may not read it");
    let hex = "0123456789abcdef0123456789abcdef";
    refused(fixture.storage.object(fixture.by(), hex, "a").await, "objectViewer on (random text, not shown)");
    fixture.fake.play("list", Play::Status(404));
    refused(fixture.storage.list(fixture.by(), "bucket", "x/", 10).await, "there is no bucket bucket");
}

#[tokio::test]
async fn temporary_storage_failures_are_retried() {
    for play in [Play::Status(503), Play::CutShort, Play::Longer, Play::Other, Play::Hang] {
        let fixture = Fixture::new();
        fixture.fake.put("bucket", "a", "the content");
        fixture.fake.play("object", Play::Status(429));
        fixture.fake.play("media", play.clone());
        fixture.fake.play("media", Play::Late(Duration::from_millis(50)));
        assert_eq!(fixture.read("a").await.unwrap(), b"the content", "{play:?}");
        assert_eq!(fixture.fake.downloads(), 2, "{play:?}");
    }
}

#[tokio::test]
async fn permanent_storage_failures_are_named() {
    for (play, words) in [
        (Play::Status(500), "answered 500"),
        (Play::CutShort, "its answer broke off"),
        (Play::Longer, "more bytes than the object has"),
        (Play::Other, "does not match the object's checksum (CRC32C)"),
        (Play::Hang, "no answer within"),
        (Play::Redirect, "answered 307 (a redirect"),
        (Play::Page, "not in the API's form"),
    ] {
        let fixture = Fixture::new();
        fixture.fake.put("bucket", "a", "the content");
        (0..3).for_each(|_| fixture.fake.play("media", play.clone()));
        transient(fixture.read("a").await, words);
        assert_eq!(fixture.fake.downloads(), 3, "{play:?}: as often as any call");
    }
}

/// The token would be sent along.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let fixture = Fixture::new();
    fixture.fake.put("bucket", "a", "x");
    (0..3).for_each(|_| fixture.fake.play("object", Play::Redirect));
    transient(fixture.storage.object(fixture.by(), "bucket", "a").await, "answered 307 (a redirect");
}

#[tokio::test]
async fn a_full_disk_is_reported_and_not_retried() {
    let fixture = Fixture::new();
    fixture.fake.put("bucket", "a", "x");
    let found = fixture.storage.object(fixture.by(), "bucket", "a").await.unwrap().unwrap();
    let nowhere = fixture.folder.0.join("no/such/folder");
    refused(fixture.storage.download(fixture.by(), "bucket", &found, &nowhere).await, "this machine's disk");
    assert_eq!(fixture.fake.downloads(), 1);
}
