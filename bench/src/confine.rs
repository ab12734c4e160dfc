//! One processor for this program, what it starts, and the kernel's threads that work for them.
//!
//! Where a program and the kernel's worker that serves its ring run is the scheduler's choice, and decides
//! more than anything either side does: a read of a file in memory takes 9 µs if both share a processor,
//! and 40 to 70 µs on a virtual machine if each read wakes another processor from its idle state. A
//! thread's affinity does not bind the ring's workers; a cpuset does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the group that is made.
const NAME: &str = "sluice-bench";

/// The cpuset of one processor that this process is in until this is dropped.
#[derive(Debug)]
pub struct Confined {
    group: PathBuf,
    /// Where the process came from.
    home: PathBuf,
}

impl Confined {
    /// Moves this process to the first processor that it may use.
    ///
    /// # Errors
    /// There is no cpuset controller (cgroup 1 or 2), or its groups can't be changed: one must be root.
    pub fn to_one_processor() -> io::Result<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup")?;
        let hierarchy = Hierarchy::find(&membership, Path::new("/sys/fs/cgroup"))
            .ok_or_else(|| io::Error::other("no cpuset controller is mounted"))?;
        let parent = hierarchy.group.parent_for_new();
        if hierarchy.unified {
            fs::write(parent.join("cgroup.subtree_control"), "+cpuset")?;
        }
        let group = parent.join(NAME);
        if let Err(error) = fs::create_dir(&group)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let first = |file: &str| -> io::Result<String> {
            let all = fs::read_to_string(parent.join(file))?;
            let end = all.find(['-', ',', '\n']).unwrap_or(all.len());
            Ok(all[..end].to_owned())
        };
        let suffix = if hierarchy.unified { ".effective" } else { "" };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(group.join(file), first(&format!("{file}{suffix}"))?)?;
        }
        let confined = Self {
            group,
            home: hierarchy.group.0,
        };
        join(&confined.group)?;
        Ok(confined)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let left = join(&self.home).and_then(|()| fs::remove_dir(&self.group));
        if let Err(error) = left {
            eprintln!("can't remove {}: {error}", self.group.display());
        }
    }
}

fn join(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

/// A cgroup's directory.
#[derive(Debug, PartialEq, Eq)]
struct Group(PathBuf);

impl Group {
    /// Where a group for this process can be made: beside its own, as a group of cgroup 2 that has
    /// processes can have no children with controllers.
    fn parent_for_new(&self) -> PathBuf {
        match self.0.parent() {
            Some(parent) if parent.join("cgroup.procs").exists() => parent.to_owned(),
            _ => self.0.clone(),
        }
    }
}

/// The hierarchy that has cpusets, and this process's group in it.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    group: Group,
    unified: bool,
}

impl Hierarchy {
    /// Finds it by the contents of `/proc/self/cgroup` (cgroups(7)) below the place where groups
    /// are mounted.
    fn find(membership: &str, mounts: &Path) -> Option<Self> {
        let lines = membership.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        });
        let mut unified = None;
        for (controllers, path) in lines {
            let path = path.trim_start_matches('/');
            if controllers.split(',').any(|name| name == "cpuset") {
                return Some(Self {
                    group: Group(mounts.join("cpuset").join(path)),
                    unified: false,
                });
            }
            if controllers.is_empty() {
                unified = Some(mounts.join(path));
            }
        }
        let group = unified?;
        let controllers = fs::read_to_string(group.join("cgroup.controllers")).ok()?;
        let has = controllers.split_whitespace().any(|name| name == "cpuset");
        has.then_some(Self {
            group: Group(group),
            unified: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_hierarchy_is_found_by_its_name() {
        let membership = "9:name=systemd:/\n3:cpuset:/a/b\n1:cpu,cpuacct:/\n0::/\n";
        let found = Hierarchy::find(membership, Path::new("/groups")).unwrap();
        let group = Group(PathBuf::from("/groups/cpuset/a/b"));
        let unified = false;
        assert_eq!(found, Hierarchy { group, unified });
    }

    #[test]
    fn the_newer_one_has_it_if_it_says_so() {
        let mounts = tempfile::tempdir().unwrap();
        let group = mounts.path().join("user");
        fs::create_dir(&group).unwrap();
        let find = || Hierarchy::find("0::/user\n", mounts.path());
        assert_eq!(find(), None);
        fs::write(group.join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(find(), None);
        fs::write(group.join("cgroup.controllers"), "cpuset cpu\n").unwrap();
        let found = find().unwrap();
        assert_eq!((found.group.0, found.unified), (group, true));
    }

    #[test]
    fn a_group_is_made_beside_ones_own_or_in_the_root() {
        let mounts = tempfile::tempdir().unwrap();
        let root = mounts.path().join("cpuset");
        let own = root.join("own");
        fs::create_dir_all(&own).unwrap();
        fs::write(root.join("cgroup.procs"), "").unwrap();
        assert_eq!(Group(own).parent_for_new(), root);
        assert_eq!(Group(root.clone()).parent_for_new(), root);
    }
}
