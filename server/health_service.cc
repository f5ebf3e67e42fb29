#include "server/health_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "google/protobuf/wrappers.pb.h"
#include "ipc/log.h"

namespace deka::server {

namespace {

constexpr size_t kShownBytesMax = 200;

grpc::ByteBuffer Response(int status) {
  google::protobuf::Int32Value response;
  response.set_value(status);
  return Serialize(response);
}

}  // namespace

HealthService::HealthService(std::vector<std::string> services) : services_(std::move(services)) {
  service_.AddMethod("/grpc.health.v1.Health/Check", [this](Call& call) { return Check(call); });
  service_.AddMethod("/grpc.health.v1.Health/Watch", [this](Call& call) { return Watch(call); });
}

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  if (!service.empty() && std::count(services_.begin(), services_.end(), service) == 0) {
    return kServiceUnknown;
  }
  return serving_ ? kServing : kNotServing;
}

Task HealthService::Check(Call& call) {
  google::protobuf::StringValue service;
  absl::Status status = co_await call.Receive(service);
  if (status.ok() && StatusOf(service.value()) == kServiceUnknown) {
    status = absl::NotFoundError(
        fmt::format("No service is called \"{}\" here. Give no name to ask about the whole server.",
                    ipc::Escaped(service.value(), kShownBytesMax)));
  }
  if (!status.ok()) {
    co_await call.Finish(status);
    co_return;
  }
  co_await call.Answer(Response(StatusOf(service.value())));
}

Task HealthService::Watch(Call& call) {
  google::protobuf::StringValue service;
  const absl::Status received = co_await call.Receive(service);
  if (!received.ok()) {
    co_await call.Finish(received);
    co_return;
  }
  Status told = kNone;
  for (;;) {
    co_await call.Until(
        [&] { return call.cancelled() || call.stopping() || StatusOf(service.value()) != told; });
    const Status now = StatusOf(service.value());
    if (call.cancelled() || now == told) break;
    told = now;
    const bool written = co_await call.Write(Response(now));
    if (!written) co_return;
  }
  co_await call.Finish(StoppingError());
}

}  // namespace deka::server
