# Each node's pods hang below /LAB_NAME/nN of every cgroup hierarchy. Sourced by lab.

# cgroup_make NODE
cgroup_make() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    cgroup_make_unified "$1"
  else
    cgroup_make_each "$1"
  fi
}

# cgroup_make_unified: version 2. A group passes on only what it is told to.
cgroup_make_unified() {
  local dir controller
  mkdir -p "/sys/fs/cgroup/$LAB_NAME/$1"
  for dir in /sys/fs/cgroup "/sys/fs/cgroup/$LAB_NAME"; do
    for controller in $(cat "$dir/cgroup.controllers"); do echo "+$controller" >"$dir/cgroup.subtree_control"; done
  done
}

# cgroup_make_each: version 1. A new cpuset has no CPU and no memory.
cgroup_make_each() {
  local hierarchy dir file
  for hierarchy in cpu cpuacct cpuset memory devices freezer blkio pids systemd hugetlb net_cls net_prio perf_event; do
    [ ! -d "/sys/fs/cgroup/$hierarchy" ] || mkdir -p "/sys/fs/cgroup/$hierarchy/$LAB_NAME/$1"
  done
  for dir in "$LAB_NAME" "$LAB_NAME/$1"; do
    for file in cpuset.cpus cpuset.mems; do
      cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$dir/$file"
    done
  done
}

# cgroups_remove [NODE]: of the node, or of the whole lab, when nothing runs in them any more. Groups that outlived a power cut would cost
# the next kubelet three seconds each.
cgroups_remove() {
  local group=$LAB_NAME${1:+/$1} top
  for top in /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group"; do
    [ ! -d "$top" ] || find "$top" -depth -type d -exec rmdir {} + || return 1
  done
}
