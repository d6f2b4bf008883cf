//! This machine sleeps, its disk is full, its terminal is closed, and clients keep connections open: rows of
//! `docs/internals/failures.md` beside those of [`crate::failures`].

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit, setrlimit};

use crate::failures::{CLIENTS, KEY, Listener, MACHINE, UNAFFECTED, USER, answer, under, waits_for};
use crate::leaks::{ACCOUNT, files};
use crate::support::failures::Happened;
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::session::{Folder, PROGRAM, program};
use crate::suspend::{library, set_clocks};

const FLAVOR: &str = "Metadata-Flavor: Google\r\n";
const HOUR: u64 = 3600;
/// Node's client, the least patient one, gives up after 3 s.
const PROMPT: Duration = Duration::from_secs(3);

fn started(command: Command, arguments: &[&str], folder: &Folder) -> Listener {
    Listener::start(command, arguments, &folder.0).unwrap_or_else(|(code, said)| panic!("{code}: {said}"))
}

/// The answer, which may not take long.
fn prompt(server: &Listener) -> String {
    let asked = Instant::now();
    let client = server.token("");
    let took = asked.elapsed();
    assert!(took < PROMPT, "the answer took {took:?}");
    client
}

/// As [`crate::suspend`] does for every kind of credential: the time of day is an hour later, and the monotonic
/// clock has not moved.
#[test]
fn clients_get_new_tokens_after_the_machine_slept() {
    let (google, folder) = (FakeGoogle::start(), Folder::new("failures"));
    let (config, file) = files(&folder.0, &google, &google.service_account(KEY, rsa_key()));
    let clock = folder.0.join("clock");
    set_clocks(&clock, 0, 0);
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &file);
    command.env("LD_PRELOAD", library()).env("CLOCK_AHEAD", &clock);
    let server = started(command, &["--config", &config], &folder);
    let (first, _) = server.fresh();
    assert_eq!(server.fresh().0, first, "it is kept while it is good");
    let before = server.said();
    set_clocks(&clock, HOUR as i64, 0);
    google.clock_off_by(HOUR as i64, true);
    let now = SystemTime::now() + Duration::from_secs(HOUR);
    // Ten at the same time: each of them asks at once, and none may get the old token.
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..10).map(|_| scope.spawn(|| server.fresh())).collect();
        for asked in asking {
            let (token, left) = asked.join().unwrap();
            assert_ne!(token, first, "it has expired");
            assert!(google.minted(&token).unwrap().expires > now && left <= HOUR, "{left} s");
        }
    });
    let (client, person) = (server.token(""), server.lines(&before));
    let case = "the machine sleeps for an hour, longer than tokens live";
    let recovers = "yes: the next request gets a new token";
    Happened { part: MACHINE, case, client, person, recovers }.is_on_the_page();
}

/// The mount is seen only by the program, and by the shell that makes room on it.
#[test]
fn a_full_disk_loses_audit_entries_and_no_token() {
    let folder = Folder::new("failures");
    let (disk, room) = (folder.0.join("disk"), folder.0.join("room"));
    fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=16k,mode=0700 audit \"$1\" && head -c 12k /dev/zero >\"$1/filler\" || exit 99; \
                  (for n in $(seq 6000); do [ -e \"$2\" ] && exec rm \"$1/filler\"; sleep 0.1; done) >/dev/null 2>&1 & \
                  export KFP_CREDS_AUDIT_FILE=\"$1/audit.jsonl\"; shift 2; exec \"$@\"";
    let plain = program(&folder.0);
    let mut command = Command::new("unshare");
    // A user other than root needs a user namespace to mount.
    let is_root = rustix::process::getuid().is_root();
    command.args(if is_root { &["-m"][..] } else { &["-r", "-m"] });
    command.args(["sh", "-c", script, "sh"]).args([&disk, &room]).arg(plain.get_program());
    command.env_clear().current_dir(&folder.0);
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let server = started(command, &["--offline"], &folder);
    let before = server.said();
    // Requests for the same token are one entry.
    let audiences = Cell::new(0);
    let another = || {
        audiences.set(audiences.get() + 1);
        let path = format!("{ACCOUNT}/identity?audience=https://{}.example", audiences.get());
        assert_eq!(server.get(&path, FLAVOR), "200 the token");
        server.said()
    };
    while !another().contains("the audit log loses entries") {
        assert!(audiences.get() < 400, "the disk was never full:\n{}", server.said());
    }
    let client = prompt(&server);
    fs::write(&room, "").unwrap();
    waits_for(Duration::from_secs(20), || another().contains("the audit log is written again"));
    let person = server.lines(&before);
    let lost = person.split(" entries were lost").next().unwrap().rsplit(' ').next().unwrap().to_owned();
    assert!(lost.parse::<u32>().is_ok_and(|lost| lost > 0), "{person}");
    let person = person.replace(&format!("; {lost} entries"), "; … entries");
    let case = "the disk of the audit log is full";
    let recovers = "yes: once there is room; the log says how many entries it lacks";
    Happened { part: MACHINE, case, client, person, recovers }.is_on_the_page();
}

/// Ends a process when dropped.
struct Ends(Pid);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

/// A server with a login of Google, whose output nobody reads.
struct Unread {
    google: FakeGoogle,
    folder: Folder,
    file: String,
    arguments: [String; 5],
}

impl Unread {
    fn new() -> Self {
        let (google, folder) = (FakeGoogle::start(), Folder::new("failures"));
        let (config, file) = files(&folder.0, &google, &google.user(USER));
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--config", &config].map(String::from);
        Self { google, folder, file, arguments }
    }

    fn environment(&self, command: &mut Command) {
        let plain = program(&self.folder.0);
        command.env_clear().current_dir(&self.folder.0);
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &self.file);
    }

    /// Causes lines for the person and an entry of the log, which nobody can read, and asks for tokens.
    fn goes_on(&self, server: &Listener, pid: Pid) -> String {
        fs::write(&self.file, "{ canary").unwrap();
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(prompt(server), "200 the token");
        // The watcher of the file has survived its line: it reads the next file.
        fs::write(&self.file, self.google.user("other@example.com")).unwrap();
        waits_for(Duration::from_secs(20), || {
            let minted = self.google.minted(&server.fresh().0);
            minted.is_some_and(|minted| minted.email == "other@example.com")
        });
        // The listener survives an entry of the log: it has no descriptor for the next connection.
        let most = getrlimit(Resource::Nofile);
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(64), ..most }).unwrap();
        let idle = idle(server.at, 100);
        std::thread::sleep(Duration::from_secs(1));
        drop(idle);
        answer(|| server.token(""))
    }
}

#[test]
fn a_server_whose_output_nobody_reads_serves_tokens() {
    let unread = Unread::new();
    let mut command = Command::new(PROGRAM);
    command.args(&unread.arguments);
    unread.environment(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).unwrap();
    let server = Listener::at_the_place(&line, child, &unread.folder.0);
    drop(err);
    let client = unread.goes_on(&server, pid);
    let case = "the program that reads stdout and stderr has ended";
    Happened { part: MACHINE, case, client, person: String::new(), recovers: UNAFFECTED }.is_on_the_page();
}

#[test]
fn a_server_whose_terminal_is_closed_serves_tokens() {
    let unread = Unread::new();
    let place = |name: &str| unread.folder.0.join(name);
    let line =
        format!("trap '' HUP; tty >tty; echo $$ >pid; exec {PROGRAM} {} >out", unread.arguments.join(" "));
    let mut terminal = Command::new("script");
    unread.environment(&mut terminal);
    terminal.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = terminal.spawn().unwrap();
    let out = || fs::read_to_string(place("out")).unwrap_or_default();
    waits_for(Duration::from_secs(20), || out().contains('\n'));
    let number: i32 = fs::read_to_string(place("pid")).unwrap().trim().parse().unwrap();
    let ends = Ends(Pid::from_raw(number).unwrap());
    // The terminal is closed when the program that shows it ends.
    child.kill().unwrap();
    child.wait().unwrap();
    let slave = fs::read_to_string(place("tty")).unwrap();
    assert!(slave.starts_with("/dev/pts/"), "{slave}");
    let server = Listener::at_the_place(out().lines().next().unwrap(), child, &unread.folder.0);
    let client = unread.goes_on(&server, ends.0);
    let case = "the terminal is closed, and SIGHUP is ignored";
    Happened { part: MACHINE, case, client, person: String::new(), recovers: UNAFFECTED }.is_on_the_page();
}

/// Connections that send nothing, from several addresses, each of which has enough ports.
fn idle(at: SocketAddr, count: usize) -> Vec<TcpStream> {
    let own = Resource::Nofile;
    let limit = getrlimit(own);
    setrlimit(own, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let connection = |number: usize| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let from = Ipv4Addr::new(127, 0, 0, 2 + (number / 2000) as u8);
        rustix::net::bind(&socket, &SocketAddrV4::new(from, 0)).unwrap();
        rustix::net::connect(&socket, &at).unwrap();
        TcpStream::from(socket)
    };
    (0..count).map(connection).collect()
}

/// In KiB.
fn resident(server: &Listener) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// In KiB, for 10 000 connections. Measured in a debug build: 126 MiB the first time, 184 MiB the third time and
/// 191 MiB the sixth time, because the allocator keeps what it has. A leak would add 126 MiB each time.
const MOST_MEMORY: u64 = 240 * 1024;

#[test]
fn ten_thousand_idle_connections_delay_no_other_client() {
    let folder = Folder::new("failures");
    let server = started(under(Some("prlimit --nofile=12000"), &folder), &["--offline"], &folder);
    assert_eq!(prompt(&server), "200 the token");
    let (before, said) = (resident(&server), server.said());
    let held = || {
        let _idle = idle(server.at, 10_000);
        // The connections before this one have been accepted when it is answered.
        assert_eq!(server.token(""), "200 the token");
        (prompt(&server), resident(&server).saturating_sub(before))
    };
    let times = [held(), held(), held()];
    let client = prompt(&server);
    eprintln!("the answers, and KiB for 10 000 idle connections: {times:?}");
    for (answer, grown) in &times {
        assert!(*answer == client && *grown < MOST_MEMORY, "{times:?}");
    }
    let (case, person) = ("10 000 idle connections, within the limit of open files", server.lines(&said));
    let recovers =
        "not needed: tokens are served all the time; memory grows by at most 240 MiB, and not each time";
    Happened { part: CLIENTS, case, client, person, recovers }.is_on_the_page();
}

/// A program that is busy or stopped accepts no connection. The kernel keeps them for it, as long as its queue has
/// room: then connecting takes a second, until the client's kernel tries again.
#[test]
fn a_thousand_connections_at_once_wait_for_a_busy_server() {
    let folder = Folder::new("failures");
    let server = started(program(&folder.0), &["--offline"], &folder);
    let pid = Pid::from_child(&server.child);
    kill_process(pid, Signal::STOP).unwrap();
    let begun = Instant::now();
    let connect = |_| TcpStream::connect_timeout(&server.at, PROMPT).expect("the queue has room");
    let idle: Vec<TcpStream> = (0..1000).map(connect).collect();
    let took = begun.elapsed();
    kill_process(pid, Signal::CONT).unwrap();
    assert!(took < PROMPT, "connecting took {took:?}");
    assert_eq!(server.token(""), "200 the token");
    drop(idle);
}

/// Idle connections use all descriptors that the process may open. Later clients wait.
#[test]
fn a_server_without_free_descriptors_lets_clients_wait() {
    let folder = Folder::new("failures");
    let server = started(under(Some("prlimit --nofile=4096"), &folder), &["--offline"], &folder);
    let before = server.said();
    let idle = idle(server.at, 4200);
    waits_for(Duration::from_secs(10), || server.said().len() > before.len());
    let (client, person) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| server.token(""));
        std::thread::sleep(Duration::from_secs(1));
        assert!(!asking.is_finished(), "it was answered with no file left");
        let person = server.lines(&before);
        drop(idle);
        (asking.join().unwrap(), person)
    });
    let case = "4 200 idle connections, and at most 4 096 open files";
    let recovers = "yes: new clients wait, and are answered once connections end";
    Happened { part: CLIENTS, case, client, person, recovers }.is_on_the_page();
}

/// Whether the connection is open, and has not been answered.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Sends one more byte of a request on each connection. Those that the server has closed fail.
fn one_more(slow: &[TcpStream], byte: u8) {
    for mut stream in slow {
        let _ = stream.write(&[byte]);
    }
}

#[test]
fn slow_requests_delay_no_other_client_and_end_after_75_s() {
    let folder = Folder::new("failures");
    let clock = folder.0.join("clock");
    set_clocks(&clock, 0, 0);
    let mut command = program(&folder.0);
    command.env("LD_PRELOAD", library()).env("CLOCK_AHEAD", &clock);
    let server = started(command, &["--offline"], &folder);
    let said = server.said();
    let request = server.request(&format!("{ACCOUNT}/token"), FLAVOR).into_bytes();
    let mut slow: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(server.at).unwrap()).collect();
    for byte in &request[..5] {
        one_more(&slow, *byte);
        assert_eq!(prompt(&server), "200 the token");
        std::thread::sleep(Duration::from_secs(1));
    }
    // For the program, 65 s have passed, and then 80 s: more than the 75 s that a request may take.
    let pass = |seconds: i64, byte: u8| {
        set_clocks(&clock, seconds, seconds);
        one_more(&slow, byte);
        assert_eq!(prompt(&server), "200 the token");
        std::thread::sleep(Duration::from_millis(500));
    };
    pass(60, request[5]);
    assert!(slow.iter().all(is_open), "a request may take 75 s");
    pass(75, request[6]);
    waits_for(Duration::from_secs(10), || !slow.iter().any(is_open));
    for stream in &mut slow {
        // A connection that ends while a byte is on its way is reset.
        assert!(!matches!(stream.read(&mut [0; 64]), Ok(1..)), "it was answered");
    }
    let client = format!("other clients: {}; the slow ones: closed after 75 s", server.token(""));
    let case = "100 clients send one byte of their request per second";
    Happened { part: CLIENTS, case, client, person: server.lines(&said), recovers: UNAFFECTED }
        .is_on_the_page();
}
