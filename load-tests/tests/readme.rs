//! The README's tour, as it stands, on ports that are free.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::{path::Path, process::Stdio, time::Duration};

use load_tests::{peers::haproxy::free_port, sluicegate::binary, temp::TempDir, until};
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_secs(20);

/// The text of the block that follows `before`.
fn block<'t>(readme: &'t str, before: &str) -> &'t str {
    let rest = &readme[readme.find(before).unwrap_or_else(|| panic!("no `{before}` in README.md"))..];
    let start = rest.find("```").unwrap();
    let body = &rest[start..];
    let body = &body[body.find('\n').unwrap() + 1..];
    &body[..body.find("\n```").unwrap()]
}

struct Tour {
    directory: TempDir,
    /// What the README says, and what is free here.
    ports: Vec<(String, String)>,
    background: Vec<Child>,
}

impl Tour {
    async fn new() -> Self {
        let mut ports = Vec::new();
        for said in ["8080", "9001", "18080", "18000", "19000"] {
            ports.push((format!("127.0.0.1:{said}"), free_port().await.to_string()));
        }
        Self { directory: TempDir::new(), ports, background: Vec::new() }
    }

    fn port(&self, said: &str) -> &str {
        &self.ports.iter().find(|(s, _)| s.ends_with(&format!(":{said}"))).unwrap().1
    }

    fn on_free_ports(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (said, free)| text.replace(said, free))
    }

    fn shell(&self, line: &str) -> Command {
        let mut line = self.on_free_ports(line);
        if line.starts_with("sluicegate serve") {
            let (api, xds, admin) = (self.port("18080"), self.port("18000"), self.port("19000"));
            line += &format!(" --api-addr {api} --xds-addr {xds} --admin-addr {admin}");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let programs: &Path = binary().parent().unwrap();
        let mut command = Command::new("sh");
        // `exec`, so that what is stopped is the program and not its shell.
        command.arg("-c").arg(format!("exec {line}")).current_dir(self.directory.path());
        command.env("PATH", format!("{}:{path}", programs.display()));
        command.env("SLUICEGATE_API", format!("http://{}", self.port("18080")));
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs a line as a person would: again, until what was started before is there.
    async fn run(&mut self, line: &str) -> String {
        if let Some(line) = line.strip_suffix(" &") {
            let mut command = self.shell(line);
            let log = std::fs::File::create(self.directory.join(&format!("{}.log", self.background.len())))
                .unwrap();
            command.stdout(log.try_clone().unwrap()).stderr(log);
            self.background.push(command.spawn().unwrap());
            return String::new();
        }
        until(line, SOON, async || {
            let output = self.shell(line).output().await.unwrap();
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tour_shows_what_the_readme_says() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let mut tour = Tour::new().await;
    let manifest = tour.on_free_ports(block(&readme, "Start server and proxy in one process"));
    std::fs::write(tour.directory.join("shop.yaml"), manifest).unwrap();
    let mut said = String::new();
    for line in block(&readme, "<!-- tour -->").lines() {
        if line.starts_with("curl") {
            // Both versions have to have an instance before one of them answers every request.
            until("both versions to have an instance", SOON, async || {
                let get = tour.shell("sluicegate get service checkout -o json").output().await.unwrap();
                let service: serde_json::Value = serde_json::from_slice(&get.stdout).ok()?;
                let versions = service["versions"].as_array()?;
                versions.iter().all(|v| v["ready"] == 1).then_some(())
            })
            .await;
        }
        said += &tour.run(line).await;
    }
    for expected in ["/checkout", "50", "checkout", "incremental", "Split checkout"] {
        assert!(said.contains(expected), "no `{expected}` in\n{said}");
    }
    // In order, as Ctrl-C in each terminal would.
    while let Some(mut process) = tour.background.pop() {
        let pid = process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let status = tokio::time::timeout(SOON, process.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_codes_are_those_the_help_names() {
    let tour = Tour::new().await;
    std::fs::write(tour.directory.join("bad.yaml"), "kind: Gateway\nname: g\nlisten: nowhere\n").unwrap();
    let cases = [
        ("sluicegate get services", 3, "cannot reach"),
        ("sluicegate apply -f bad.yaml", 2, "bad.yaml:3: listen: `nowhere` is not an address"),
        ("sluicegate serve -f bad.yaml", 2, "bad.yaml:3: listen: `nowhere` is not an address"),
        ("sluicegate shift checkout v2=120%", 2, "120"),
        ("sluicegate frobnicate", 2, "frobnicate"),
    ];
    for (line, code, says) in cases {
        let output = tour.shell(line).output().await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {error}");
        assert!(error.contains(says), "{line}: {error}");
    }
}
