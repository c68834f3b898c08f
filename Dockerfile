# syntax=docker/dockerfile:1
# One image, all roles. Versions are pinned by tag; to pin what a tag means too, give GO_IMAGE and BASE_IMAGE with their digests
# (--build-arg BASE_IMAGE=debian:12.12-slim@sha256:…), or name a mirror.
ARG GO_IMAGE=golang:1.26.8-bookworm
ARG BASE_IMAGE=debian:12.12-slim

# The compiler runs on the machine that builds, and makes a program for the one that is built for.
FROM --platform=${BUILDPLATFORM} ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd cmd
COPY pkg pkg
ARG VERSION=unknown
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/gocache \
    GOCACHE=/gocache CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /belay ./cmd/belay

FROM ${BASE_IMAGE}
# What the node role calls: mount, umount (mount); blkid (util-linux); mkfs.ext4, e2fsck, resize2fs, dumpe2fs (e2fsprogs);
# mkfs.xfs, xfs_repair, xfs_logprint, xfs_growfs, xfs_io (xfsprogs); mkfs.btrfs, btrfs (btrfs-progs). The loop fails the build where one is missing:
# kubelet's libraries go on without a check where fsck is not there.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mount util-linux e2fsprogs xfsprogs btrfs-progs \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log \
 && for tool in mount umount blkid mkfs.ext4 e2fsck resize2fs dumpe2fs mkfs.xfs xfs_repair xfs_logprint xfs_growfs xfs_io mkfs.btrfs btrfs; do \
      command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 1; }; done
COPY LICENSE /usr/share/doc/belay/LICENSE
COPY --from=build /belay /usr/bin/belay
# The same program, to be copied out as kubectl's plugin.
RUN ln -s belay /usr/bin/kubectl-belay

ARG VERSION=unknown
LABEL org.opencontainers.image.title="Belay" \
      org.opencontainers.image.description="Replicated block storage for Kubernetes that never lets go of a volume before its data is provably safe" \
      org.opencontainers.image.source="https://github.com/belay-storage/belay" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# No USER: devices and mounts need root on a machine. The controller needs none of it, and its pod runs as 65532 with a read-only root.
ENTRYPOINT ["/usr/bin/belay"]
