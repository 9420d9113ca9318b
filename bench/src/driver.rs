//! A program that drives one queue, and its output. `bench/README.md` describes both.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::command::{check_interrupt, last_lines};

const POLL: Duration = Duration::from_millis(100);

/// A line of a driver.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// The measured work begins now.
    Begin,
    /// One of several drivers that share the tasks has executed this many.
    Executed(usize),
    /// It has ended.
    End(Outcome),
}

/// What a driver measures itself.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tasks: f64,
    pub(crate) seconds: f64,
    /// More than `tasks` if some were executed again.
    pub(crate) executions: f64,
    /// From publishing a task to its execution, in microseconds.
    pub(crate) late_us: Vec<f64>,
}

impl Outcome {
    pub(crate) fn per_second(&self) -> f64 {
        self.tasks / self.seconds
    }
}

impl Event {
    fn parse(line: &str) -> Result<Event> {
        let value: Value = serde_json::from_str(line)?;
        match value["event"].as_str() {
            Some("begin") => Ok(Event::Begin),
            Some("executed") => {
                let tasks = value["tasks"].as_u64().context("no tasks")?;
                Ok(Event::Executed(tasks.try_into()?))
            }
            Some("end") => {
                let number = |name: &str| value[name].as_f64();
                let tasks = number("tasks").context("no tasks")?;
                let late = value["late_us"].as_array().into_iter().flatten().filter_map(Value::as_f64);
                Ok(Event::End(Outcome {
                    tasks,
                    seconds: number("seconds").context("no seconds")?,
                    executions: number("executions").unwrap_or(tasks),
                    late_us: late.collect(),
                }))
            }
            _ => bail!("no event"),
        }
    }
}

/// A running driver. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Driver {
    child: Child,
    lines: mpsc::Receiver<std::io::Result<String>>,
    errors: std::path::PathBuf,
    until: Instant,
}

impl Driver {
    /// Starts the driver. What it says on standard error goes to a file.
    pub(crate) fn start(command: &mut Command, errors: &Path, limit: Duration) -> Result<Driver> {
        check_interrupt()?;
        let name = command.get_program().to_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(errors)?);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", name.display()))?;
        let output = child.stdout.take().context("a driver without output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || BufReader::new(output).lines().try_for_each(|line| sender.send(line)));
        Ok(Driver { child, lines, errors: errors.to_owned(), until: Instant::now() + limit })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until what is measured begins.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let event = self.next()?;
        ensure!(event == Event::Begin, "the driver ended before it began");
        Ok(())
    }

    /// Waits until it has ended. The process is still there afterwards.
    pub(crate) fn end(&mut self) -> Result<Outcome> {
        match self.next()? {
            Event::End(outcome) => Ok(outcome),
            other => bail!("the driver said {other:?} before its end"),
        }
    }

    /// How many tasks it has executed, if it has said so since it was last asked.
    pub(crate) fn executed(&mut self) -> Result<Option<usize>> {
        let mut executed = None;
        loop {
            match self.lines.try_recv() {
                Ok(line) => {
                    if let Event::Executed(tasks) = Event::parse(&line?)? {
                        executed = Some(tasks);
                    }
                }
                Err(TryRecvError::Empty) => {
                    ensure!(Instant::now() < self.until, "not done in time; {}", self.said());
                    return Ok(executed);
                }
                Err(TryRecvError::Disconnected) => bail!("the driver ended early: {}", self.said()),
            }
        }
    }

    fn next(&mut self) -> Result<Event> {
        loop {
            check_interrupt()?;
            match self.lines.recv_timeout(POLL) {
                Ok(line) => {
                    let line = line?;
                    return Event::parse(&line).with_context(|| format!("the driver said: {line}"));
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the driver ended early: {}", self.said()),
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(Instant::now() < self.until, "not done in time; {}", self.said());
                }
            }
        }
    }

    /// The end of what it said on standard error.
    fn said(&self) -> String {
        let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let said = last_lines(said.trim(), 3).replace('\n', " ");
        if said.is_empty() { "it gave no reason".to_owned() } else { said.chars().take(400).collect() }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_parsed() {
        assert_eq!(Event::parse(r#"{"event":"begin"}"#).unwrap(), Event::Begin);
        let line = r#"{"event":"end","tasks":2,"seconds":0.5,"executions":3,"late_us":[7,8.5]}"#;
        let expected = Outcome { tasks: 2.0, seconds: 0.5, executions: 3.0, late_us: vec![7.0, 8.5] };
        assert_eq!(Event::parse(line).unwrap(), Event::End(expected));
    }

    #[test]
    fn each_task_was_executed_once_unless_the_driver_says_otherwise() {
        let Event::End(outcome) = Event::parse(r#"{"event":"end","tasks":2,"seconds":4}"#).unwrap() else {
            panic!("not an end");
        };
        assert_eq!((outcome.executions, outcome.per_second()), (2.0, 0.5));
    }

    #[test]
    fn other_lines_are_refused() {
        assert_eq!(Event::parse(r#"{"event":"executed","tasks":7}"#).unwrap(), Event::Executed(7));
        for line in ["hello", "{}", r#"{"event":"pause"}"#, r#"{"event":"end","tasks":1}"#] {
            Event::parse(line).unwrap_err();
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("kafkaq-bench-{name}-{}", std::process::id()))
    }

    #[test]
    fn driver_runs_until_it_is_dropped() {
        let errors = scratch("there");
        let says = r#"echo '{"event":"begin"}'; echo '{"event":"end","tasks":1,"seconds":1}'; read line"#;
        let mut driver = Driver::start(&mut shell(says), &errors, Duration::from_secs(60)).unwrap();
        driver.begin().unwrap();
        assert_eq!(driver.end().unwrap().tasks, 1.0);
        assert!(driver.child.try_wait().unwrap().is_none());
        drop(driver);
        std::fs::remove_file(errors).unwrap();
    }

    #[test]
    fn failing_driver_is_reported_with_its_reason_and_a_hanging_one_is_killed() {
        let errors = scratch("fails");
        let mut failing =
            Driver::start(&mut shell("echo no such queue >&2"), &errors, Duration::from_secs(60)).unwrap();
        let error = failing.begin().unwrap_err().to_string();
        assert!(error.contains("no such queue"), "{error}");
        let mut hanging = Driver::start(&mut shell("sleep 1000"), &errors, Duration::ZERO).unwrap();
        assert!(hanging.begin().unwrap_err().to_string().contains("not done in time"));
        drop((failing, hanging));
        std::fs::remove_file(errors).unwrap();
    }
}
