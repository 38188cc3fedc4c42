import com.cezzis.tokenbroker.v1.GetTokenRequest;
import com.cezzis.tokenbroker.v1.TokenBrokerServiceGrpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/**
 * Gets an access token of a client over gRPC: GetToken CLIENT
 *
 * <p>TOKENBROKER_ADDR names the broker, HOST:PORT, TOKENBROKER_TOKEN_FILE the file with the
 * caller's JWT, and TOKENBROKER_CA the file with the CA of the broker's certificate. Without it
 * the connection is in plaintext: for a broker on this machine only.
 */
public final class GetToken {
  public static void main(String[] args) throws Exception {
    NettyChannelBuilder builder = NettyChannelBuilder.forTarget(variable("TOKENBROKER_ADDR", "127.0.0.1:8443"));
    String ca = variable("TOKENBROKER_CA", "");
    if (ca.isEmpty()) {
      builder.usePlaintext();
    } else {
      builder.sslContext(GrpcSslContexts.forClient().trustManager(new File(ca)).build());
    }
    ManagedChannel channel = builder.build();
    int code = 0;
    try {
      Metadata headers = new Metadata();
      String file = variable("TOKENBROKER_TOKEN_FILE", "");
      if (!file.isEmpty()) {
        headers.put(
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER),
            "Bearer " + new String(Files.readAllBytes(Path.of(file))).trim());
      }
      TokenBrokerServiceGrpc.TokenBrokerServiceBlockingStub stub =
          MetadataUtils.attachHeaders(TokenBrokerServiceGrpc.newBlockingStub(channel), headers);
      GetTokenRequest request = GetTokenRequest.newBuilder().setClientName(args[0]).build();
      System.out.println(stub.withDeadlineAfter(20, TimeUnit.SECONDS).getToken(request).getAccessToken());
    } catch (StatusRuntimeException e) {
      System.err.println(e.getStatus().getDescription());
      code = 1;
    } finally {
      channel.shutdownNow();
    }
    System.exit(code);
  }

  private static String variable(String name, String fallback) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? fallback : value;
  }
}
