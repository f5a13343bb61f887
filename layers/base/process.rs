//! What the process takes of what it may take: descriptors and memory, as the kernel counts them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::{
    io::Errno,
    param::page_size,
    process::{Resource, getrlimit},
};

/// How many descriptors this process has open. Reads a directory, so not for a hot path.
///
/// # Errors
///
/// `/proc` is not there, or no descriptor is left to read it.
pub fn open_descriptors() -> io::Result<usize> {
    // The directory's own descriptor is one of those counted.
    Ok(fs::read_dir("/proc/self/fd")?
        .count()
        .saturating_sub(1))
}

/// How many it may have; `None` for any number.
pub(crate) fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Whether `error` says that there is no descriptor left, in this process or in the system.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Reads how much memory the process has in use. Stays open, so that it needs no descriptor when there is none.
#[derive(Debug)]
pub(crate) struct ResidentMemory {
    statm: File,
}

impl ResidentMemory {
    pub(crate) fn open() -> io::Result<Self> {
        let this = Self {
            statm: File::open("/proc/self/statm")?,
        };
        this.bytes()?;
        Ok(this)
    }

    /// Resident bytes.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        // Seven numbers, of which the second is meant.
        let mut text = [0; 7 * 21];
        let length = self.statm.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let pages = text.split(' ').nth(1);
        let pages: u64 = pages
            .and_then(|pages| pages.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(pages.saturating_mul(page_size() as u64))
    }
}

/// The memory limit of the control group that the process is in, or of one around it; `None` without.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_in(Path::new("/sys/fs/cgroup"), &groups)
}

/// The least limit of all groups that `groups`, the text of `/proc/self/cgroup`, puts the process in.
fn limit_in(mount: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (mount, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers
                .split(',')
                .any(|one| one == "memory") =>
            {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // Inside a container the path may lead nowhere, and the mount itself is the group.
        let path = Path::new(path.trim_start_matches('/'));
        let around = path.ancestors();
        around
            .filter_map(|group| {
                let limit = fs::read_to_string(mount.join(group).join(file)).ok()?;
                let limit = limit.trim().parse::<u64>().ok()?;
                (limit < NO_LIMIT).then_some(limit)
            })
            .min()
    });
    limits.min()
}

/// The first kind of groups says "none" with the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    #[test]
    fn the_least_limit_around_a_process_is_found_in_either_kind_of_groups() {
        let mount = env::temp_dir().join(format!("tower-net-cgroups-{}", process::id()));
        for (file, limit) in [
            ("a/memory.max", "4096\n"),
            ("a/b/memory.max", "max\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/c/memory.limit_in_bytes", "8192\n"),
        ] {
            let file = mount.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, limit).unwrap();
        }

        assert_eq!(limit_in(&mount, "0::/a/b\n"), Some(4096));
        assert_eq!(limit_in(&mount, "0::/\n"), None);
        assert_eq!(limit_in(&mount, "4:cpu:/c\n3:memory:/c/gone\n"), Some(8192));
        assert_eq!(limit_in(&mount, "3:memory:/\n0::/a\n"), Some(4096));
        assert_eq!(limit_in(&mount, "2:cpuset,cpu:/c\n"), None);
        fs::remove_dir_all(&mount).unwrap();
    }

    #[test]
    fn resident_memory_is_less_than_the_machine_has_and_more_than_a_page() {
        let bytes = ResidentMemory::open()
            .unwrap()
            .bytes()
            .unwrap();

        assert!((64 << 10..1 << 40).contains(&bytes), "{bytes}");
    }
}
