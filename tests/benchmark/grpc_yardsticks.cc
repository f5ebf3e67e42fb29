#include <fmt/format.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "tests/benchmark/bare_stream.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/program.h"
#include "tests/benchmark/yardsticks.h"

namespace deka::benchmark {
namespace {

namespace v1 = ::deka::bridge::v1;

// bare_grpc_server on a socket of its own, and a connection to it.
class BareServer {
 public:
  absl::Status Start() {
    char directory[] = "/tmp/deka-benchmark-XXXXXX";
    if (mkdtemp(directory) == nullptr) return absl::InternalError("no directory in /tmp");
    directory_ = directory;
    const std::string target = fmt::format("unix:{}/server.sock", directory_);
    absl::StatusOr<std::unique_ptr<Program>> program =
        Program::Start({.command = {Runfile("tests/benchmark/bare_grpc_server"), target}});
    if (!program.ok()) return program.status();
    program_ = *std::move(program);
    channel_ = ConnectTo(target);
    if (!channel_->WaitForConnected(std::chrono::system_clock::now() + kDeadline)) {
      return absl::UnavailableError("bare_grpc_server does not answer");
    }
    return absl::OkStatus();
  }
  ~BareServer() {
    channel_.reset();
    program_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  std::string directory_;
  std::unique_ptr<Program> program_;
  std::shared_ptr<grpc::Channel> channel_;
};

class BareGrpcStream final : public Side {
 public:
  BareGrpcStream(int64_t messages, std::function<int64_t()> events_per_response)
      : messages_(messages), events_per_response_(std::move(events_per_response)) {}

  absl::Status Open() { return server_.Start(); }

  absl::StatusOr<Run> Measure() override {
    v1::ObserveRequest request;
    request.mutable_observation()->set_events_max(messages_);
    request.mutable_observation()->mutable_start()->set_last(events_per_response_());
    int64_t received = 0;
    const int64_t begin = NowNs();
    const absl::StatusOr<StreamCounts> counts =
        ReadStream(server_.channel(), request, nullptr, [&received](const v1::Event& event) {
          if (event.from_child().size_bytes() == kMessageBytesMin) ++received;
        });
    if (!counts.ok()) return counts.status();
    const double seconds = static_cast<double>(NowNs() - begin) * 1e-9;
    return Counted({.value = static_cast<double>(received) / seconds,
                    .sent = counts->cursor_sequence,
                    .received = received});
  }

 private:
  const int64_t messages_;
  const std::function<int64_t()> events_per_response_;
  BareServer server_;
};

class BareGrpcEcho final : public Side {
 public:
  explicit BareGrpcEcho(int64_t round_trips) : round_trips_(round_trips) {}
  ~BareGrpcEcho() override {
    if (stream_ != nullptr) {
      context_.TryCancel();
      grpc::Status status;
      stream_->Finish(&status, this);
      Done();
    }
    queue_.Shutdown();
    Done();
  }

  absl::Status Open() {
    if (absl::Status status = server_.Start(); !status.ok()) return status;
    stream_ = v1::BridgeService::NewStub(server_.channel())->PrepareAsyncAttach(&context_, &queue_);
    stream_->StartCall(this);
    return Done() ? absl::OkStatus() : absl::UnavailableError("bare_grpc_server takes no calls");
  }

  absl::StatusOr<Run> Measure() override {
    v1::AttachRequest request;
    v1::AttachResponse response;
    request.mutable_send()->set_json(MessageOf(kMessageBytesMin));
    int64_t sent = 0, received = 0;
    const int64_t begin = NowNs();
    while (received < round_trips_) {
      request.set_number(++sent);
      stream_->Read(&response, this);
      stream_->Write(request, this);
      const bool first = Done(), second = Done();
      if (!first || !second) return absl::UnavailableError("bare_grpc_server does not answer");
      if (response.observed().batch().events(0).json() == request.send().json()) ++received;
    }
    const double seconds = static_cast<double>(NowNs() - begin) * 1e-9;
    return Counted(
        {.value = seconds / static_cast<double>(round_trips_), .sent = sent, .received = received});
  }

 private:
  // Waits for the operation under way.
  bool Done() {
    void* tag;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  const int64_t round_trips_;
  BareServer server_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::AttachRequest, v1::AttachResponse>> stream_;
};

template <typename T>
SideOr Opened(std::unique_ptr<T> side) {
  if (absl::Status status = side->Open(); !status.ok()) return status;
  return std::unique_ptr<Side>(std::move(side));
}

}  // namespace

SideOr MakeBareGrpcStream(int64_t messages, std::function<int64_t()> events_per_response) {
  return Opened(std::make_unique<BareGrpcStream>(messages, std::move(events_per_response)));
}

SideOr MakeBareGrpcEcho(int64_t round_trips) {
  return Opened(std::make_unique<BareGrpcEcho>(round_trips));
}

}  // namespace deka::benchmark
