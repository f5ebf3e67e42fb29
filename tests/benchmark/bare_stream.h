// A stream of ObserveResponses read by nothing but gRPC's generated code, whoever serves it.
//
// Thread: any.
#ifndef TESTS_BENCHMARK_BARE_STREAM_H_
#define TESTS_BENCHMARK_BARE_STREAM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "grpcpp/channel.h"

namespace deka::benchmark {

// A connection of its own.
std::shared_ptr<grpc::Channel> ConnectTo(const std::string& target);

struct StreamCounts {
  int64_t events = 0;
  int64_t responses = 0;        // that brought events
  int64_t cursor_sequence = 0;  // of `fin`
};

// Reads to the end of the stream. Fails if it does not end with OK. `on_attached` is called when
// the observation stands; it may be empty.
absl::StatusOr<StreamCounts> ReadStream(
    const std::shared_ptr<grpc::Channel>& channel, const bridge::v1::ObserveRequest& request,
    const std::function<void()>& on_attached,
    const std::function<void(const bridge::v1::Event&)>& on_event);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_BARE_STREAM_H_
