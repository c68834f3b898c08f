# One image, all roles. Versions are pinned; override GO_IMAGE and BASE_IMAGE to build from a mirror.
ARG GO_IMAGE=golang:1.26.8-bookworm
ARG BASE_IMAGE=debian:12.12-slim

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY pkg pkg
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /belay ./cmd/belay

FROM ${BASE_IMAGE}
# The node role formats, checks, mounts and grows filesystems with these.
RUN apt-get update \
 && apt-get install -y --no-install-recommends mount util-linux e2fsprogs xfsprogs btrfs-progs \
 && rm -rf /var/lib/apt/lists/*
COPY LICENSE /usr/share/doc/belay/LICENSE
COPY --from=build /belay /usr/bin/belay
# Devices and mounts need root and CAP_SYS_ADMIN on the node.
ENTRYPOINT ["/usr/bin/belay"]
