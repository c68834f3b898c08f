# External.Storage, the tests of Kubernetes for storage drivers. Sourced by lab.

SUITE=$LAB_DIR/storage-suite
PROCS=${PROCS:-1} # tests that run at a time

# storage_suite FOCUS [FLAG...]: the tests that FOCUS matches, a regular expression, against the driver of testdriver.yaml. Results are in
# storage-suite/junit.xml.
storage_suite() {
  local focus=$1 name; shift
  for name in e2e-storage.test ginkgo agnhost; do [ -x "$BIN/$name" ] || die "$name is missing: lab build $name; then lab images"; done
  mkdir -p "$SUITE"
  image_registries >"$SUITE/registries.yaml"
  cd "$SUITE"
  in_netns cp env KUBE_TEST_REPO_LIST="$SUITE/registries.yaml" "$BIN/ginkgo" --procs="$PROCS" --no-color --timeout=3h -v \
    --focus="$focus" --junit-report=junit.xml --output-dir="$SUITE" "$@" "$BIN/e2e-storage.test" -- \
    --kubeconfig="$ADMIN" --provider=local --kubectl-path="$BIN/kubectl" \
    -storage.testdriver="$HERE/../testdriver.yaml" \
    --delete-namespace-on-failure=true --allowed-not-ready-nodes=10 --num-nodes=-1
}

# image_registries: every registry that the tests know is the local one.
image_registries() {
  local name
  for name in promoterE2eRegistry gcRegistry buildImageRegistry gcEtcdRegistry sigStorageRegistry dockerLibraryRegistry; do
    echo "$name: $REGISTRY"
  done
}
