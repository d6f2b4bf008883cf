//! Container, relay, host: what the way costs, and what the relay takes.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::engine::{self, Stage, docker};
use crate::figures::{Table, Target, percentile};
use crate::load::body_of;
use crate::process::{cpu_seconds, end, memory, numbers, output};
use crate::session::{Folder, Session, listener};
use crate::{Outcome, Plan};

/// Most that the way through the relay may add to the median, in microseconds.
const WAY: f64 = 250.0;

pub(crate) fn measure(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    let session = Session::with(&plan.program, &[("KFP_CREDS_ATTACH", "second")])?;
    let direct = Direct::start(plan, stage)?;
    let container =
        docker(&session.socket, &["run", "-d", "--network", &stage.network, &stage.image, "idle"])?;
    let relay = engine_pid(&session.relay())?;
    let through = SocketAddr::new(address_of_relay(&session)?, 80).to_string();
    let idle = [memory(session.pid())?, memory(relay)?];
    let caller = Caller { container, through };
    latency(plan, table, &caller, &direct)?;
    drop(direct);
    attach_alone(plan, stage, table)?;
    rates(plan, table, &caller, [session.pid(), relay])?;
    grows(plan, table, &caller, [session.pid(), relay], idle)?;
    docker(&engine::socket(), &["rm", "-f", &caller.container]).map(drop)
}

/// A container with an identity, in which the clients of this bench run.
struct Caller {
    container: String,
    /// The relay, as it is seen from there.
    through: String,
}

impl Caller {
    fn run(&self, arguments: &[&str]) -> Outcome<String> {
        docker(&engine::socket(), &[&["exec", &self.container, "/speed"], arguments].concat())
    }

    fn load(&self, connections: &str, amount: &str) -> Outcome<String> {
        self.run(&["load", &self.through, connections, amount])
    }
}

fn latency(plan: &Plan, table: &mut Table, caller: &Caller, direct: &Direct) -> Outcome<()> {
    let (rounds, requests) = if plan.quick { ("5", "200") } else { ("15", "500") };
    let found = caller.run(&["latency", rounds, requests, &caller.through, &direct.at])?;
    let [through, without] = &found.lines().map(numbers).collect::<Outcome<Vec<_>>>()?[..] else {
        return Err("two servers, but not two figures".into());
    };
    let more = through[0] - without[0];
    let shown = format!(
        "+{more:.0} µs (p50 {:.0} against {:.0} µs; p99 {:.0} against {:.0} µs)",
        through[0], without[0], through[1], without[1]
    );
    let what = "container → relay → host over a server in a container, one caller: p50";
    table.row("tunnel", what, (more, shown), Target::AtMost(WAY), " µs");
    Ok(())
}

/// The floor under the way through the relay: the engine's stream with nothing at its ends.
fn attach_alone(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    let create = ["create", "-i", "--network", "none", "--log-driver", "none", &stage.image, "echo"];
    let container = docker(&engine::socket(), &create)?;
    let mut stream = engine::attach(&container)?;
    docker(&engine::socket(), &["start", &container])?;
    let mut times = Vec::new();
    for turn in 0..plan.rounds(4000, 500) {
        let began = Instant::now();
        engine::there_and_back(&mut stream, &[b'.'; 256])?;
        if turn >= 100 {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    let p50 = percentile(&mut times, 50.0);
    let shown = format!("p50 {p50:.0} µs, p99 {:.0} µs", percentile(&mut times, 99.0));
    let what = "of which the engine's attach stream alone, there and back";
    table.row("tunnel", what, (p50, shown), Target::Stated, "");
    docker(&engine::socket(), &["rm", "-f", &container]).map(drop)
}

fn rates(plan: &Plan, table: &mut Table, caller: &Caller, pids: [u32; 2]) -> Outcome<()> {
    for connections in ["16", "64"] {
        let before = pids.map(cpu_seconds);
        let line = caller.load(connections, if plan.quick { "2" } else { "5" })?;
        let [requests, seconds, p50, p99] = numbers(&line)?[..] else { return Err("no figures".into()) };
        let mut used = [0.0; 2];
        for ((used, pid), before) in used.iter_mut().zip(pids).zip(before) {
            *used = (cpu_seconds(pid)? - before?) / requests * 1e6;
        }
        let shown = format!(
            "{:.1}k/s, p50 {:.1} ms, p99 {:.1} ms; CPU per request: host {:.0} µs, relay {:.0} µs",
            requests / seconds / 1e3,
            p50 / 1e3,
            p99 / 1e3,
            used[0],
            used[1]
        );
        let what = format!("tokens through the relay, {connections} connections of one container");
        table.row("tunnel", what, (requests, shown), Target::Stated, "");
    }
    Ok(())
}

/// Memory idle, after load, and whether more load makes it more.
fn grows(
    plan: &Plan,
    table: &mut Table,
    caller: &Caller,
    pids: [u32; 2],
    idle: [(f64, f64); 2],
) -> Outcome<()> {
    let requests = plan.rounds(200_000, 20_000);
    let first = pids.map(memory);
    caller.load("64", &format!("{requests}r"))?;
    let second = pids.map(memory);
    let whose = ["the host process", "the relay"];
    for (((whose, idle), first), second) in whose.into_iter().zip(idle).zip(first).zip(second) {
        let (first, second) = (first?, second?);
        let shown = format!(
            "{:.1} MiB idle, {:.1} MiB after load ({:.1} MiB of it not from files)",
            idle.0, second.0, second.1
        );
        let what = format!("memory (RSS) of {whose}");
        table.row("tunnel", what, (idle.0, shown), Target::AtMost(10.0), " MiB idle");
        let growth = second.1 - first.1;
        let what = format!("the same: growth by {requests} more requests");
        table.row("tunnel", what, (growth, format!("{growth:+.2} MiB")), Target::AtMost(0.25), " MiB");
    }
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
