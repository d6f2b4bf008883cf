//! `kfp-creds conformance`: runs the cases of the metadata protocol against any server, and prints its
//! deviations.
//!
//! The cases are those of our golden files that hold for every server: configured values are left out, and
//! only the shapes of bodies are compared (`conformance/cases.txt`, made by a test). Those of AWS and Azure
//! (`conformance/clouds.txt`) run if the target has these clouds, and those of the forms that need a secret if it is
//! known ([`forms`]). Received tokens are checked and dropped; no
//! part of them is printed.

mod case;
mod forms;
mod found;
mod wire;

use std::time::Duration;

use serde_json::json;

use crate::config::Environment;
use crate::failure::{Ended, Failure};
use case::Case;
use found::FoundClouds;
pub use wire::TestedServer;

/// The time limit of one case, including waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// The outcome of a case.
#[derive(Debug)]
enum CaseOutcome {
    Conforms,
    /// The server does not offer what the case needs, such as ID tokens; that is no deviation.
    Skipped(&'static str),
    Deviates(String),
}

/// Runs all cases and prints the deviations, as lines or as one JSON object.
pub async fn conformance(
    env: &Environment,
    target: &TestedServer,
    as_json: bool,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let at = target.resolve().await.map_err(Failure::Usage)?;
    let (mut conforming, mut skipped, mut deviations) = (0_usize, vec![], vec![]);
    let found = FoundClouds::look(target, at, env).await;
    for case in case::all().into_iter().filter(|case| case.is_for(&found)) {
        match run(&case, target, at, &found).await? {
            CaseOutcome::Conforms => conforming += 1,
            CaseOutcome::Skipped(why) => skipped.push((case, why)),
            CaseOutcome::Deviates(what) => deviations.push((case, what)),
        }
    }
    let deviates = !deviations.is_empty();
    if as_json {
        let skipped: Vec<_> =
            skipped.iter().map(|(case, why)| json!({"case": case.name, "reason": why})).collect();
        let deviations: Vec<_> = deviations
            .iter()
            .map(|(case, what)| {
                json!({"case": case.name, "request": case.line(), "deviation": what, "why": case.why})
            })
            .collect();
        let report = json!({
            "target": target.shown(), "conforming": conforming, "skipped": skipped, "deviations": deviations,
        });
        print(&report.to_string());
    } else {
        for (case, why) in &skipped {
            print(&format!("--  {}: {why}", case.name));
        }
        for (case, what) in &deviations {
            print(&format!("!!  {}: {}: {what}", case.name, case.line()));
            print(&format!("    {}", case.why));
        }
        let (others, wrong) = (skipped.len(), deviations.len());
        print(&format!(
            "{}: {conforming} cases as expected, {others} skipped, {wrong} deviations",
            target.shown()
        ));
    }
    Ok(if deviates { Ended::Found } else { Ended::Done })
}

async fn run(
    case: &Case,
    target: &TestedServer,
    at: std::net::SocketAddr,
    found: &FoundClouds,
) -> Result<CaseOutcome, Failure> {
    let Some(request) = case.request(target.prefix(), found) else {
        return Ok(CaseOutcome::Skipped("the target is below a path, which this case cannot be"));
    };
    let exchange = wire::exchange(at, &request, case.is_head());
    let answer = match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(wire::AnswerFailure::Unreachable(why))) => {
            return Err(Failure::Engine(format!("nothing answers at {}: {why}", target.shown()).into()));
        }
        Ok(Err(wire::AnswerFailure::Unread(why))) => return Ok(CaseOutcome::Deviates(why)),
        Err(_) => return Ok(CaseOutcome::Deviates(format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    if case.is_identity() && answer.status == 404 {
        return Ok(CaseOutcome::Skipped("this account makes no ID tokens"));
    }
    if case.is_azure_token() && matches!(answer.status, 400 | 403) {
        return Ok(CaseOutcome::Skipped("this identity may not ask for this resource"));
    }
    Ok(case.deviation(&answer).map_or(CaseOutcome::Conforms, CaseOutcome::Deviates))
}
