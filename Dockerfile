# The broker's image: one static binary and the CA certificates, run by a user without
# a name. "docker build ." builds it; docker-compose.yaml runs it.

# This image has git, with which Go reads the version in the binary from .git.
FROM --platform=$BUILDPLATFORM golang:1.26.11-bookworm AS build
ARG TARGETOS TARGETARCH
ENV CGO_ENABLED=0
WORKDIR /src
RUN --mount=type=bind,target=. \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -o /out/broker ./cmd/broker

# For docker-compose.yaml only: the broker and a shell, which make secrets at the first
# start. A new volume takes owner and mode from the directory of this image on which it is
# mounted, so no container needs root to write to it.
FROM redis:8.6.6-alpine AS init
RUN install -d -o 65532 -g 65532 -m 0700 \
    /secrets /secrets/broker /secrets/caller /secrets/operator /secrets/clients /secrets/redis /var/lib/redis
COPY --from=build /out/broker /usr/local/bin/broker
COPY --chmod=0555 deploy/compose/init.sh /usr/local/bin/init.sh
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/init.sh"]
CMD ["/secrets"]

FROM scratch AS broker
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/broker /broker
USER 65532:65532
EXPOSE 8443 9090
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["/broker", "healthcheck", "--config", "/etc/tokenbroker/broker.yaml"]
ENTRYPOINT ["/broker"]
CMD ["serve", "--config", "/etc/tokenbroker/broker.yaml"]
