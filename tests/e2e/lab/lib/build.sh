# The binaries, out of tools/go.mod. Sourced by lab.

KUBERNETES=v1.37.2
DEFAULT_BINARIES=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl csi-provisioner csi-attacher csi-resizer registrar livenessprobe pause)

# deps: the Debian packages, where anything of them is missing.
deps() {
  local program missing=
  for program in containerd runc busybox openssl ip nsenter pgrep /usr/lib/cni/bridge mkfs.ext4 mkfs.xfs mkfs.btrfs; do
    command -v "$program" >/dev/null || missing=yes
  done
  [ "$missing" ] || return 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends containerd runc containernetworking-plugins busybox-static iproute2 util-linux mount \
    procps openssl e2fsprogs xfsprogs btrfs-progs
}

# build [NAME...]: those that are missing of the default set, or the named ones in any case.
build() {
  local name
  mkdir -p "$BIN"
  if [ $# -gt 0 ]; then
    for name in "$@"; do timed "$name" build_one "$name"; done
    return
  fi
  for name in "${DEFAULT_BINARIES[@]}"; do
    [ -x "$BIN/$name" ] || timed "$name" build_one "$name"
  done
}

# build_one NAME. One setting of cgo for all keeps one build cache for all.
build_one() {
  local package
  package=$(package_of "$1")
  if [ "$1" = e2e-storage.test ]; then
    (cd "$HERE/tools" && CGO_ENABLED=0 go test -c -vet=off -ldflags "$(ldflags)" -o "$BIN/$1" "$package")
  else
    (cd "$HERE/tools" && CGO_ENABLED=0 go build -buildvcs=false -ldflags "$(ldflags)" -o "$BIN/$1" "$package")
  fi
}

package_of() {
  local csi=github.com/kubernetes-csi
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    kube* ) echo "k8s.io/kubernetes/cmd/$1" ;;
    csi-provisioner) echo "$csi/external-provisioner/v6/cmd/$1" ;;
    csi-attacher) echo "$csi/external-attacher/v4/cmd/$1" ;;
    csi-resizer) echo "$csi/external-resizer/v2/cmd/$1" ;;
    csi-snapshotter | snapshot-controller) echo "$csi/external-snapshotter/v8/cmd/$1" ;;
    agnhost) echo k8s.io/kubernetes/test/images/agnhost ;;
    ginkgo) echo github.com/onsi/ginkgo/v2/ginkgo ;;
    e2e-storage.test) echo ./e2estorage ;;
    registrar | livenessprobe | pause | sshd | summary) echo "./$1" ;;
    *) die "no such binary: $1" ;;
  esac
}

# Without its version, Kubernetes calls itself v0.0.0.
ldflags() {
  local base=k8s.io/component-base/version client=k8s.io/client-go/pkg/version minor=${KUBERNETES#v1.}
  echo "-s -w -X $base.gitVersion=$KUBERNETES -X $base.gitMajor=1 -X $base.gitMinor=${minor%%.*} -X $base.gitTreeState=clean -X $client.gitVersion=$KUBERNETES"
}

# version_of MODULE: as go.mod has it.
version_of() { (cd "$HERE/tools" && go list -mod=readonly -m -f '{{.Version}}' "$1"); }
