//! The server of an object store: SeaweedFS, in a temporary directory, on free ports of the loopback device.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use object_store::signer::Signer;
use object_store::{ClientOptions, RetryConfig};

/// A wait that takes longer than this is a failure.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The bucket of all tests.
pub const BUCKET: &str = "highwater-tests";
pub const ACCESS_KEY: &str = "HIGHWATERTESTKEY";
const ADMIN_KEY: &str = "HIGHWATERADMINKEY";
pub const SECRET_KEY: &str = "not-so-secret-in-a-test";

/// The ports of the server's parts, in the order of `PORTS`.
const PORTS_VARIABLE: &str = "OBJECT_STORE_TEST_PORTS";
const PORTS: [&str; 8] = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
];

/// What a process must know of a server that is going to be started.
pub fn environment() -> Vec<(&'static str, String)> {
    // Held together, so that they differ.
    let held: Vec<_> = PORTS.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = held.iter().map(|held| held.local_addr().unwrap().port()).collect();
    let list: Vec<String> = ports.iter().map(u16::to_string).collect();
    vec![
        (PORTS_VARIABLE, list.join(" ")),
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", ports[0])),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
    ]
}

/// A running server. Killed when dropped.
pub struct Server {
    directory: tempfile::TempDir,
    child: Mutex<Child>,
}

impl Server {
    /// Starts a server with one bucket.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("data")).unwrap();
        // For an administrator a bucket that is not there is made by the first put.
        let identity = |name: &str, key: &str, actions: &str| {
            format!(
                "{{\"name\":\"{name}\",\"credentials\":[{{\"accessKey\":\"{key}\",\"secretKey\":\"{SECRET_KEY}\"}}],\
                 \"actions\":[{actions}]}}"
            )
        };
        let test = identity("test", ACCESS_KEY, r#""Read","Write","List","Tagging""#);
        let admin = identity("admin", ADMIN_KEY, r#""Admin""#);
        let access = format!("{{\"identities\":[{test},{admin}]}}");
        fs::write(directory.path().join("s3.json"), access).unwrap();
        let child = Mutex::new(spawn(directory.path()));
        let server = Self { directory, child };
        server.wait();
        server
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// The URL of a place that no other test uses.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Kills it, as a power cut would.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again, with what it had.
    pub fn start_again(&self) {
        *self.child.lock().unwrap() = spawn(self.directory.path());
        self.wait();
    }

    /// Waits until the bucket is there and can be written.
    fn wait(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let no_retries =
            RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        let store = AmazonS3Builder::from_env()
            .with_access_key_id(ADMIN_KEY)
            .with_bucket_name(BUCKET)
            .with_retry(no_retries)
            .with_client_options(
                ClientOptions::new().with_timeout(Duration::from_secs(2)).with_allow_http(true),
            )
            .build()
            .unwrap();
        // A part that is not up yet may keep us waiting.
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build().unwrap();
        let ready = async || {
            let (method, all) = (reqwest::Method::PUT, Duration::from_secs(60));
            let bucket = object_store::path::Path::default();
            let url = store.signed_url(method, &bucket, all).await.unwrap();
            // Made, or there already.
            let made = client.put(url).send().await.is_ok_and(|answer| {
                answer.status().is_success() || answer.status() == reqwest::StatusCode::CONFLICT
            });
            let probe = object_store::path::Path::from("server-is-up");
            made && object_store::ObjectStoreExt::put(&store, &probe, "x".into()).await.is_ok()
        };
        let start = Instant::now();
        while !runtime.block_on(ready()) {
            let running = self.child.lock().unwrap().try_wait().unwrap().is_none();
            assert!(running, "the server has ended; it said:\n{}", self.said());
            assert!(start.elapsed() < WAIT_MAX, "the server is not ready:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(50)); // Poll: until it is ready.
        }
    }

    /// The end of what it has said.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        // Its parts talk to each other through sockets of this name, which stay.
        let ports = std::env::var(PORTS_VARIABLE).unwrap_or_default();
        for (part, port) in PORTS.iter().zip(ports.split(' ')) {
            let part = part.split('.').next().unwrap_or_default();
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{part}-grpc-{port}.sock"));
        }
    }
}

fn spawn(directory: &Path) -> Child {
    let ports = std::env::var(PORTS_VARIABLE).unwrap();
    let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let mut command = Command::new(program());
    command.args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]);
    // Parts of it that are not needed, and a small volume, of which it makes several.
    command.args(["-s3.iam=false", "-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    // It is alone, so that it need not wait for others to elect it.
    command.args(["-master.peers=none"]);
    command.args(["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=100"]);
    for (part, port) in PORTS.iter().zip(ports.split(' ')) {
        command.arg(format!("-{part}={port}"));
    }
    let with_path = |flag: &str, name: &str| {
        let mut argument = OsString::from(flag);
        argument.push(directory.join(name));
        argument
    };
    command.arg(with_path("-dir=", "data")).arg(with_path("-s3.config=", "s3.json"));
    command.current_dir(directory).env("HOME", directory);
    // Ours are for its clients; it would make an administrator of whom they name.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}: run ./setup", program().display()))
}

/// Where `setup` has put it.
fn program() -> PathBuf {
    let tools = std::env::var_os("HIGHWATER_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
        cache.unwrap_or_else(home).join("highwater-tools")
    });
    tools.join("bin/weed")
}
