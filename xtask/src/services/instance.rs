//! One running server: a process, or a container. It is identified by more than a process id, which the system may
//! reuse, so no other process is ever ended by mistake.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::container::Container;
use super::{POLL, STOP_LIMIT};

/// How long the system may take to end a process that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instance {
    Process(Process),
    Container(Container),
}

/// A process id with the moment it began, in clock ticks since the machine's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    began: u64,
}

impl Instance {
    pub(super) fn spawn(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_owned();
        // Never waited for by this handle: `Process::is_running` reaps it.
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self::Process(Process::of(child.id())?))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Process(process) => process.pid.try_into().ok(),
            Self::Container(_) => None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        match self {
            Self::Process(process) => process.is_running(),
            Self::Container(container) => container.is_running(),
        }
    }

    /// Asks it to end, and kills it when it takes longer than `limit`.
    pub(super) fn stop(&self, limit: Duration) -> Result<()> {
        match self {
            Self::Process(process) => {
                process.signal(Signal::SIGTERM)?;
                // A stopped process only notices once it runs again.
                process.signal(Signal::SIGCONT)?;
                if process.ends_within(limit) { Ok(()) } else { self.kill() }
            }
            Self::Container(container) => container.stop(limit),
        }
    }

    pub(super) fn kill(&self) -> Result<()> {
        match self {
            Self::Process(process) => {
                process.signal(Signal::SIGKILL)?;
                ensure!(process.ends_within(KILL_LIMIT), "process {} outlived SIGKILL", process.pid);
                Ok(())
            }
            Self::Container(container) => container.kill(),
        }
    }

    pub(super) fn pause(&self) -> Result<()> {
        match self {
            Self::Process(process) => process.pause(),
            Self::Container(container) => container.pause(),
        }
    }

    pub(super) fn resume(&self) -> Result<()> {
        match self {
            Self::Process(process) => process.signal(Signal::SIGCONT),
            Self::Container(container) => container.resume(),
        }
    }
}

impl Process {
    fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        let Found { began, .. } = look_up(pid).with_context(|| {
            format!("process {pid} is not in /proc (native servers need Linux; elsewhere start Docker)")
        })?;
        Ok(Self { pid, began })
    }

    fn is_running(self) -> bool {
        let Some(found) = look_up(self.pid).filter(|found| found.began == self.began) else { return false };
        // Its first thread may be dead while others still hold its ports.
        if found.state != 'Z' || found.threads > 1 {
            return true;
        }
        // Reaps it if it is our child; otherwise that is its parent's business.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        false
    }

    /// Sends a signal. Does nothing if the process no longer exists or its id was reused.
    fn signal(self, signal: Signal) -> Result<()> {
        if self.is_running() {
            kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {}", self.pid))?;
        }
        Ok(())
    }

    /// Returns when none of its threads runs any more: on a loaded machine that is a while after the signal.
    fn pause(self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let since = Instant::now();
        while self.is_running() && !has_stopped(self.pid) {
            ensure!(since.elapsed() < STOP_LIMIT, "process {} continues after SIGSTOP", self.pid);
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn ends_within(self, limit: Duration) -> bool {
        let since = Instant::now();
        while self.is_running() {
            if since.elapsed() > limit {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }
}

/// Whether each thread of a process is stopped.
fn has_stopped(pid: i32) -> bool {
    let stopped = |thread: fs::DirEntry| {
        // One that has ended meanwhile doesn't run either.
        read_stat(&thread.path()).is_none_or(|found| matches!(found.state, 'T' | 't' | 'X' | 'Z'))
    };
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.flatten().all(stopped))
}

/// What the system reports about a process or a thread.
struct Found {
    state: char,
    threads: u32,
    began: u64,
}

fn look_up(pid: i32) -> Option<Found> {
    read_stat(Path::new(&format!("/proc/{pid}")))
}

/// Reads the 3rd, the 20th and the 22nd field of the file `stat` in a folder of `/proc`.
fn read_stat(folder: &Path) -> Option<Found> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The second is the name in parentheses, which may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split(' ').collect();
    let field = |number: usize| fields.get(number - 3);
    Some(Found {
        state: field(3)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        began: field(22)?.parse().ok()?,
    })
}

/// Whether any process has this number now.
#[cfg(test)]
pub(crate) fn is_running(pid: u32) -> bool {
    Process::of(pid).is_ok_and(Process::is_running)
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(Process { pid, began }) => write!(f, "process {pid} began {began}"),
            Self::Container(container) => write!(f, "container {}", container.id()),
        }
    }
}

impl FromStr for Instance {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["process", pid, "began", began] => {
                Ok(Self::Process(Process { pid: pid.parse()?, began: began.parse()? }))
            }
            ["container", id] => Ok(Self::Container(Container::known(id)?)),
            _ => Err(anyhow!("not a server's state: {text}")),
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn sleeper() -> Instance {
        // Not to our output, so that readers of that don't wait for it.
        Instance::spawn(Command::new("sleep").arg("100").stdout(Stdio::null()).stderr(Stdio::null())).unwrap()
    }

    fn state(instance: &Instance) -> Option<char> {
        look_up(instance.pid().unwrap().try_into().unwrap()).map(|found| found.state)
    }

    #[test]
    fn an_instance_survives_being_written_and_read() {
        let process = sleeper();
        assert_eq!(process.to_string().parse::<Instance>().unwrap(), process);
        process.kill().unwrap();
        #[cfg(feature = "containers")]
        assert_eq!("container 0123abc".parse::<Instance>().unwrap().to_string(), "container 0123abc");
        "process 12".parse::<Instance>().unwrap_err();
    }

    #[test]
    fn a_killed_process_is_not_running_and_not_left_as_a_zombie() {
        let instance = sleeper();
        assert!(instance.is_running());
        instance.kill().unwrap();
        assert!(!instance.is_running());
        assert_eq!(state(&instance), None);
    }

    #[test]
    fn a_process_that_took_over_the_number_is_left_alone() {
        let instance = sleeper();
        let Process { pid, began } = match &instance {
            Instance::Process(process) => *process,
            Instance::Container(_) => unreachable!(),
        };
        let earlier = Instance::Process(Process { pid, began: began - 1 });
        assert!(!earlier.is_running());
        earlier.stop(Duration::ZERO).unwrap();
        earlier.kill().unwrap();
        assert!(instance.is_running());
        instance.kill().unwrap();
    }

    #[test]
    fn a_paused_process_still_runs_and_can_be_stopped() {
        let instance = sleeper();
        instance.pause().unwrap();
        assert_eq!(state(&instance), Some('T'));
        assert!(instance.is_running());
        let since = Instant::now();
        let limit = Duration::from_secs(60);
        instance.stop(limit).unwrap();
        assert!(!instance.is_running());
        assert!(since.elapsed() < limit, "it had to be killed");
    }
}
