//! Tests of what is fetched once and shared, against a server on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::cache::{CachedContent, InputCache};
use super::contents::{Asking, Contents, WantedObject};
use crate::process::Tasks;
use crate::secret::Secret;
use crate::source::AccessRequest;
use crate::source::http::client::{Limits, Upstream};
use crate::source::storage::{ObjectMetadata, Storage};
use crate::token::{AccessToken, Deadline, Now, Scopes};

/// Answers every request for content with one byte, once it may, and every request for metadata.
#[derive(Default)]
struct Server {
    asked: Mutex<Vec<String>>,
    held: Mutex<bool>,
    released: Condvar,
    refuses: AtomicBool,
}

impl Server {
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let own = Arc::new(Self::default());
        let served = own.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = served.clone();
                std::thread::spawn(move || served.answer(stream.unwrap()));
            }
        });
        (own, url)
    }

    fn answer(&self, mut stream: TcpStream) {
        let (mut head, mut byte) = (vec![], [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let media = target.contains("alt=media");
        self.asked.lock().unwrap().push(target);
        if media {
            let held = self.held.lock().unwrap();
            drop(self.released.wait_while(held, |held| *held).unwrap());
        }
        let (status, body) = match (media, self.refuses.load(Ordering::Relaxed)) {
            (true, _) => ("200 OK", "x"),
            (false, true) => ("403 Forbidden", r#"{"error":{"errors":[{"reason":"forbidden"}]}}"#),
            (false, false) => ("200 OK", r#"{"name":"dir/a","generation":"1","size":"1"}"#),
        };
        let length = body.len();
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
    }

    fn downloads(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|target| target.contains("alt=media")).cloned().collect()
    }
}

struct Fixture {
    server: Arc<Server>,
    storage: Arc<Storage>,
    cache: Arc<InputCache>,
    contents: Arc<Contents>,
    root: PathBuf,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let (server, url) = Server::start();
        let root = std::env::temp_dir().join(format!("kc-contents-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let cache = Arc::new(InputCache::new(root.clone(), "0badcafe"));
        cache.open().unwrap();
        let storage = Storage::new(Upstream::new(Limits::default(), vec![]).unwrap(), url);
        let contents = Contents::new(cache.clone(), Tasks::new());
        Self { server, storage: Arc::new(storage), cache, contents, root }
    }

    async fn bring(&self, account: Option<&str>, wanted: WantedObject) -> Result<Arc<CachedContent>, String> {
        let mut brought = self.contents.bring(&asking(account), &self.storage, vec![wanted]).await;
        brought.remove(0).1
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.cache.remove();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn asking(account: Option<&str>) -> Arc<Asking> {
    let expires = Deadline::after(Now::read(), Duration::from_secs(3600));
    Arc::new(Asking {
        identity: "reader".into(),
        ask: AccessRequest::default(),
        token: Arc::new(AccessToken::new(Secret::new("t".into()), expires, Scopes::default())),
        account: account.map(String::from),
        user_project: None,
    })
}

fn wanted(name: &str, generation: u64) -> WantedObject {
    let found = ObjectMetadata { name: name.into(), generation, size: 1, crc32c: None };
    WantedObject { bucket: "bucket".into(), found, asked: false }
}

/// Who may list a folder may not necessarily read what is in it.
#[tokio::test]
async fn cached_content_is_given_only_with_current_access() {
    let fixture = Fixture::new("asked");
    let a = || wanted("dir/a", 1);
    fixture.bring(Some("one"), a()).await.unwrap();
    fixture.server.refuses.store(true, Ordering::Relaxed);
    let why = fixture.bring(Some("one"), a()).await.unwrap_err();
    assert!(why.contains("one may not read it"), "{why}");
    fixture.bring(Some("one"), WantedObject { asked: true, ..a() }).await.unwrap();
    fixture.server.refuses.store(false, Ordering::Relaxed);
    fixture.bring(Some("one"), a()).await.unwrap();
    assert_eq!(fixture.server.downloads().len(), 1);
}

#[tokio::test]
async fn another_account_of_an_identity_shares_nothing() {
    let fixture = Fixture::new("accounts");
    // An account that is not known is the same only as far as its token is.
    for (number, account) in [Some("one"), Some("two"), None, None].into_iter().enumerate() {
        fixture.bring(account, wanted("dir/a", 1)).await.unwrap();
        assert_eq!(fixture.server.downloads().len(), number + 1, "{account:?}");
    }
}

#[tokio::test]
async fn an_older_generation_goes_when_a_newer_one_comes() {
    let fixture = Fixture::new("generations");
    let older = fixture.bring(Some("one"), wanted("dir/a", 1)).await.unwrap().path().to_owned();
    let other = fixture.bring(Some("one"), wanted("dir/b", 1)).await.unwrap().path().to_owned();
    assert!(older.exists());
    let newer = fixture.bring(Some("one"), wanted("dir/a", 2)).await.unwrap();
    assert!(!older.exists() && other.exists() && newer.path().exists());
}

#[tokio::test]
async fn a_large_folder_does_not_keep_another_task_waiting() {
    let fixture = Fixture::new("turns");
    *fixture.server.held.lock().unwrap() = true;
    let folder: Vec<WantedObject> = (0..60).map(|number| wanted(&format!("dir/{number}"), 1)).collect();
    let first = asking(Some("one"));
    let first = fixture.contents.bring(&first, &fixture.storage, folder);
    let second = async {
        while fixture.server.downloads().len() < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let release = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            *fixture.server.held.lock().unwrap() = false;
            fixture.server.released.notify_all();
        };
        tokio::join!(fixture.bring(Some("one"), wanted("other", 1)), release).0.unwrap();
    };
    let (all, ()) = tokio::join!(first, second);
    assert!(all.len() == 60 && all.iter().all(|(_, outcome)| outcome.is_ok()));
    let at = fixture.server.downloads().iter().position(|target| target.contains("/other?")).unwrap();
    assert!(at < 20, "it was the {at}th");
}
