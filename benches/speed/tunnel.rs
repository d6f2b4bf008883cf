//! Container, relay, host: what the way costs, and what the relay takes.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::engine::{self, Stage, docker};
use crate::figures::{Table, Target};
use crate::load::body_of;
use crate::process::{cpu_seconds, end, memory, numbers, output};
use crate::session::{Folder, Session, listener};
use crate::{Outcome, Plan};

/// Most that the way through the relay may add to the median, in microseconds.
const WAY: f64 = 250.0;

#[expect(clippy::too_many_lines, reason = "one measurement, told from start to end")]
pub(crate) fn measure(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    let session = Session::start(&plan.program)?;
    let relay = engine_pid(&session.relay())?;
    let (host_idle, relay_idle) = (memory(session.pid())?, memory(relay)?);
    let direct = Direct::start(plan, stage)?;
    let caller = docker(&session.socket, &["run", "-d", "--network", &stage.network, &stage.image, "idle"])?;
    let through = SocketAddr::new(address_of_relay(&session)?, 80).to_string();
    let in_caller =
        |arguments: &[&str]| docker(&engine::socket(), &[&["exec", &caller, "/speed"], arguments].concat());
    let (rounds, requests) = if plan.quick { ("5", "200") } else { ("15", "500") };
    let found = in_caller(&["latency", rounds, requests, &through, &direct.at])?;
    let [through_it, without] = &found.lines().map(numbers).collect::<Outcome<Vec<_>>>()?[..] else {
        return Err("two servers, but not two figures".into());
    };
    let more = through_it[0] - without[0];
    let shown = format!(
        "+{more:.0} µs (p50 {:.0} against {:.0} µs; p99 {:.0} against {:.0} µs)",
        through_it[0], without[0], through_it[1], without[1]
    );
    table.row(
        "tunnel",
        "container → relay → host over a server in a container, one caller: p50",
        (more, shown),
        Target::AtMost(WAY),
        " µs",
    );
    for connections in ["16", "64"] {
        let before = (cpu_seconds(session.pid())?, cpu_seconds(relay)?);
        let line = in_caller(&["load", &through, connections, if plan.quick { "2" } else { "5" }])?;
        let used = (cpu_seconds(session.pid())? - before.0, cpu_seconds(relay)? - before.1);
        let [requests, seconds, p50, p99] = numbers(&line)?[..] else { return Err("no figures".into()) };
        let shown = format!(
            "{:.1}k/s, p50 {:.1} ms, p99 {:.1} ms; CPU per request: host {:.0} µs, relay {:.0} µs",
            requests / seconds / 1e3,
            p50 / 1e3,
            p99 / 1e3,
            used.0 / requests * 1e6,
            used.1 / requests * 1e6
        );
        let what = format!("tokens through the relay, {connections} connections of one container");
        table.row("tunnel", what, (requests, shown), Target::Stated, "");
    }
    let requests = plan.rounds(200_000, 20_000);
    let first = (memory(session.pid())?, memory(relay)?);
    in_caller(&["load", &through, "64", &format!("{requests}r")])?;
    let second = (memory(session.pid())?, memory(relay)?);
    for (whose, idle, first, second) in
        [("the host process", host_idle, first.0, second.0), ("the relay", relay_idle, first.1, second.1)]
    {
        let shown = format!(
            "{:.1} MiB idle, {:.1} MiB after load ({:.1} MiB of it not from files)",
            idle.0, second.0, second.1
        );
        table.row(
            "tunnel",
            format!("memory (RSS) of {whose}"),
            (idle.0, shown),
            Target::AtMost(10.0),
            " MiB idle",
        );
        let growth = second.1 - first.1;
        let what = format!("the same: growth by {requests} more requests");
        table.row("tunnel", what, (growth, format!("{growth:+.2} MiB")), Target::AtMost(0.25), " MiB");
    }
    docker(&engine::socket(), &["rm", "-f", &caller])?;
    Ok(())
}

fn engine_pid(container: &str) -> Outcome<u32> {
    Ok(docker(&engine::socket(), &["inspect", "-f", "{{.State.Pid}}", container])?.parse()?)
}

fn address_of_relay(session: &Session) -> Outcome<std::net::IpAddr> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    Ok(docker(&engine::socket(), &["inspect", "-f", format, &session.relay()])?.parse()?)
}

/// The bare server in a container, with the bytes of a real answer.
#[derive(Debug)]
struct Direct {
    /// The `docker run` that holds its stdin and stdout.
    client: Child,
    name: String,
    at: String,
}

impl Direct {
    fn start(plan: &Plan, stage: &Stage) -> Outcome<Self> {
        let folder = Folder::new()?;
        let body = body_of(listener(&plan.program, &folder, &["--offline"])?.at)?;
        let name = format!("{}-direct", stage.network);
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", engine::socket().display()));
        command.args(["run", "-i", "--rm", "--name", &name, "--network", &stage.network, &stage.image]);
        let mut client =
            command.args(["bare", "0.0.0.0:80"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        std::io::Write::write_all(&mut client.stdin.take().ok_or("no stdin")?, body.as_bytes())?;
        let mut direct = Self { client, name, at: String::new() };
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        for _ in 0..200 {
            let mut inspect = Command::new("docker");
            inspect.arg("-H").arg(format!("unix://{}", engine::socket().display()));
            let address = output(inspect.args(["inspect", "-f", format, &direct.name])).unwrap_or_default();
            if !address.is_empty() {
                direct.at = format!("{address}:80");
                return Ok(direct);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Err("the direct server did not start".into())
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let _ = docker(&engine::socket(), &["rm", "-f", &self.name]);
        end(&mut self.client);
    }
}
