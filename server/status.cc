#include "server/status.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "google/protobuf/duration.pb.h"
#include "google/rpc/error_details.pb.h"
#include "ipc/error.h"

namespace deka::server {

namespace {

// Bytes of the UTF-8 character that `text` begins with; 0 if it begins with none.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return 0;
  // The second byte keeps out overlong forms, surrogates and what lies beyond U+10FFFF.
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return size;
}

// The text as a protobuf string may hold it, at most `bytes_max` long: whole characters, `?` for
// what is none, and `...` where it was cut.
std::string Cut(std::string_view text, size_t bytes_max) {
  constexpr std::string_view kCut = "...";
  std::string result;
  size_t fits = 0;  // the longest part of `result` that leaves room for the dots
  while (!text.empty()) {
    const size_t size = CharacterBytes(text);
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
