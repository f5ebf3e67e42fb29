#include "tests/benchmark/bare_stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>

#include "absl/status/status.h"
#include "tests/benchmark/program.h"

namespace deka::benchmark {

namespace v1 = ::deka::bridge::v1;

std::shared_ptr<grpc::Channel> ConnectTo(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Who serves may have just been started.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

absl::StatusOr<StreamCounts> ReadStream(const std::shared_ptr<grpc::Channel>& channel,
                                        const v1::ObserveRequest& request,
                                        const std::function<void()>& on_attached,
                                        const std::function<void(const v1::Event&)>& on_event) {
  const auto stub = v1::BridgeService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  context.set_wait_for_ready(true);
  const auto reader = stub->Observe(&context, request);
  StreamCounts counts;
  for (v1::ObserveResponse response; reader->Read(&response);) {
    if (response.has_batch()) {
      ++counts.responses;
      counts.events += response.batch().events_size();
      for (const v1::Event& event : response.batch().events()) on_event(event);
    } else if (response.has_snapshot_complete() && on_attached) {
      on_attached();
    } else if (response.has_gap()) {
      return absl::DataLossError("events were missed");
    } else if (response.has_fin()) {
      counts.cursor_sequence = response.fin().cursor().sequence();
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return absl::UnavailableError(status.error_message());
  return counts;
}

}  // namespace deka::benchmark
