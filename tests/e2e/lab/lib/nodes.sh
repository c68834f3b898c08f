# Nodes: containerd and kubelet on a machine of their own, and what can happen to them. Sourced by lab.

nodes_on() {
  local i
  for i in $(seq $NODES_MAX); do
    if init_of "n$i" >/dev/null; then echo "n$i"; fi
  done
}

# node_network N: a leg on the control plane's bridge, and the ways to the pods of all nodes.
node_network() {
  local node=n$1 i
  ip netns list | grep -qw "$(netns_of "$node")" && return
  ip netns add "$(netns_of "$node")"
  in_netns cp ip link add "v$node" type veth peer name eth0 netns "/run/netns/$(netns_of "$node")"
  in_netns cp ip link set "v$node" master br0 up
  in_netns "$node" ip link set lo up
  in_netns "$node" ip addr add "$NET.1$1/24" dev eth0
  in_netns "$node" ip link set eth0 up
  in_netns "$node" ip route add default via "$NET.1"
  in_netns "$node" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  for i in $(seq $NODES_MAX); do
    [ "$i" = "$1" ] || in_netns "$node" ip route add "$POD_NET.$i.0/24" via "$NET.1$i"
  done
  in_netns cp ip route replace "$POD_NET.$1.0/24" via "$NET.1$1"
}

# node_config N: what containerd and kubelet read.
node_config() {
  local dir=$MACHINES/n$1
  mkdir -p "$dir/cni" "$dir"/var-lib/{kubelet,containerd,belay/stores/{a,b,c}} "$dir"/var-log/{pods,containers}
  : >"$dir/resolv.conf" # there is no DNS
  container_spec >"$dir/container.json"
  cat >"$dir/containerd.toml" <<T
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$REGISTRY/pause:3.10.2"
  disable_apparmor = true
  restrict_oom_score_adj = true # a score cannot be lowered without CAP_SYS_RESOURCE, which not every machine has
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "$dir/container.json"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
T
  cat >"$dir/cni/10-lab.conflist" <<T
{"cniVersion": "0.4.0", "name": "lab", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
  "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "$POD_NET.$1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
T
  cat >"$dir/kubelet.yaml" <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$LAB_NAME/n$1
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$PKI/ca.crt"}}
authorization: {mode: Webhook}
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 8
resolvConf: "$dir/resolv.conf"
podLogsDir: /var/log/pods
volumePluginDir: /var/lib/kubelet/volume-plugins
T
}

# container_spec: what every container has, and a hook that gives it the boot ID of its machine. It runs in the container's own mounts,
# in its root, before that becomes the root.
container_spec() {
  ctr oci spec | sed '1s#{#{"hooks": {"createContainer": [{"path": "/bin/mount", "args": ["mount", "--bind", "/run/boot_id", "proc/sys/kernel/random/boot_id"]}]},#'
}

# node N: makes it, or switches it on again with what was on its disk; then it is Ready.
node() {
  local node=n$1 since
  since=$(date -u +%FT%T)
  if [ ! -e "$MACHINES/$node/containerd.toml" ]; then
    node_network "$1"
    node_config "$1"
  fi
  cgroup_make "$node"
  machine_on "$node"
  daemon "$node" containerd containerd -c "$MACHINES/$node/containerd.toml"
  wait_for 30 in_machine "$node" ctr version
  images_import "$node"
  kubelet_start "$1"
  wait_for 120 node_ready_since "$node" "$since"
}

# node_ready_since NODE TIME: its kubelet has said so after TIME.
node_ready_since() {
  local status heartbeat
  read -r status heartbeat < <(kube get node "$1" -o 'jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{"\n"}{end}')
  [ "$status" = True ] && [[ $heartbeat > $2 ]]
}

kubelet_start() {
  daemon "n$1" kubelet "$BIN/kubelet" --config="$MACHINES/n$1/kubelet.yaml" --kubeconfig="$PKI/n$1.kubeconfig" \
    --hostname-override="n$1" --node-ip="$NET.1$1" --root-dir=/var/lib/kubelet -v=2
}

kubelet_stop() { daemon_stop "n$1" kubelet; }

# power_off N: its memory, its processes and its devices are gone; its disk stays, and the cluster is told nothing.
power_off() {
  machine_off "n$1"
  devices_remove_dead
  wait_for 30 cgroups_remove "n$1"
}

# network_cut N: neither the control plane nor other nodes reach it, nor it them.
network_cut() { in_netns cp ip link set "vn$1" down; }

network_heal() { in_netns cp ip link set "vn$1" up; }

# devices_remove_dead: loop devices are this kernel's and outlive the machine that made them: Belay's own (their file is the root of a
# mount without a place) and those that a kubelet laid over them for raw block volumes, which answer from memory for a while.
devices_remove_dead() {
  local device above
  for device in $(losetup -nlO NAME,BACK-FILE | awk '$2 == "/" { print $1 }'); do
    device_dead "$device" || continue
    for above in $(devices_above "$device"); do device_remove "$above"; done
    device_remove "$device"
  done
}

# devices_above DEVICE: the loop devices whose file is its node.
devices_above() {
  losetup -nlO NAME,BACK-INO,BACK-MAJ:MIN |
    awk -v inode="$(stat -c %i "$1")" -v dev="$(mountpoint -d /dev)" '$2 == inode && $3 == dev { print $1 }'
}

# device_remove DEVICE: it may go by itself with what was above it.
device_remove() { losetup -d "$1" 2>/dev/null || ! losetup "$1" >/dev/null 2>&1; }

# device_dead DEVICE: whoever served it is gone for good, so that reading fails at once. One whose server is only away lets the reader
# wait; that reader is left alone and ends with its answer.
device_dead() {
  local reader i
  dd if="$1" of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null &
  reader=$!
  for i in {1..20}; do
    if ! kill -0 "$reader" 2>/dev/null; then
      ! wait "$reader"
      return
    fi
    sleep 0.1
  done
  return 1
}
