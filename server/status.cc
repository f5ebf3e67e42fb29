#include "server/status.h"

#include <algorithm>
#include <optional>
#include <string>

#include "google/protobuf/duration.pb.h"
#include "google/rpc/error_details.pb.h"
#include "ipc/error.h"
#include "ipc/utf8.h"

namespace deka::server {

namespace {

// The text as a protobuf string may hold it, at most `bytes_max` long: whole characters, `?` for
// what is none, and `...` where it was cut.
std::string Cut(std::string_view text, size_t bytes_max) {
  constexpr std::string_view kCut = "...";
  std::string result;
  size_t fits = 0;  // the longest part of `result` that leaves room for the dots
  while (!text.empty()) {
    const size_t size = ipc::Utf8CharacterSize(text);
    if (result.size() + kCut.size() <= bytes_max) fits = result.size();
    if (result.size() + std::max<size_t>(size, 1) > bytes_max) {
      result.resize(fits);
      if (kCut.size() <= bytes_max) result += kCut;
      return result;
    }
    if (size == 0) {
      result += '?';
      text.remove_prefix(1);
    } else {
      result += text.substr(0, size);
      text.remove_prefix(size);
    }
  }
  return result;
}

}  // namespace

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status result;
  result.set_code(static_cast<int>(status.code()));
  if (status.ok()) return result;
  result.set_message(
      Cut({status.message().data(), status.message().size()}, kErrorMessageBytesMax));

  const std::optional<ipc::Reason> reason = ipc::ReasonOf(status);
  google::rpc::ErrorInfo info;
  info.set_reason(reason ? std::string(ipc::ReasonName(*reason))
                         : absl::StatusCodeToString(status.code()));
  info.set_domain(std::string(kErrorDomain));
  size_t left = kErrorMetadataBytesMax;
  for (const auto& [key, value] : ipc::MetadataOf(status)) {
    if (key.size() >= left) break;
    left -= key.size();
    const std::string cut = Cut(value, left);
    left -= cut.size();
    (*info.mutable_metadata())[Cut(key, key.size())] = cut;
  }
  result.add_details()->PackFrom(info);

  if (const int delay_ms = reason ? ipc::RetryDelayMs(*reason) : 0; delay_ms > 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(delay_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(delay_ms % 1000 * 1'000'000);
    result.add_details()->PackFrom(retry);
  }
  return result;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(rpc.code()), rpc.message(),
                      rpc.SerializeAsString());
}

}  // namespace deka::server
