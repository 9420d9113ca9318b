//! Runs other programs such that an interrupt ends them too, and the caller can still clean up.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM no longer end this process: they end the program that [`run`] waits for, and
/// make [`run`] and [`check_interrupt`] fail, so that the caller unwinds and cleans up.
///
/// # Errors
/// If called twice.
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
/// If an interrupt has arrived.
pub fn check_interrupt() -> Result<()> {
    ensure!(!interrupted(), "interrupted");
    Ok(())
}

/// Runs a program to its end, its output going where ours goes.
///
/// # Errors
/// If it cannot be started, does not succeed, or an interrupt arrives.
pub fn run(command: &mut Command) -> Result<()> {
    check_interrupt()?;
    let mut child = spawn(command)?;
    finish(command, &mut child, Duration::MAX).1
}

/// Like [`run`], for a program that is killed if it takes longer than `limit`.
///
/// # Errors
/// Those of [`run`], and if the program had to be killed.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    check_interrupt()?;
    let mut child = spawn(command)?;
    finish(command, &mut child, limit).1
}

/// How a program ended, and its resource usage.
#[derive(Debug)]
pub struct Ended {
    /// The process id that it had.
    pub pid: u32,
    /// The output, as returned by [`run`].
    pub result: Result<()>,
    /// From its start to its end.
    pub took: Duration,
    /// CPU time of it and of the children that it waited for. Zero if unknown.
    pub cpu: Duration,
}

/// Runs a program to its end, its output going into a file, and ends it when it takes longer than `limit`.
///
/// # Errors
/// When it cannot be started; how it ended is in [`Ended::result`].
pub fn run_into(command: &mut Command, output: &File, limit: Duration) -> Result<Ended> {
    check_interrupt()?;
    let since = Instant::now();
    let mut child = spawn(command.stdout(output.try_clone()?).stderr(output.try_clone()?))?;
    let (cpu, result) = finish(command, &mut child, limit);
    Ok(Ended { pid: child.id(), result, took: since.elapsed(), cpu })
}

/// A command as it is typed in a shell, with the variables that it sets.
#[must_use]
pub fn shown(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let set =
        set.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())));
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    set.chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a short program and returns what it printed. An interrupt does not end it, so it is suitable for cleanup.
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
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A process group of its own: the whole tree can be ended at once, and Ctrl-C at the terminal reaches only us.
fn spawn(command: &mut Command) -> Result<Child> {
    let name = name(command);
    command.stdin(Stdio::null()).process_group(0).spawn().with_context(|| format!("cannot start `{name}`"))
}

/// Waits for a program's end. Returns what it took of the processor, and how it ended.
fn finish(command: &Command, child: &mut Child, limit: Duration) -> (Duration, Result<()>) {
    let (since, mut cpu) = (Instant::now(), Duration::ZERO);
    let waited = wait(child, &mut |pid| {
        cpu = cpu_of(pid).unwrap_or(cpu);
        interrupted() || since.elapsed() > limit
    });
    let result = check_interrupt().and(waited).and_then(|status| {
        let name = name(command);
        ensure!(since.elapsed() <= limit, "`{name}` was ended after {} s", limit.as_secs());
        ensure!(status.success(), "`{name}` failed ({status})");
        Ok(())
    });
    (cpu, result)
}

/// Ends the program, gracefully if possible, as soon as `enough` returns `true`.
fn wait(child: &mut Child, enough: &mut dyn FnMut(u32) -> bool) -> Result<ExitStatus> {
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let mut asked: Option<Instant> = None;
    let status = loop {
        // Before it is waited for: after that the system knows nothing of it any more.
        let enough = enough(child.id());
        if let Some(status) = child.try_wait()? {
            break status;
        }
        match asked {
            None if enough => {
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
    Ok(status)
}

/// What a process, with all its threads and the children it waited for, has taken of the processor. `None` if the
/// system doesn't report it.
#[must_use]
pub fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain anything; the 14th to the 17th are the times.
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks: u64 = rest.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Duration::from_millis(ticks * 1000 / per_second.max(1)))
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

    /// A file that is gone with this value.
    struct Scratch(std::path::PathBuf, File);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kafkaq-xtask-{name}-{}", std::process::id()));
            let file = File::options().create(true).append(true).open(&path).unwrap();
            Self(path, file)
        }

        fn text(&self) -> String {
            fs::read_to_string(&self.0).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn output_is_in_the_file_also_of_a_program_that_fails() {
        let file = Scratch::new("output");
        let mut failing = shell("echo to one; echo to the other >&2; exit 1");
        let ended = run_into(&mut failing, &file.1, Duration::MAX).unwrap();
        assert!(ended.result.is_err());
        assert_eq!(file.text(), "to one\nto the other\n");
    }

    #[test]
    fn leftover_processes_are_killed() {
        let file = Scratch::new("leaving");
        let mut leaving = shell("sleep 1000 >/dev/null & echo $!");
        run_into(&mut leaving, &file.1, Duration::MAX).unwrap().result.unwrap();
        let pid: u32 = file.text().trim().parse().unwrap();
        while crate::services::is_running(pid) {
            thread::sleep(POLL);
        }
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_and_named() {
        let error = run_within(&mut shell("sleep 1000"), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("sleep 1000") && error.contains("was ended"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn cpu_time_includes_children() {
        let file = Scratch::new("cpu");
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done";
        let ended = run_into(&mut shell(busy), &file.1, Duration::MAX).unwrap();
        assert!(ended.cpu > Duration::ZERO && ended.cpu <= ended.took + POLL, "{ended:?}");
        // The last command keeps the shell from replacing itself with its child.
        let child =
            run_into(&mut shell(&format!("sh -c '{busy}'; sleep 0.1")), &file.1, Duration::MAX).unwrap();
        assert!(child.cpu > Duration::ZERO, "{child:?}");
    }

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let mut command = Command::new("cargo");
        command.args(["run", "--", "a b", "it's", ""]).env("NAME", "two words").env_remove("OTHER");
        assert_eq!(shown(&command), r"NAME='two words' cargo run -- 'a b' 'it'\''s' ''");
    }

    #[test]
    fn captured_failure_contains_the_programs_output() {
        let error = capture(&mut shell("echo no such thing >&2; exit 1")).unwrap_err().to_string();
        assert!(error.contains("no such thing"), "{error}");
    }
}
