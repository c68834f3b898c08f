# Images as archives that a node imports, made of local binaries. Sourced by lab.

# The filesystem tools of the Dockerfile's packages that Belay calls or that one wants beside it.
TOOLS=(mount umount findmnt losetup blkid lsblk blockdev e2fsck mkfs.ext4 resize2fs tune2fs dumpe2fs mkfs.xfs xfs_repair xfs_growfs
  xfs_logprint xfs_io mkfs.btrfs btrfs)

# The versions whose flags registrar and livenessprobe have.
REGISTRAR_VERSION=${REGISTRAR_VERSION:-v2.17.0}
LIVENESSPROBE_VERSION=${LIVENESSPROBE_VERSION:-v2.19.0}

# images: all but Belay's own, imported by the nodes that are on.
images() {
  images_make
  images_import_everywhere
}

# images_make: those whose parts are newer than they.
images_make() {
  local csi=github.com/kubernetes-csi name module
  mkdir -p "$IMAGES/layers"
  image_of_binary pause:3.10.2 pause pause
  for name in provisioner/v6 attacher/v4 resizer/v2 snapshotter/v8; do
    module=$csi/external-$name name=csi-${name%/*}
    [ ! -x "$BIN/$name" ] || image_of_binary "$name:$(version_of "$module")" "$name" "$name"
  done
  image_of_binary "csi-node-driver-registrar:$REGISTRAR_VERSION" registrar csi-node-driver-registrar
  image_of_binary "livenessprobe:$LIVENESSPROBE_VERSION" livenessprobe livenessprobe
  layer busybox busybox_tree /bin/busybox
  archive busybox:1.37.0-2 null '["sh"]' busybox
  # The tests of Kubernetes want only a shell of these, and of the second a dd with oflag=nocache.
  archive nginx:1.27.0-2 null '["sh"]' busybox
  layer coreutils coreutils_tree "$HERE/lib/images.sh"
  archive glibc-dns-testing:2.1.1 null '["sh"]' busybox coreutils
  if [ -x "$BIN/agnhost" ]; then
    layer_of_binary agnhost agnhost
    archive agnhost:2.66.1 '["/agnhost"]' '["pause"]' busybox agnhost
  fi
}

# image_belay TAG BINARY: Belay with its tools, imported by the nodes that are on.
image_belay() {
  local tag=$1 binary=$2
  [ -x "$binary" ] || die "image: $binary is no program: make build makes bin/belay"
  mkdir -p "$IMAGES/layers"
  layer busybox busybox_tree /bin/busybox
  layer tools tools_tree "$HERE/lib/images.sh"
  layer "belay-$tag" "belay_tree $(printf %q "$binary")" "$binary"
  archive "belay:$tag" '["/usr/bin/belay"]' null busybox tools "belay-$tag"
  images_import_everywhere
}

images_import_everywhere() {
  local node
  for node in $(nodes_on); do images_import "$node"; done
}

# image_of_binary NAME:TAG BINARY PROGRAM: nothing but the one program.
image_of_binary() {
  layer_of_binary "$2" "$3"
  archive "$1" "[\"/$3\"]" null "$2"
}

layer_of_binary() { layer "$1" "binary_tree $1 $2" "$BIN/$1"; }

# layer NAME FILL SOURCE: what FILL puts into a directory, unless the layer is newer than SOURCE.
layer() {
  local out=$IMAGES/layers/$1.tar fill=$2 tree
  [ ! "$out" -nt "$3" ] || return 0
  tree=$(mktemp -d -p "$IMAGES")
  chmod 755 "$tree"
  eval "$fill \"\$tree\""
  tar -C "$tree" --owner=0 --group=0 --mtime=@0 --sort=name -cf "$out.new" .
  rm -rf "$tree"
  mv "$out.new" "$out"
}

binary_tree() { cp "$BIN/$1" "$3/$2"; }

belay_tree() { mkdir -p "$2/usr/bin"; cp "$1" "$2/usr/bin/belay"; }

busybox_tree() {
  local applet
  mkdir -p "$1"/{bin,tmp,etc,root,proc,sys,dev,mnt}
  chmod 1777 "$1/tmp"
  cp /bin/busybox "$1/bin/busybox"
  for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"; done
  echo root:x:0:0:root:/root:/bin/sh >"$1/etc/passwd"
  echo root:x:0: >"$1/etc/group"
}

# programs_tree PROGRAM... DIR: the programs and the libraries they load.
programs_tree() {
  local dir=${*: -1} program path
  need "${@:1:$#-1}"
  for program in "${@:1:$#-1}"; do
    path=$(command -v "$program")
    cp -L --parents "$path" $(ldd "$path" | grep -o '/[^ ]*') "$dir"
  done
}

# coreutils_tree: dd, and a shell that does not take busybox's for it.
coreutils_tree() {
  programs_tree dd dash "$1"
  mkdir -p "$1/bin"
  ln -s "$(command -v dash)" "$1/bin/sh"
}

# tools_tree: what Belay calls, and what that reads.
tools_tree() {
  programs_tree "${TOOLS[@]}" "$1"
  cp --parents /etc/mke2fs.conf "$1"
  ln -s /proc/mounts "$1/etc/mtab"
}

# archive NAME:TAG ENTRYPOINT COMMAND LAYER...: as 'docker save' writes it.
archive() {
  local ref=$REGISTRY/$1 entrypoint=$2 command=$3 out=$IMAGES/${1/:/_}.tar layer layers=() sums=() stale=; shift 3
  for layer in "$@"; do
    [ "$out" -nt "$IMAGES/layers/$layer.tar" ] || stale=yes
    layers+=("\"$layer.tar\"")
  done
  [ "$stale" ] || return 0
  for layer in "$@"; do sums+=("\"sha256:$(sha256sum "$IMAGES/layers/$layer.tar" | cut -d' ' -f1)\""); done
  cat >"$IMAGES/layers/config.json" <<J
{"architecture": "$(go env GOARCH)", "os": "linux",
 "config": {"Entrypoint": $entrypoint, "Cmd": $command, "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
 "rootfs": {"type": "layers", "diff_ids": [$(joined "${sums[@]}")]}}
J
  echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$ref\"], \"Layers\": [$(joined "${layers[@]}")]}]" >"$IMAGES/layers/manifest.json"
  tar -C "$IMAGES/layers" -cf "$out.new" manifest.json config.json "${@/%/.tar}"
  mv "$out.new" "$out"
}

joined() { local IFS=,; echo "$*"; }

# images_import NODE: the archives that it does not have yet.
images_import() {
  local have=$MACHINES/$1/images archive
  mkdir -p "$have"
  for archive in "$IMAGES"/*.tar; do
    [ ! "$have/$(basename "$archive")" -nt "$archive" ] || continue
    in_machine "$1" ctr -n k8s.io images import "$archive" >/dev/null
    touch "$have/$(basename "$archive")"
  done
}
