//! The engine, past the program: raw HTTP for what is timed, the docker command line for the rest, and the
//! stage on which containers are measured.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Outcome;
use crate::process::output;

/// The engine's own socket; `KFP_CREDS_TEST_ENGINE` says another.
pub(crate) fn socket() -> PathBuf {
    let given = std::env::var("KFP_CREDS_TEST_ENGINE").ok();
    PathBuf::from(given.as_deref().unwrap_or("/var/run/docker.sock").trim_start_matches("unix://"))
}

/// `docker` at a socket.
pub(crate) fn docker(socket: &Path, arguments: &[&str]) -> Outcome<String> {
    output(Command::new("docker").arg("-H").arg(format!("unix://{}", socket.display())).args(arguments))
}

/// One call on a connection of its own; the body of a success.
pub(crate) fn call(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Outcome<Vec<u8>> {
    exchange(socket, method, &format!("/v1.41{path}"), body)
}

/// A look at another socket of the program's.
pub(crate) fn plain(socket: &Path, path: &str) -> Outcome<Vec<u8>> {
    exchange(socket, "GET", path, None)
}

fn exchange(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Outcome<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("the engine sent no head")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let body = answer.split_off(end + 4);
    let body = if head.contains("transfer-encoding: chunked") { joined(&body)? } else { body };
    if !head.starts_with("http/1.1 2") {
        return Err(format!("{method} {path}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(body)
}

/// The chunks of a chunked body, in one.
fn joined(mut chunks: &[u8]) -> Outcome<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = chunks.windows(2).position(|two| two == b"\r\n").ok_or("a chunk without a size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..line])?.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(chunks.get(line + 2..line + 2 + size).ok_or("a short chunk")?);
        chunks = &chunks[line + 4 + size..];
    }
}

/// The two ends of a container's stdin and stdout, as the engine's attach stream has them.
pub(crate) fn attach(container: &str) -> Outcome<UnixStream> {
    let mut stream = UnixStream::connect(socket())?;
    let request = format!(
        "POST /v1.41/containers/{container}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n\
         Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(format!("no attach stream: {}", String::from_utf8_lossy(&head)).into());
    }
    Ok(stream)
}

/// Sends `message` to what echoes on an attach stream, and waits until it is back.
pub(crate) fn there_and_back(stream: &mut UnixStream, message: &[u8]) -> Outcome<()> {
    stream.write_all(message)?;
    let mut back = 0;
    while back < message.len() {
        // Each piece has a header of eight bytes: which stream, and how long.
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let mut piece = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut piece)?;
        back += piece.len();
    }
    Ok(())
}

/// An image of this program alone, and two internal networks: one that containers are created on, and one
/// like the program's own to connect them to by hand. All of it goes with this value.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) image: String,
    pub(crate) network: String,
    pub(crate) second: String,
    /// The first three parts of the second network's addresses.
    pub(crate) second_range: String,
}

impl Stage {
    pub(crate) fn set() -> Outcome<Self> {
        let pid = std::process::id();
        let name = format!("kfp-creds-bench-{pid}");
        // RFC 2544's second half; the program itself falls back on the first.
        let range = format!("198.19.{}", pid % 250);
        let stage = Self {
            image: format!("{name}:latest"),
            network: name.clone(),
            second: format!("{name}-second"),
            second_range: range.clone(),
        };
        import(&name)?;
        let engine = socket();
        docker(&engine, &["network", "create", "--internal", &stage.network])?;
        let subnet = format!("{range}.0/24");
        let inhibit = "com.docker.network.bridge.inhibit_ipv4=true";
        docker(
            &engine,
            &["network", "create", "--internal", "-o", inhibit, "--subnet", &subnet, &stage.second],
        )?;
        Ok(stage)
    }

    /// A container's description for the raw API.
    pub(crate) fn container(&self, arguments: &[&str]) -> Value {
        json!({"Image": self.image, "Cmd": arguments, "HostConfig": {"NetworkMode": self.network}})
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let engine = socket();
        let filter = format!("ancestor={}", self.image);
        let left = docker(&engine, &["ps", "-aq", "--filter", &filter]).unwrap_or_default();
        for container in left.lines() {
            let _ = docker(&engine, &["rm", "-f", container]);
        }
        for network in [&self.network, &self.second] {
            let _ = docker(&engine, &["network", "rm", network]);
        }
        let _ = docker(&engine, &["rmi", &self.image]);
    }
}

/// Loads this program as an image: itself, and the loader and libraries that it has mapped.
fn import(name: &str) -> Outcome<()> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_path_with_name(std::env::current_exe()?, "speed")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let libraries = maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| path);
    let libraries: BTreeSet<&str> = libraries.filter(|path| path.contains(".so")).collect();
    let mut folders = BTreeSet::new();
    for library in libraries {
        tar.append_path_with_name(format!("/{library}"), library)?;
        folders.extend(Path::new(library).parent().map(|folder| format!("/{}", folder.display())));
        // The kernel looks for the loader where the program says, which is a link on merged systems.
        if library.contains("/ld-linux") {
            let file = library.rsplit('/').next().unwrap_or_default();
            for folder in ["lib64", "lib"] {
                if Path::new(&format!("/{folder}/{file}")).exists()
                    && !library.starts_with(&format!("{folder}/"))
                {
                    tar.append_path_with_name(format!("/{library}"), format!("{folder}/{file}"))?;
                }
            }
        }
    }
    let path = format!("ENV LD_LIBRARY_PATH={}", Vec::from_iter(folders).join(":"));
    let mut import = Command::new("docker")
        .arg("-H")
        .arg(format!("unix://{}", socket().display()))
        .args(["import", "-c", &path, "-c", "ENTRYPOINT [\"/speed\"]", "-", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    import.stdin.take().ok_or("no stdin")?.write_all(&tar.into_inner()?)?;
    if !import.wait()?.success() {
        return Err("docker import failed".into());
    }
    Ok(())
}
