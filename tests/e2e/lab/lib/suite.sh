# External.Storage, the tests of Kubernetes for storage drivers. Sourced by lab.

E2E=$(dirname "$HERE")
DRIVER=$E2E/testdriver.yaml SKIP=$E2E/storage-suite.skip SKIP_EXT4=$E2E/storage-suite.no-sys-resource.skip
SUITE=$LAB_DIR/storage-suite
PROCS=${PROCS:-2} # tests that run at a time

# storage_suite [FOCUS [FLAG...]]: the tests that FOCUS matches, a regular expression, against the driver of testdriver.yaml; without one, all
# of them but those of storage-suite*.skip. What each came to, and what they left behind, is in storage-suite/storage-suite.txt.
storage_suite() {
  local status=0
  suite_prepare
  if [ $# -gt 0 ]; then
    suite_run chosen "$DRIVER" --focus="$1" "${@:2}" || status=1
  else
    suite_whole || status=1
  fi
  suite_summary || status=1
  return $status
}

# suite_whole: what harms the rest of the cluster goes last, one at a time.
suite_whole() {
  local status=0
  suite_run together "$DRIVER" --focus='External.Storage' --skip='\[Disruptive\]|support volume limits' --skip="$(suite_skipped)" || status=1
  can_grow_ext4 || suite_with_xfs || status=1
  suite_of_limits || status=1
  PROCS=1 suite_run disruptive "$DRIVER" --focus='External.Storage.*\[Disruptive\]' --skip="$(suite_skipped)" || status=1
  return $status
}

# suite_with_xfs: the tests that ext4 cannot pass here, with xfs as the default filesystem.
suite_with_xfs() {
  local status=0
  kube apply -f "$E2E/storage-class-xfs.yaml"
  sed 's/FromExistingClassName: .*/FromExistingClassName: belay-suite-xfs/' "$DRIVER" >"$SUITE/xfs.yaml"
  suite_run xfs "$SUITE/xfs.yaml" --focus="External.Storage.*($(suite_patterns "$SKIP_EXT4"))" || status=1
  kube delete -f "$E2E/storage-class-xfs.yaml"
  return $status
}

# suite_of_limits: as many volumes on a node as Belay promises. Space is not promised twice, so they are small.
suite_of_limits() {
  sed 's/{Min: [^,]*/{Min: 64Mi/' "$DRIVER" >"$SUITE/small.yaml"
  suite_run limits "$SUITE/small.yaml" --focus='External.Storage.*should support volume limits'
}

suite_patterns() { "$BIN/summary" -patterns -skips "$1" | paste -sd'|'; }

# skip_files: those that hold on this machine.
skip_files() {
  echo "$SKIP"
  can_grow_ext4 || echo "$SKIP_EXT4"
}

suite_skipped() { for file in $(skip_files); do suite_patterns "$file"; done | paste -sd'|'; }

# can_grow_ext4: the kernel wants CAP_SYS_RESOURCE of whoever grows an ext4 that is mounted.
can_grow_ext4() { [ $((0x$(awk '/^CapBnd/ { print $2 }' /proc/self/status) >> 24 & 1)) = 1 ]; }

# suite_prepare: what is missing of the tests is built, the first time.
suite_prepare() {
  local name
  for name in e2e-storage.test ginkgo agnhost sshd summary; do [ -x "$BIN/$name" ] || build "$name"; done
  images
  rm -rf "$SUITE"
  mkdir -p "$SUITE"
  image_registries >"$SUITE/registries.yaml"
  for name in $(nodes_on); do suite_door "$name"; done
}

# suite_door MACHINE: the tests come to a node by ssh, or enter it from a pod, and find a systemctl and a crictl there.
suite_door() {
  [ -e "$PKI/ssh.key" ] || openssl genpkey -algorithm RSA -out "$PKI/ssh.key" 2>/dev/null
  in_machine "$1" mountpoint -q /usr/local/bin || in_machine "$1" mount --bind "$HERE/lib/sbin" /usr/local/bin
  daemon_stop "$1" sshd
  daemon "$1" sshd env PATH="/usr/local/bin:$PATH" "$BIN/sshd" -key "$PKI/ssh.key"
}

# suite_run NAME DRIVER FLAG...: a run against the driver of that file, with its report in NAME.xml.
suite_run() {
  local name=$1 driver=$2; shift 2
  (cd "$SUITE" && in_netns cp env KUBE_TEST_REPO_LIST="$SUITE/registries.yaml" KUBE_SSH_USER=root KUBE_SSH_KEY_PATH="$PKI/ssh.key" \
    "$BIN/ginkgo" --procs="$PROCS" --no-color --timeout=3h -v --junit-report="$name.xml" --output-dir="$SUITE" "$@" "$BIN/e2e-storage.test" -- \
    --kubeconfig="$ADMIN" --provider=local --kubectl-path="$BIN/kubectl" -storage.testdriver="$driver" \
    --delete-namespace-on-failure=true --allowed-not-ready-nodes=10 --num-nodes=-1)
}

# image_registries: every registry that the tests know is the local one.
image_registries() {
  local name
  for name in promoterE2eRegistry gcRegistry buildImageRegistry gcEtcdRegistry sigStorageRegistry dockerLibraryRegistry; do
    echo "$name: $REGISTRY"
  done
}

# suite_summary: fails where a test left something behind.
suite_summary() {
  local file=$SUITE/storage-suite.txt left
  "$BIN/summary" -title "Kubernetes $KUBERNETES, External.Storage" $(skip_files | sed 's/^/-skips /') "$SUITE"/*.xml >"$file"
  left=$(suite_left_after 60) || left="not known: the cluster does not answer"
  printf '\nleft behind: %s\n' "${left:-nothing}" >>"$file"
  sed -n '1p;/^failed/,/^$/p;/^left/,$p' "$file"
  [ -z "$left" ]
}

# suite_left_after SECONDS: what is still left behind then. Fails where that cannot be known.
suite_left_after() {
  local deadline=$((SECONDS + $1)) left
  while left=$(suite_left) && [ -n "$left" ] && [ $SECONDS -lt $deadline ]; do sleep 1; done
  echo "$left"
  suite_asked
}

# suite_asked: the cluster answers.
suite_asked() { kube get persistentvolumes,volumeattachments -o name >/dev/null; }

# suite_left: volumes in the API; on each node mounts, engines and files; and devices without a server, where they cannot be another lab's.
suite_left() {
  local node device
  kube get persistentvolumes,volumeattachments -o name
  for node in $(nodes_on); do
    in_machine "$node" sed -n "s#.* \(/[^ ]*/csi.belay.storage/[^ ]*\) .*#$node: mount \1#p" /proc/self/mountinfo
    in_machine "$node" pgrep -af '^belay engine ' | sed "s/^/$node: /"
    in_machine "$node" find /var/lib/belay/stores -mindepth 3 -maxdepth 3 '(' -path '*/volumes/*' -o -path '*/incoming/*' -o -path '*/trash/*' ')' | sed "s/^/$node: /"
  done
  ! other_labs || return 0
  for device in $(losetup -nlO NAME,BACK-FILE | awk '$2 == "/" { print $1 }'); do
    ! device_dead "$device" || echo "device without a server: $device"
  done
}

other_labs() { ip netns list | awk '{ print $1 }' | grep -v "^$LAB_NAME-" | grep -q -- '-cp$'; }
