#include "server/server.h"

#include <fmt/format.h>
#include <grpc/grpc.h>
#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "ipc/default_address.h"
#include "ipc/error.h"
#include "server/bridge_service.h"
#include "server/call.h"
#include "server/health_service.h"
#include "server/listener.h"

namespace deka::server {

namespace {

// gRPC's default, five minutes, calls a client that asks more often too eager and sends it away.
constexpr int kPingIntervalMsMin = 10'000;
// What a client may send ahead of a call that is not read. gRPC's own estimate grows to megabytes.
constexpr int kLookaheadBytes = 512 << 10;

}  // namespace

class Server::Impl {
 public:
  Impl(agent::Agent& agent, const Options& options, uid_t user)
      : bridge_(agent, {.principal = fmt::format("uid:{}", user),
                        .connections_max = options.connections_max,
                        .write_stalled_ms_max = options.write_stalled_ms_max,
                        .upgrade = options.upgrade}),
        health_({std::string(BridgeService::kName)}) {}

  ~Impl() { Stop(std::chrono::milliseconds(0)); }

  absl::Status Open(Options options, uid_t user) {
    if (options.listen.empty()) options.listen.push_back(ipc::DefaultAddress());
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Open({.addresses = std::move(options.listen),
                        .held = std::move(options.held),
                        .pid = options.pid,
                        .connections_max = options.connections_max,
                        .user = user});
    if (!listener.ok()) return listener.status();
    listener_ = *std::move(listener);

    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    // Health is our own: gRPC's would bring its callback threads, which poll ten times a second.
    builder.SetOption(std::make_unique<grpc::HealthCheckServiceServerBuilderOption>(nullptr));
    builder.RegisterService(&bridge_.service());
    builder.RegisterService(&health_.service());
    builder.SetMaxReceiveMessageSize(kRequestBytesMax);
    builder.SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                               static_cast<int>(options.handshake_ms_max.count()));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kCallsMax);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kPingIntervalMsMin);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kLookaheadBytes);
    // Reflection is the only service that needs threads of its own.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
    acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        grpc::experimental::LocalServerCredentials(UDS));
    std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      queue->Shutdown();
      return ipc::MakeError(ipc::Reason::kInternal, "gRPC could not start. Its log says why.");
    }

    calls_.emplace(std::move(queue),
                   CallThread::Options{.write_stalled_ms_max = options.write_stalled_ms_max});
    bridge_.service().Start(*calls_);
    health_.service().Start(*calls_);
    return absl::OkStatus();
  }

  void Serve() {
    listener_->Start([this](int socket) {
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
      connection.fd = socket;
      acceptor_->HandleNewConnection(&connection);
    });
  }

  const std::vector<std::string>& paths() const { return listener_->paths(); }
  std::vector<std::pair<int, int>> descriptors() const { return listener_->descriptors(); }
  void SetPid(pid_t pid) { listener_->SetPid(pid); }

  void AnnounceStop() {
    health_.Stop();
    if (calls_) calls_->LookAtCalls();
  }

  void Stop(std::chrono::milliseconds grace) {
    // A connection that reached a stopped server would leak its descriptor.
    if (listener_ != nullptr) listener_->Stop();
    acceptor_.reset();
    AnnounceStop();
    if (server_ == nullptr) return;
    const auto deadline = std::chrono::steady_clock::now() + grace;
    calls_->StopCalls();
    calls_->WaitForCalls(deadline);
    // A client that writes when its connection is closed loses what it has not read: `fin`, a
    // status.
    listener_->WaitUntilRead(deadline);
    server_->Shutdown(
        std::chrono::system_clock::now() +
        std::max<std::chrono::nanoseconds>(deadline - std::chrono::steady_clock::now(), {}));
    calls_.reset();
    server_.reset();
  }

 private:
  BridgeService bridge_;
  HealthService health_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
  std::optional<CallThread> calls_;
};

absl::StatusOr<std::unique_ptr<Server>> Server::Open(agent::Agent& agent, Options options) {
  const uid_t user = geteuid();
  auto impl = std::make_unique<Impl>(agent, options, user);
  if (absl::Status status = impl->Open(std::move(options), user); !status.ok()) return status;
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(agent::Agent& agent, Options options) {
  absl::StatusOr<std::unique_ptr<Server>> server = Open(agent, std::move(options));
  if (server.ok()) (*server)->Serve();
  return server;
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() = default;

void Server::Serve() { impl_->Serve(); }

const std::vector<std::string>& Server::paths() const { return impl_->paths(); }

std::vector<std::pair<int, int>> Server::descriptors() const { return impl_->descriptors(); }
void Server::SetPid(pid_t pid) { impl_->SetPid(pid); }

void Server::AnnounceStop() { impl_->AnnounceStop(); }

void Server::Stop(std::chrono::milliseconds grace) { impl_->Stop(grace); }

}  // namespace deka::server
