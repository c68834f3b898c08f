# Names and places of the lab, and the machines that it is made of. Sourced by lab.

ROOT=$(cd "$HERE/../../.." && pwd)    # of the project
LAB_DIR=$(realpath -m "${LAB_DIR:-$ROOT/out/lab}") # everything that the lab makes lies below it
LAB_NAME=${LAB_NAME:-belaylab}        # of network namespaces and cgroups: another name is another cluster beside this one
REGISTRY=lab.local                    # no registry: images are imported, and never pulled
NODES_MAX=4

BIN=$LAB_DIR/bin IMAGES=$LAB_DIR/images PKI=$LAB_DIR/pki LOG=$LAB_DIR/log MACHINES=$LAB_DIR/machines
ADMIN=$PKI/admin.kubeconfig

NET=10.77.0          # machines: .1 is the control plane, .1N is node nN
POD_NET=10.88        # pods of node nN: 10.88.N.0/24
SERVICE_NET=10.96.0.0/16
API_IP=10.96.0.1     # the Service kubernetes.default

die() { echo "lab: $*" >&2; exit 1; }

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || die "timed out: $*"
    sleep 0.2
  done
}

# timed WHAT COMMAND...: runs it and says how long it took.
timed() {
  local what=$1 start=$EPOCHREALTIME; shift
  "$@"
  awk -v what="$what" -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%s after %.1f s\n", what, b - a }'
}

# need PROGRAM...: says which are missing.
need() {
  local program missing=()
  for program in "$@"; do command -v "$program" >/dev/null || missing+=("$program"); done
  [ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]}; lab deps installs them on Debian"
}

# A machine is one set of namespaces (mount, pid, net, uts, ipc) with a first process, a /run in memory, and a /var/lib and a /var/log
# of its own, which outlive it. It ends when its first process is killed, everything in it at once: a power cut.

netns_of() { echo "$LAB_NAME-$1"; }

# in_netns MACHINE COMMAND...: in its network, with the files of this machine.
in_netns() {
  local machine=$1; shift
  nsenter --net="/run/netns/$(netns_of "$machine")" -- "$@"
}

# init_of MACHINE: the number of its first process. Fails where it is off: the number may be another process's by now.
init_of() {
  local pid
  pid=$(cat "$MACHINES/$1/init.pid" 2>/dev/null) || return 1
  [ "/proc/$pid/ns/net" -ef "/run/netns/$(netns_of "$1")" ] && echo "$pid"
}

# in_machine MACHINE COMMAND...: as a process of it.
in_machine() {
  local machine=$1 pid; shift
  pid=$(init_of "$machine") || die "$machine is off"
  nsenter -t "$pid" -m -p -n -u -i -- "$@"
}

# machine_on MACHINE: its network namespace must be there.
machine_on() {
  local dir=$MACHINES/$1 parent
  ! init_of "$1" >/dev/null || die "$1 is on"
  mkdir -p "$dir"/var-lib "$dir"/var-log "$LOG"
  rm -f "$dir/ready"
  nsenter --net="/run/netns/$(netns_of "$1")" -- setsid unshare --mount --pid --uts --ipc --fork --kill-child --propagation private \
    "$HERE/lib/init.sh" "$1" "$dir" "$BIN/pause" >"$LOG/$1.log" 2>&1 </dev/null &
  parent=$!
  wait_for 10 test -e "$dir/ready"
  pgrep -P "$parent" >"$dir/init.pid"
}

# machine_off MACHINE: a power cut. Nothing is said to anybody; what it wrote to its files stays, its devices go.
machine_off() {
  local pid
  pid=$(init_of "$1") || return 0
  kill -KILL "$pid"
  wait_for 60 test ! -e "/proc/$pid"
  rm -f "$MACHINES/$1/init.pid"
}

# daemon MACHINE NAME COMMAND...: in the background, with a log of its own.
daemon() {
  local machine=$1 name=$2; shift 2
  in_machine "$machine" "$HERE/lib/sbin/systemctl" run "$name" "$LOG/$machine-$name.log" "$@"
}

# daemon_stop MACHINE NAME: asks it to end, and kills it after ten seconds.
daemon_stop() { in_machine "$1" "$HERE/lib/sbin/systemctl" stop "$2"; }

# daemon_kill MACHINE NAME: without a word.
daemon_kill() { in_machine "$1" "$HERE/lib/sbin/systemctl" kill "$2"; }

# kube ARGUMENTS...: kubectl as the cluster's administrator.
kube() { in_netns cp "$BIN/kubectl" --kubeconfig "$ADMIN" "$@"; }
