//! Creates of containers that get a session of AWS each: how long they wait for STS.

use crate::creates::{Hand, interval, medians, pairs};
use crate::engine::Stage;
use crate::figures::{Table, Target, difference, of_pairs};
use crate::process::Running;
use crate::session::Session;
use crate::{Outcome, Plan};

/// Most that a create waits for STS, in milliseconds; what is beside the wait is of `creates`.
const WAIT: f64 = 500.0 + 10.0;

pub(crate) fn measure(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    let upstream = Running::upstream()?;
    let of_google = Session::start(&plan.program)?;
    let google = Hand { socket: of_google.socket.clone(), stage, second: false };
    for took in [200, 2000] {
        let config = format!(
            "[aws]\ncredentials = \"environment\"\nregion = \"eu-west-1\"\n[endpoints]\naws_sts = \"http://{}/sts/{took}\"\n\
             [identity.default]\ngoogle = false\n[identity.default.aws]\nrole = \"arn:aws:iam::123456789012:role/bench\"\n",
            upstream.at
        );
        let keys = [("AWS_ACCESS_KEY_ID", "AKIABENCHBENCHBENCH0"), ("AWS_SECRET_ACCESS_KEY", "bench")];
        let pool = ("KFP_CREDS_POOL", "10.231.80.0/20");
        let session = Session::configured(&plan.program, &config, &[keys[0], keys[1], pool])?;
        let aws = Hand { socket: session.socket.clone(), stage, second: false };
        let rounds = plan.rounds(25, 5);
        let found = pairs(rounds, |turn| aws.create(turn), |turn| google.create(turn))?;
        let more = of_pairs(&found, difference);
        let shown = format!("{} more ({})", interval(more, 1.0, " ms"), medians(&found));
        let what = format!(
            "create of a container with a session of AWS of its own, STS takes {took} ms, over one with a cached token of Google"
        );
        table.row("creates", what, (more.value, shown), Target::AtMost(WAIT), " ms");
    }
    Ok(())
}
