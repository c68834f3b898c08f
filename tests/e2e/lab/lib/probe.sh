# What this machine allows. Sourced by lab.

# can: says what is missing for a cluster here, and fails then. It takes a second and leaves nothing.
can() {
  local scratch group
  check
  unshare --mount --pid --uts --ipc --net --fork true || die "namespaces cannot be made here"
  scratch=$(mktemp -d)
  mkdir "$scratch"/{lower,upper,work,merged}
  # Of the mount only this shell's child knows.
  unshare --mount mount -t overlay probe -o "lowerdir=$scratch/lower,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/merged" ||
    die "overlay filesystems cannot be mounted here"
  rm -rf "$scratch"
  for group in /sys/fs/cgroup /sys/fs/cgroup/memory; do
    [ ! -e "$group/cgroup.procs" ] || { mkdir "$group/$LAB_NAME-probe" && rmdir "$group/$LAB_NAME-probe"; } || die "control groups cannot be made below $group"
  done
  [ -e /sys/fs/cgroup/cgroup.procs ] || [ -e /sys/fs/cgroup/memory/cgroup.procs ] || die "no control groups here"
  [ -e /dev/fuse ] && [ -e /dev/loop-control ] || die "no FUSE or loop devices here"
}
