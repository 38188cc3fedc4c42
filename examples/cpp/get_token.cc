// Gets an access token of a client over gRPC: get_token CLIENT
//
// TOKENBROKER_ADDR names the broker, HOST:PORT, TOKENBROKER_TOKEN_FILE the file with the
// caller's JWT, and TOKENBROKER_CA the file with the CA of the broker's certificate. Without
// it the connection is in plaintext: for a broker on this machine only.
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>

#include <grpcpp/grpcpp.h>

#include "tokenbroker/v1/tokenbroker.grpc.pb.h"

namespace {

std::string Variable(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : fallback;
}

std::string Read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) {
    std::cerr << path << " cannot be read\n";
    std::exit(1);
  }
  return text.str();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: get_token CLIENT\n";
    return 2;
  }
  auto credentials = grpc::InsecureChannelCredentials();
  const std::string ca = Variable("TOKENBROKER_CA", "");
  if (!ca.empty()) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = Read(ca);
    credentials = grpc::SslCredentials(options);
  }
  auto stub = tokenbroker::v1::TokenBrokerService::NewStub(
      grpc::CreateChannel(Variable("TOKENBROKER_ADDR", "127.0.0.1:8443"), credentials));

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  const std::string jwt = Variable("TOKENBROKER_TOKEN_FILE", "");
  if (!jwt.empty()) {
    std::istringstream text(Read(jwt));
    std::string token;
    text >> token;
    context.AddMetadata("authorization", "Bearer " + token);
  }
  tokenbroker::v1::GetTokenRequest request;
  request.set_client_name(argv[1]);
  tokenbroker::v1::GetTokenResponse response;
  const grpc::Status status = stub->GetToken(&context, request, &response);
  if (!status.ok()) {
    std::cerr << status.error_message() << "\n";
    return 1;
  }
  std::cout << response.access_token() << "\n";
  return 0;
}
