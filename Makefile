# "make test" installs the programs that the tests need, and runs the tests. "bash
# .ci/run" runs all checks that a change must pass.

.DEFAULT_GOAL := build
export PATH := $(CURDIR)/bin/tools:$(PATH)

.PHONY: build dist test test-deploy test-long mutants bench generate lint tools clean

# Go stamps the version into the binary: the tag, or the revision.
build:
	go build -trimpath -o bin/broker ./cmd/broker

# The files of a release, in dist/.
dist:
	tools/dist.sh

# The tests with the race detector, in less than ten minutes after compilation.
test:
	.ci/test

# The tests of docker-compose.yaml, the Dockerfile, the Helm chart, the files of a release
# and the comparison with other libraries, separate because they take minutes to compile.
# "bash .ci/run" runs some of them too.
test-deploy: bin/tools/cyclonedx-gomod
	go -C tools/deploy test -count=1 -timeout 30m ./...
	go -C tools/chart test -count=1 ./...
	go -C tools/peers test -count=1 ./...

# Long tests: soak and fault runs, properties with many more cases, fuzzing.
test-long:
	.ci/test-long

# Changes the code in small ways, and reports the changes that no test notices:
# docs/mutants.md.
mutants: bin/tools/gremlins bin/tools/mutants
	mutants

# Compares the broker with bare servers and with programs and libraries of others, and
# prints the ratios.
bench:
	go run ./internal/bench
	go -C tools/peers test -run '^$$' -bench . -benchtime 60x

# Generates all committed generated files.
generate: bin/tools/buf bin/tools/protoc-gen-go bin/tools/protoc-gen-go-grpc
	buf generate
	go test ./internal/config -run TestSchema -update
	go -C tools/chart test -update ./...

lint: bin/tools/actionlint bin/tools/buf bin/tools/golangci-lint
	buf lint
	buf breaking --against proto/baseline.binpb
	actionlint -shellcheck= -pyflakes=
	golangci-lint run ./...
	cd tools/chart && golangci-lint run ./...
	cd tools/deploy && golangci-lint run ./...
	cd tools/mutants && golangci-lint run ./...
	cd tools/peers && golangci-lint run ./...
	cd tools/zitadelop && golangci-lint run ./...

# The tools have modules of their own, so that the product's go.mod does not have their
# dependencies. buf and the tools of a release have separate modules, because they and
# golangci-lint need different versions; zitadelop is a program with its own module. A
# tool is built again when its module changes.
tools: $(addprefix bin/tools/,actionlint buf cyclonedx-gomod golangci-lint gremlins grpcurl mutants protoc-gen-go protoc-gen-go-grpc toxiproxy-server zitadelop)

bin/tools/buf: tools/buf/go.mod tools/buf/go.sum
	go -C tools/buf build -v -o $(CURDIR)/$@ github.com/bufbuild/buf/cmd/buf

bin/tools/gremlins: tools/mutants/go.mod tools/mutants/go.sum
	go -C tools/mutants build -v -o $(CURDIR)/$@ github.com/go-gremlins/gremlins/cmd/gremlins

bin/tools/mutants: $(wildcard tools/mutants/*)
	go -C tools/mutants build -v -o $(CURDIR)/$@ .

bin/tools/zitadelop: $(wildcard tools/zitadelop/*)
	go -C tools/zitadelop build -v -o $(CURDIR)/$@ .

# The SBOM has the digest of the program that made it: it is built as a release is.
bin/tools/cyclonedx-gomod: tools/release/go.mod tools/release/go.sum
	CGO_ENABLED=0 go -C tools/release build -v -trimpath -buildvcs=false -ldflags=-buildid= -o $(CURDIR)/$@ \
		github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod

bin/tools/actionlint: tools/release/go.mod tools/release/go.sum
	go -C tools/release build -v -o $(CURDIR)/$@ github.com/rhysd/actionlint/cmd/actionlint

# The broker of an earlier commit, for the test of rolling upgrades.
bin/tools/broker-earlier: commit = $(shell cat $<)
bin/tools/broker-earlier: internal/e2e/fleet/testdata/earlier-commit
	rm -rf bin/earlier && mkdir -p bin/earlier
	git archive --output=bin/earlier/source.tar $(commit) || { \
		echo "The history of this clone lacks the commit $(commit): git fetch --unshallow"; exit 1; }
	tar -xf bin/earlier/source.tar -C bin/earlier
	go -C bin/earlier build -v -buildvcs=false -o $(CURDIR)/$@ ./cmd/broker
	rm -rf bin/earlier

bin/tools/golangci-lint: package := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
bin/tools/grpcurl: package := github.com/fullstorydev/grpcurl/cmd/grpcurl
bin/tools/toxiproxy-server: package := github.com/Shopify/toxiproxy/v2/cmd/server
bin/tools/protoc-gen-go: package := google.golang.org/protobuf/cmd/protoc-gen-go
bin/tools/protoc-gen-go-grpc: package := google.golang.org/grpc/cmd/protoc-gen-go-grpc

bin/tools/%: tools/go.mod tools/go.sum
	go -C tools build -v -o $(CURDIR)/$@ $(package)

clean:
	rm -rf bin dist
