//! A separate process that publishes or works, and can be stopped, continued and killed.

use crate::{PATIENCE, Pair};
use std::{
    io::{BufRead, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// After this many failures a task that is executed by [`Agent::handle`] is dead-lettered.
pub const HANDLE_FAILURES: u32 = 3;

/// A line of an agent's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A handler began.
    Run {
        /// The task.
        id: String,
        /// The number of the hand-out.
        attempt: u32,
        /// The job's token.
        token: String,
    },
    /// `done` was confirmed.
    Done {
        /// The task.
        id: String,
        /// The job's token.
        token: String,
    },
    /// `done` failed.
    Failed {
        /// The task.
        id: String,
        /// The job's token.
        token: String,
        /// The error.
        why: String,
    },
    /// Everything is published.
    Published(usize),
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let mut words = line.splitn(4, ' ');
        let (what, first) = (words.next()?, words.next()?);
        if what == "published" {
            return first.parse().ok().map(Line::Published);
        }
        let (id, token) = (first.to_owned(), words.next()?.to_owned());
        let rest = words.next();
        Some(match what {
            "run" => Line::Run { id, attempt: rest?.parse().ok()?, token },
            "done" => Line::Done { id, token },
            "failed" => Line::Failed { id, token, why: rest?.to_owned() },
            _ => return None,
        })
    }
}

/// A process. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    input: Option<ChildStdin>,
    heard: Arc<Mutex<Vec<(Instant, Line)>>>,
    listener: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts an agent that publishes `count` tasks, `t<from>` and so on. `program` is `env!("CARGO_BIN_EXE_agent")`.
    #[must_use]
    pub fn publish(program: &str, pair: &Pair, from: usize, count: usize) -> Agent {
        Agent::start(program, "publish", pair, [from.to_string(), count.to_string()])
    }

    /// Starts an agent that executes tasks with this many workers, each of which holds a task for this long.
    #[must_use]
    pub fn work(program: &str, pair: &Pair, workers: usize, hold: Duration) -> Agent {
        Agent::start(program, "work", pair, [workers.to_string(), hold.as_millis().to_string()])
    }

    /// Starts an agent that executes [`Hold`](crate::Hold)s with a worker, this many at once. At SIGTERM they have
    /// `limit` to end.
    #[must_use]
    pub fn handle(program: &str, pair: &Pair, concurrency: usize, limit: Duration) -> Agent {
        Agent::start(program, "handle", pair, [concurrency.to_string(), limit.as_millis().to_string()])
    }

    fn start(program: &str, what: &str, pair: &Pair, more: [String; 2]) -> Agent {
        let mut child = Command::new(program)
            .arg(what)
            .args(pair.words())
            .args(more)
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (out, to) = (child.stdout.take().expect("a pipe"), heard.clone());
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(line) = Line::parse(&line) {
                    to.lock().expect("lock").push((Instant::now(), line));
                }
            }
        });
        Agent { input: child.stdin.take(), child, heard, listener: Some(listener) }
    }

    /// Returns its output so far, and when each line was read.
    #[must_use]
    pub fn heard(&self) -> Vec<(Instant, Line)> {
        self.heard.lock().expect("lock").clone()
    }

    /// Returns its output so far.
    #[must_use]
    pub fn said(&self) -> Vec<Line> {
        self.heard().into_iter().map(|(_, line)| line).collect()
    }

    /// Returns how many handlers it has started.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.heard.lock().expect("lock").iter().filter(|(_, l)| matches!(l, Line::Run { .. })).count()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Sends it a signal by name: `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Makes it drop its queue and the jobs it holds. The process continues without them.
    pub fn drop_queue(&mut self) {
        if let Some(input) = &mut self.input {
            // If it has ended by itself, it holds nothing any more.
            let _ = input.write_all(b"drop\n");
        }
    }

    /// Makes it shut down its queue and end. Doesn't wait for that.
    pub fn end(&mut self) {
        self.input = None;
    }

    /// Returns its whole output. It must have been told to end, or have been killed.
    #[must_use]
    pub fn last_words(self) -> Vec<Line> {
        self.all_heard().into_iter().map(|(_, line)| line).collect()
    }

    /// The same, with when it was heard.
    #[must_use]
    pub fn all_heard(mut self) -> Vec<(Instant, Line)> {
        let start = Instant::now();
        while !self.has_ended() {
            assert!(start.elapsed() < PATIENCE, "the agent doesn't end");
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(listener) = self.listener.take() {
            listener.join().expect("the listener ends");
        }
        self.heard()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
