#include "sdk/cpp/rpc_error.h"

#include <optional>
#include <string>

#include "absl/strings/cord.h"
#include "fmt/format.h"
#include "google/rpc/error_details.pb.h"
#include "sdk/cpp/error.h"

namespace deka {
namespace {

// Where gRPC's own conversions keep it, too.
constexpr char kErrorInfo[] = "type.googleapis.com/google.rpc.ErrorInfo";

void SetErrorInfo(absl::Status& status, const google::rpc::ErrorInfo& info) {
  status.SetPayload(kErrorInfo, absl::Cord(info.SerializeAsString()));
}

std::optional<google::rpc::ErrorInfo> ErrorInfoOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kErrorInfo);
  google::rpc::ErrorInfo info;
  if (!payload.has_value() || !info.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return info;
}

}  // namespace

std::string ErrorReason(const absl::Status& status) {
  const std::optional<google::rpc::ErrorInfo> info = ErrorInfoOf(status);
  return info.has_value() ? info->reason() : "";
}

std::string ErrorMetadata(const absl::Status& status, std::string_view key) {
  const std::optional<google::rpc::ErrorInfo> info = ErrorInfoOf(status);
  if (!info.has_value()) {
    return "";
  }
  const auto entry = info->metadata().find(std::string(key));
  return entry == info->metadata().end() ? "" : entry->second;
}

absl::Status ClientError(absl::StatusCode code, std::string_view reason, std::string_view message) {
  absl::Status status(code, absl::string_view(message.data(), message.size()));
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain("deka.bridge");
  SetErrorInfo(status, info);
  return status;
}

absl::Status WithMetadata(absl::Status status, const std::string& key, const std::string& value) {
  if (std::optional<google::rpc::ErrorInfo> info = ErrorInfoOf(status)) {
    (*info->mutable_metadata())[key] = value;
    SetErrorInfo(status, *info);
  }
  return status;
}

absl::Status OutcomeUnknown(const absl::Status& cause) {
  return ClientError(absl::StatusCode::kUnknown, "OUTCOME_UNKNOWN",
                     fmt::format("it may have been done or not, look before repeating it: {}",
                                 std::string(cause.message())));
}

absl::Status FromRpc(const google::rpc::Status& rpc) {
  absl::Status status(static_cast<absl::StatusCode>(rpc.code()), rpc.message());
  for (const google::protobuf::Any& detail : rpc.details()) {
    google::rpc::ErrorInfo info;
    if (detail.UnpackTo(&info)) {
      SetErrorInfo(status, info);
    }
  }
  return status;
}

absl::Status FromRpc(const grpc::Status& rpc) {
  if (rpc.ok()) {
    return absl::OkStatus();
  }
  google::rpc::Status details;
  if (!details.ParseFromString(rpc.error_details())) {
    details.Clear();
  }
  // What travels as details must not contradict the call's own end.
  details.set_code(rpc.error_code());
  details.set_message(rpc.error_message());
  return FromRpc(details);
}

bool IsConnectionLost(const absl::Status& status) {
  if (!ErrorReason(status).empty()) {
    return false;
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    // STALLED: a call that the agent ends in the middle of a write carries no details.
    case absl::StatusCode::kAborted:
    // A stream that was reset, by whatever is between here and the agent's own answer.
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace deka
