//! Cores, limits and CPU clocks.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Pins this process, and the threads it will start, to one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    pin_to(&[core])
}

/// Pins this process, and the threads it will start, to some cores.
pub(crate) fn pin_to(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores
        .iter()
        .try_for_each(|core| set.set(*core))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("cannot run on cores {cores:?}"))
}

/// Raises the soft limit of open files to the hard one; server processes inherit it.
pub(crate) fn allow_many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the open file limit")
}

/// The CPU time that this thread has taken.
pub(crate) fn of_this_thread() -> Result<Duration> {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    Ok(clock.now()?.into())
}

/// The CPU clock, user and system, of another process.
///
/// Read from outside, so that measuring costs the server nothing. The kernel brings it up to date
/// whenever the process is switched out and on every timer tick: a reading is at most one tick
/// (1 to 10 ms, by kernel configuration) behind, which is noise without bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuClock(ClockId);

impl CpuClock {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        clock_getcpuclockid(pid)
            .map(Self)
            .with_context(|| format!("no CPU clock for process {pid}"))
    }

    pub(crate) fn read(self) -> Result<Duration> {
        Ok(self
            .0
            .now()
            .context("the server process is gone")?
            .into())
    }
}
