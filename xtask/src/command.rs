//! Running other programs so that an interrupt ends them too, and the caller still gets to tidy up.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM no longer end this process: they end the program that [`run`] waits for, and
/// make [`run`] and [`check_interrupt`] fail, so that the caller unwinds and tidies up.
///
/// # Errors
/// When called twice.
pub fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")
}

/// Whether an interrupt has arrived.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A point in a waiting loop where an interrupt takes effect.
///
/// # Errors
/// When an interrupt has arrived.
pub fn check_interrupt() -> Result<()> {
    ensure!(!interrupted(), "interrupted");
    Ok(())
}

/// Runs a program to its end, its output going where ours goes.
///
/// # Errors
/// When it cannot be started, does not succeed, or an interrupt arrives.
pub fn run(command: &mut Command) -> Result<()> {
    check_interrupt()?;
    let mut child = spawn(command)?;
    finish(command, &mut child)
}

/// Like [`run`], and puts into `kept` the lines of its standard output that `keep` picks, also when it fails.
///
/// # Errors
/// As [`run`].
pub fn run_keeping(command: &mut Command, kept: &mut Vec<String>, keep: fn(&str) -> bool) -> Result<()> {
    check_interrupt()?;
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let copying = thread::spawn(move || copy_lines(stdout, keep));
    let result = finish(command, &mut child);
    kept.extend(copying.join().unwrap_or_default());
    result
}

/// Runs a short program and returns what it printed. An interrupt does not end it, so it suits tidying up.
///
/// # Errors
/// When it cannot be started or does not succeed; the error has the end of what it printed.
pub fn capture(command: &mut Command) -> Result<String> {
    let name = name(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{name}`"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        let said = text(&[&output.stdout[..], &output.stderr[..]].concat());
        bail!("`{name}` failed ({}): {}", output.status, last_lines(&said, 20));
    }
    Ok(text(&output.stdout))
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A process group of its own: the whole tree can be ended at once, and Ctrl-C at the terminal reaches only us.
fn spawn(command: &mut Command) -> Result<Child> {
    let name = name(command);
    command.stdin(Stdio::null()).process_group(0).spawn().with_context(|| format!("cannot start `{name}`"))
}

fn finish(command: &Command, child: &mut Child) -> Result<()> {
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let mut asked: Option<Instant> = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        match asked {
            None if interrupted() => {
                asked = Some(Instant::now());
                let _ = killpg(group, Signal::SIGTERM);
                // A stopped process only notices once it runs again.
                let _ = killpg(group, Signal::SIGCONT);
            }
            Some(since) if since.elapsed() > GRACE => drop(killpg(group, Signal::SIGKILL)),
            _ => {}
        }
        thread::sleep(POLL);
    };
    // Whatever it left behind in its group, such as a server of a test that crashed.
    let _ = killpg(group, Signal::SIGKILL);
    check_interrupt()?;
    if status.success() { Ok(()) } else { Err(anyhow!("`{}` failed ({status})", name(command))) }
}

fn copy_lines(from: impl Read, keep: fn(&str) -> bool) -> Vec<String> {
    let mut kept = Vec::new();
    let mut out = io::stdout();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        // A reader of ours that went away is no reason to stop.
        let _ = writeln!(out, "{line}");
        if keep(&line) {
            kept.push(line);
        }
    }
    kept
}

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(120) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_program_is_an_error_that_names_it() {
        let error = run(&mut shell("exit 3")).unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn kept_lines_come_back_also_from_a_program_that_fails() {
        let mut lines = Vec::new();
        let mut failing = shell("echo keep this; echo not that; exit 1");
        run_keeping(&mut failing, &mut lines, |line| line.starts_with("keep")).unwrap_err();
        assert_eq!(lines, ["keep this"]);
    }

    #[test]
    fn what_a_program_leaves_behind_is_ended() {
        let mut lines = Vec::new();
        let mut leaving = shell("sleep 1000 >/dev/null & echo pid $!");
        run_keeping(&mut leaving, &mut lines, |line| line.starts_with("pid")).unwrap();
        let pid: u32 = lines[0].trim_start_matches("pid ").parse().unwrap();
        let gone = || !crate::services::is_running(pid);
        assert!((0..100).any(|_| gone() || {
            thread::sleep(POLL);
            false
        }));
    }

    #[test]
    fn a_captured_failure_says_what_the_program_said() {
        let error = capture(&mut shell("echo no such thing >&2; exit 1")).unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
