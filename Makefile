# "make test" is the command to know: it installs what the tests need and runs
# them. "bash .ci/run" is what a merge must pass.

.DEFAULT_GOAL := build
export PATH := $(CURDIR)/bin/tools:$(PATH)

.PHONY: build test test-deploy test-long bench generate lint tools clean

# The version in the binary is what Go stamps there: the tag, or the revision.
build:
	go build -trimpath -o bin/broker ./cmd/broker

# The tests with the race detector, in less than ten minutes once all is compiled.
test:
	.ci/test

# The tests of docker-compose.yaml and the Dockerfile. They are apart, because compiling
# them takes minutes. "bash .ci/run" runs them too.
test-deploy:
	go -C tools/deploy test -count=1 ./...

# What takes long: soak and fault runs, properties with many more cases, fuzzing.
test-long:
	.ci/test-long

# The broker beside a bare gRPC server; prints the ratios.
bench:
	go run ./internal/bench

# All that is generated and committed.
generate: bin/tools/buf bin/tools/protoc-gen-go bin/tools/protoc-gen-go-grpc
	buf generate
	go test ./internal/config -run TestSchema -update

lint: bin/tools/buf bin/tools/golangci-lint
	buf lint
	golangci-lint run ./...
	cd tools/deploy && golangci-lint run ./...
	cd tools/zitadelop && golangci-lint run ./...

# The tools have modules of their own, so that the product's go.mod names none
# of what they need; buf and golangci-lint do not agree on versions and are kept
# apart, and zitadelop is a program that lives in its own. A tool is built again when
# its module changes.
tools: $(addprefix bin/tools/,buf golangci-lint grpcurl protoc-gen-go protoc-gen-go-grpc toxiproxy-server zitadelop)

bin/tools/buf: tools/buf/go.mod tools/buf/go.sum
	go -C tools/buf build -v -o $(CURDIR)/$@ github.com/bufbuild/buf/cmd/buf

bin/tools/zitadelop: $(wildcard tools/zitadelop/*)
	go -C tools/zitadelop build -v -o $(CURDIR)/$@ .

bin/tools/golangci-lint: package := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
bin/tools/grpcurl: package := github.com/fullstorydev/grpcurl/cmd/grpcurl
bin/tools/toxiproxy-server: package := github.com/Shopify/toxiproxy/v2/cmd/server
bin/tools/protoc-gen-go: package := google.golang.org/protobuf/cmd/protoc-gen-go
bin/tools/protoc-gen-go-grpc: package := google.golang.org/grpc/cmd/protoc-gen-go-grpc

bin/tools/%: tools/go.mod tools/go.sum
	go -C tools build -v -o $(CURDIR)/$@ $(package)

clean:
	rm -rf bin
