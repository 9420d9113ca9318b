//! A process of its own that publishes or works, and can be stopped, continued and killed.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A handler began: the id and the attempt.
    Run(String, u32),
    /// `done` was confirmed.
    Done(String),
    /// `done` failed, and why.
    Failed(String, String),
    /// Everything is published.
    Published(usize),
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let mut words = line.splitn(3, ' ');
        let (what, id, rest) = (words.next()?, words.next()?, words.next());
        Some(match what {
            "run" => Line::Run(id.to_owned(), rest?.parse().ok()?),
            "done" => Line::Done(id.to_owned()),
            "failed" => Line::Failed(id.to_owned(), rest?.to_owned()),
            "published" => Line::Published(id.parse().ok()?),
            _ => return None,
        })
    }
}

/// A process. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    said: Arc<Mutex<Vec<Line>>>,
}

impl Agent {
    /// `program` is `env!("CARGO_BIN_EXE_agent")`; see `src/bin/agent.rs` for the words that it takes.
    #[must_use]
    pub fn start(program: &str, words: &[&str]) -> Agent {
        let mut child = Command::new(program)
            .args(words)
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (out, to) = (child.stdout.take().expect("a pipe"), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(line) = Line::parse(&line) {
                    to.lock().expect("lock").push(line);
                }
            }
        });
        Agent { child, said }
    }

    /// Everything it has said so far.
    #[must_use]
    pub fn said(&self) -> Vec<Line> {
        self.said.lock().expect("lock").clone()
    }

    /// How many handlers it began.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.said.lock().expect("lock").iter().filter(|l| matches!(l, Line::Run(..))).count()
    }

    /// Sends it a signal by name: `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
