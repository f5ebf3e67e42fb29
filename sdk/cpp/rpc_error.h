// Errors of calls as absl::Status, with the reason that the agent gave them.
#ifndef SDK_CPP_RPC_ERROR_H_
#define SDK_CPP_RPC_ERROR_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace deka {

// An error of the client's own, with `reason` as ErrorReason() reads it.
absl::Status ClientError(absl::StatusCode code, std::string_view reason, std::string_view message);

// UNKNOWN, OUTCOME_UNKNOWN: something was asked for once, and `cause` kept the answer away.
absl::Status OutcomeUnknown(const absl::Status& cause);

// `status` with another value in its metadata; as it is, if it has no ErrorInfo.
absl::Status WithMetadata(absl::Status status, const std::string& key, const std::string& value);

// A call's end: code, message and ErrorInfo.
absl::Status FromRpc(const grpc::Status& status);
// The same from the API's own messages, as `Failed` of Attach.
absl::Status FromRpc(const google::rpc::Status& status);

// True if this is no answer of the agent: the connection ended before one came, so the call may
// have been carried out or not.
bool IsConnectionLost(const absl::Status& status);

}  // namespace deka

#endif  // SDK_CPP_RPC_ERROR_H_
