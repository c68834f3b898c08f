# Certificates, and the control plane: machine cp. Sourced by lab.

# pki: once for each cluster. Everybody but the API server and its side of the kubelet's has a static token.
pki() {
  [ ! -e "$PKI/done" ] || return 0
  rm -rf "$PKI"
  mkdir -p "$PKI"; chmod 700 "$PKI"
  (
    cd "$PKI"
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=lab -keyout ca.key -out ca.crt 2>/dev/null
    certificate apiserver /CN=kube-apiserver serverAuth \
      "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$NET.1,IP:$API_IP"
    certificate kubelet-client /O=system:masters/CN=kube-apiserver clientAuth "DNS:kube-apiserver"
    openssl genrsa -out sa.key 2048 2>/dev/null
    user admin admin system:masters 127.0.0.1
    user kcm system:kube-controller-manager "" 127.0.0.1
    user scheduler system:kube-scheduler "" 127.0.0.1
    for i in $(seq $NODES_MAX); do user "n$i" "system:node:n$i" system:nodes "$NET.1"; done
    : >done
  )
}

# certificate FILE SUBJECT USAGE NAMES
certificate() {
  openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$3" "$4" >"$1.ext"
  openssl x509 -req -days 3650 -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

# user FILE NAME GROUP SERVER: a token and a kubeconfig
user() {
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$2,\"$3\"" >>tokens.csv
  cat >"$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$4", certificate-authority: "$PKI/ca.crt"}}]
users: [{name: $1, user: {token: $token}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
K
}

# control_plane_network: the bridge of the nodes has the address of the Service kubernetes.default too, so that pods reach the API
# server by their default route: no kube-proxy, no translation of addresses.
control_plane_network() {
  ip netns list | grep -qw "$(netns_of cp)" && return
  ip netns add "$(netns_of cp)"
  in_netns cp ip link set lo up
  in_netns cp ip link add br0 type bridge
  in_netns cp ip addr add "$NET.1/24" dev br0
  in_netns cp ip addr add "$API_IP/32" dev br0
  in_netns cp ip link set br0 up
}

control_plane() {
  pki
  control_plane_network
  machine_on cp
  mkdir -p "$MACHINES/cp/var-lib/etcd"
  # The data of a cluster that is thrown away need no fsync.
  daemon cp etcd "$BIN/etcd" --name lab --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster lab=http://127.0.0.1:2380
  apiserver_start
  kcm_start
  daemon cp scheduler "$BIN/kube-scheduler" --kubeconfig="$PKI/scheduler.kubeconfig" \
    --authentication-kubeconfig="$PKI/scheduler.kubeconfig" --authorization-kubeconfig="$PKI/scheduler.kubeconfig" \
    --bind-address=127.0.0.1 --leader-elect=false
  wait_for 120 kube get serviceaccount default -n default
  wait_for 60 in_netns cp bash -c '</dev/tcp/127.0.0.1/10259' # the scheduler
}

kcm_start() {
  daemon cp kcm "$BIN/kube-controller-manager" --kubeconfig="$PKI/kcm.kubeconfig" \
    --authentication-kubeconfig="$PKI/kcm.kubeconfig" --authorization-kubeconfig="$PKI/kcm.kubeconfig" \
    --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
    --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" --service-cluster-ip-range=$SERVICE_NET \
    --node-monitor-period=1s --node-monitor-grace-period=10s
}

# audit_policy: every write is kept, so that a test can count them and say who did what.
audit_policy() {
  cat <<'P'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: Metadata
P
}

# apiserver_start: it listens where the Service says, so its endpoints and its Service have one port.
apiserver_start() {
  audit_policy >"$MACHINES/cp/audit.yaml"
  daemon cp apiserver "$BIN/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address="$NET.1" --secure-port=443 \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
    --token-auth-file="$PKI/tokens.csv" --authorization-mode=Node,RBAC --allow-privileged=true \
    --service-account-key-file="$PKI/sa.key" --service-account-signing-key-file="$PKI/sa.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=$SERVICE_NET \
    --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP \
    --audit-policy-file="$MACHINES/cp/audit.yaml" --audit-log-path="$LOG/audit.log"
  wait_for 180 kube get --raw /readyz
}
