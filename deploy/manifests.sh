#!/usr/bin/env bash
# manifests.sh render   writes what deploy/kubernetes has from the chart
# manifests.sh check    renders again and compares; the chart, and what the overlays make of it, must be the same
# HELM and KUSTOMIZE may name programs; the default for HELM is built from deploy/tools, which takes minutes the first time.
set -euo pipefail
cd "$(dirname "$0")"
export CGO_ENABLED=0
chart=charts/belay
into=kubernetes
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

helm() {
  if [ -n "${HELM:-}" ]; then "$HELM" "$@"; else go -C tools tool helm "$@"; fi
}
kustomize() { ${KUSTOMIZE:-kubectl kustomize} "$@"; }

# template DIR ARGS...: what the chart makes, one file for each of its templates, in DIR
template() {
  local dir=$1; shift
  helm template belay "$PWD/$chart" --namespace belay-system --output-dir "$work/out" "$@" >/dev/null
  mkdir -p "$dir"
  for f in "$work"/out/belay/templates/*.yaml; do
    { echo '# Rendered from deploy/charts/belay by `make manifests`: change it there.'; grep -v '^# Source: ' "$f"; } >"$dir/${f##*/}"
  done
  rm -rf "$work/out"
}

# render ROOT: everything that is rendered, below ROOT
render() {
  template "$1/base" --values "$PWD/$into/base.values.yaml"
  template "$work/all" --set restartOnDeviceLoss=true,fenceExpiredLeases=true,certManager.enabled=true
  local part
  for part in components/restart-on-device-loss/restart-on-device-loss components/fence-expired-leases/fence-expired-leases \
    overlays/cert-manager/certificates; do
    mkdir -p "$1/${part%/*}"
    cp "$work/all/${part##*/}.yaml" "$1/$part.yaml"
  done
}

# sorted FILE: its objects in kustomize's order and form
sorted() {
  local dir
  dir=$(mktemp -d -p "$work")
  cp "$1" "$dir/all.yaml"
  printf 'resources: [all.yaml]\nsortOptions: {order: legacy}\n' >"$dir/kustomization.yaml"
  kustomize "$dir"
}

# same WHAT DIR ARGS...: the kustomization in DIR and the chart with ARGS make the same objects
same() {
  local what=$1 dir=$2; shift 2
  kustomize "$dir" >"$work/kustomized.yaml"
  helm template belay "$PWD/$chart" --namespace belay-system --set namespace.create=true "$@" >"$work/templated.yaml"
  diff -u <(sorted "$work/kustomized.yaml") <(sorted "$work/templated.yaml") || { echo "$what: chart and overlay differ" >&2; return 1; }
}

# with COMPONENT: a kustomization of overlays/mirror and the component
with() {
  local dir=$PWD/$into/.check
  mkdir -p "$dir"
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../overlays/mirror]\ncomponents: [../components/%s]\n' "$1" \
    >"$dir/kustomization.yaml"
  echo "$dir"
}

check() {
  trap 'rm -rf "$work" "$PWD/$into/.check"' EXIT
  helm lint --strict --quiet "$PWD/$chart"
  render "$work/rendered"
  local f
  for f in $(cd "$work/rendered" && find . -name '*.yaml'); do
    diff -u "$into/$f" "$work/rendered/$f" || { echo "deploy/kubernetes/${f#./} is not what the chart makes: run make manifests" >&2; return 1; }
  done
  for f in "$into"/base/*.yaml; do
    f=${f##*/}
    [ "$f" = kustomization.yaml ] || [ -e "$work/rendered/base/$f" ] || { echo "deploy/kubernetes/base/$f: the chart makes no such file" >&2; return 1; }
  done
  same mirror "$into/overlays/mirror"
  same cert-manager "$into/overlays/cert-manager" --set certManager.enabled=true
  same restart-on-device-loss "$(with restart-on-device-loss)" --set restartOnDeviceLoss=true
  same fence-expired-leases "$(with fence-expired-leases)" --set fenceExpiredLeases=true
  kustomize ../tests/e2e/manifests >/dev/null
  echo 'deploy/kubernetes is what the chart makes'
}

case ${1:-} in
  render) render "$PWD/$into" ;;
  check) check ;;
  *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
