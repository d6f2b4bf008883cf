//! A request that repeats the caller's last one gets the same token without being read again, unless
//! something that it depends on has changed.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kfp_creds::source::Reloaded;
use kfp_creds::token::Now;
use kfp_creds::workload::Identity;

use crate::support::clouds::{self, Answer, Clouds, STORAGE};

type Headers = Vec<(&'static str, &'static str)>;

/// Requests of the container at 169.254.168.2: Google, AWS, Azure.
fn requests() -> [(String, Headers); 3] {
    let google = "GET /computeMetadata/v1/instance/service-accounts/default/token".to_owned();
    let azure = format!("GET /msi/token?api-version=2019-08-01&resource={STORAGE}");
    [
        (google, vec![("metadata-flavor", "Google"), ("user-agent", "x")]),
        ("GET /v2/credentials/secret-2".into(), vec![]),
        (azure, vec![("x-identity-header", "secret-2")]),
    ]
}

/// The token of an answer.
fn token(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    let found = json["access_token"].as_str().or_else(|| json["AccessKeyId"].as_str());
    found.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// How many requests the server has read.
fn read(clouds: &Clouds) -> usize {
    clouds.azure.principals.load(Ordering::SeqCst)
}

/// Asks until a request is answered without being read; a second of the clock may end in between.
async fn repeated(clouds: &Clouds, (line, headers): &(String, Headers)) -> Answer {
    for _ in 0..20 {
        let before = read(clouds);
        let answer = clouds.ask(2, line, headers).await;
        if read(clouds) == before {
            return answer;
        }
    }
    panic!("{line}: read each time");
}

#[tokio::test]
async fn a_repeat_is_counted_and_recorded_like_any_request() {
    let clouds = Clouds::start().await;
    let lease = clouds.lease(2, &clouds::identity());
    for request in &requests() {
        let first = clouds.ask(2, &request.0, &request.1).await;
        let before = clouds.counted("ok");
        let again = repeated(&clouds, request).await;
        assert_eq!(token(&first), token(&again));
        let names = |answer: &Answer| answer.headers.keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&first), names(&again));
        assert!(clouds.counted("ok") > before, "it was not counted");
    }
    assert_eq!(lease.issued().alive(Now::read()).len(), 3, "each token is on the lease, once");
    // Another container's request is separate, although every byte is the same.
    clouds.lease(3, &clouds::identity());
    let google = &requests()[0];
    let own = repeated(&clouds, google).await;
    assert_ne!(token(&clouds.ask(3, &google.0, &google.1).await), token(&own));
}

#[tokio::test]
async fn a_request_unlike_the_last_is_read_and_refused() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    let [google, aws, azure] = &requests();
    let with = |request: &(String, Headers), more: (&'static str, &'static str)| {
        let headers = [&request.1[..], &[more]].concat();
        (request.0.clone(), headers)
    };
    for (request, other, status) in [
        (google, with(google, ("x-forwarded-for", "10.0.0.1")), 403),
        (google, with(google, ("host", "evil.example")), 403),
        (google, with(google, ("metadata-flavor", "Goggle")), 403),
        (google, (google.0.clone(), vec![("user-agent", "x")]), 403),
        (google, (google.0.replace("GET", "DELETE"), google.1.clone()), 405),
        (google, (google.0.replace("default", "nobody@x.example"), google.1.clone()), 404),
        (aws, (aws.0.replace("secret-2", "secret-3"), vec![]), 403),
        (aws, with(aws, ("origin", "http://evil.example")), 403),
        (azure, (azure.0.clone(), vec![("x-identity-header", "secret-3")]), 401),
        (azure, (azure.0.replace("storage", "vault"), azure.1.clone()), 403),
    ] {
        repeated(&clouds, request).await;
        let answer = clouds.ask(2, &other.0, &other.1).await;
        assert_eq!(answer.status, status, "{other:?}: {answer:?}");
        token(&clouds.ask(2, &request.0, &request.1).await);
    }
}

#[tokio::test]
async fn a_repeat_does_not_get_a_dropped_token() {
    for reload in [None, Some(Reloaded::OtherAccount)] {
        for request in &requests()[1..] {
            let clouds = Clouds::start().await;
            let lease = clouds.lease(2, &clouds::identity());
            let before = token(&repeated(&clouds, request).await);
            // Something still holds the old token, so it stays in memory.
            let (grant, now) = (lease.grant(), Now::read());
            let aws = clouds.mint.aws_request(&grant.identity, Some(&grant.container), &grant.task).unwrap();
            let azure = clouds.mint.azure_request(&grant.identity, Some(&grant.container), STORAGE).unwrap();
            let held = (
                clouds.mint.cached_aws_session(&aws, None, now),
                clouds.mint.cached_azure_token(&azure, None, now),
            );
            assert!(held.0.is_some() || held.1.is_some());
            match &reload {
                None => clouds.mint.forget_all_but(&[]),
                Some(found) => {
                    *clouds.aws.reload.lock().unwrap() = Some(found.clone());
                    *clouds.azure.reload.lock().unwrap() = Some(found.clone());
                    assert_eq!(clouds.mint.reload_clouds().len(), 2);
                }
            }
            let after = token(&clouds.ask(2, &request.0, &request.1).await);
            assert_ne!(before, after, "{request:?} after {reload:?}");
        }
    }
    // Google's source makes another token each time.
    let clouds = Clouds::start().await;
    let lease = clouds.lease(2, &clouds::identity());
    let request = &requests()[0];
    let before = token(&repeated(&clouds, request).await);
    let ask = clouds.mint.request(&lease.grant().identity, Some(&lease.grant().container), None);
    let held = clouds.mint.cached(&ask, None, Now::read());
    assert!(held.is_some());
    clouds.mint.forget_all();
    assert_ne!(before, token(&clouds.ask(2, &request.0, &request.1).await));
}

#[tokio::test]
async fn a_repeat_is_read_after_its_source_was_reloaded() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    for found in [Reloaded::Renewed, Reloaded::Supplied] {
        let same = token(&repeated(&clouds, &requests()[2]).await);
        *clouds.azure.reload.lock().unwrap() = Some(found);
        clouds.mint.reload_clouds();
        let before = read(&clouds);
        let (line, headers) = &requests()[2];
        assert_eq!(token(&clouds.ask(2, line, headers).await), same);
        assert!(read(&clouds) > before);
    }
}

#[tokio::test]
async fn a_repeat_gets_nothing_after_its_lease_has_ended() {
    let clouds = Clouds::start().await;
    for request in &requests() {
        let lease = clouds.lease(2, &clouds::identity());
        let before = token(&repeated(&clouds, request).await);
        let ended = clouds.writer.lock().unwrap().cut_off(lease.address(), &lease.grant().container);
        assert!(ended.is_some());
        assert_eq!(clouds.ask(2, &request.0, &request.1).await.status, 503);
        // Another lease at the same address, whose identity has no cloud.
        let other = Identity { google: false, aws: None, azure: None, ..clouds::identity() };
        clouds.lease(2, &other);
        let answer = clouds.ask(2, &request.0, &request.1).await;
        assert!(answer.status != 200 && !answer.body.contains(&before), "{answer:?}");
    }
}

#[tokio::test]
async fn a_repeat_counts_against_the_rate() {
    for (request, status) in requests().iter().zip([429, 503, 503]) {
        let clouds = Clouds::start().await;
        clouds.lease(2, &Identity { rate: Some(12), ..clouds::identity() });
        let (mut statuses, before) = (vec![], read(&clouds));
        for _ in 0..14 {
            statuses.push(clouds.ask(2, &request.0, &request.1).await.status.as_u16());
        }
        assert_eq!(statuses, [&[200; 12][..], &[status; 2]].concat());
        assert!(read(&clouds) - before < 12, "each was read");
    }
}

#[tokio::test]
async fn a_repeat_gets_the_remaining_seconds_of_its_token() {
    let clouds = Clouds::start().await;
    let lease = clouds.lease(2, &clouds::identity());
    let [google, _, azure] = &requests();
    for (line, headers) in [google, azure] {
        let kinds = lease.issued().alive(Now::read()).len();
        token(&clouds.ask(2, line, headers).await);
        let end = lease.issued().alive(Now::read())[kinds].expires;
        let (began, mut seen) = (SystemTime::now(), std::collections::BTreeSet::new());
        while began.elapsed().unwrap() < Duration::from_millis(2300) {
            let most = end.remaining(Now::read()).as_secs();
            let json = clouds.ask(2, line, headers).await.json();
            let least = end.remaining(Now::read()).as_secs();
            let left = json["expires_in"]
                .as_u64()
                .or_else(|| json["expires_in"].as_str().and_then(|text| text.parse().ok()));
            let left = left.unwrap_or_else(|| panic!("{json}"));
            assert!((least..=most).contains(&left), "the reply says {left}, but {least} to {most} is left");
            seen.insert(left);
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        assert!(seen.len() >= 3, "{seen:?}");
    }
}

/// The token expires with a second of the clock, even if the same request was answered just before.
#[tokio::test]
async fn an_imdsv2_token_expires_to_the_second() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let line = "PUT /latest/api/token";
    let put = clouds.ask(2, line, &[("x-aws-ec2-metadata-token-ttl-seconds", "2")]).await;
    let end = second() + 2;
    let headers = [("x-aws-ec2-metadata-token", put.body.as_str())];
    let mut good = 0;
    loop {
        let before = second();
        let line = "GET /latest/meta-data/iam/security-credentials/loader";
        let status = clouds.ask(2, line, &headers).await.status.as_u16();
        assert!(status == 200 || status == 401, "{status}");
        if status == 401 {
            assert!(good > 1);
            break;
        }
        assert!(before < end, "the token was accepted after its end");
        good += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
