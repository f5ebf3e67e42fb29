// Errors as callers see them: absl::Status with its reason -> google.rpc.Status.
//
//   ipc::MakeError(Reason::kQueueFull, ...)
//     -> code RESOURCE_EXHAUSTED, the message, and as details
//        ErrorInfo {reason: "QUEUE_FULL", domain: "deka.bridge", metadata}, RetryInfo where waiting
//        helps
//
// An error without a reason of ours gets its code's name as the reason, so that every error carries
// one. Thread: any.
#ifndef SERVER_STATUS_H_
#define SERVER_STATUS_H_

#include <grpcpp/support/status.h>

#include <cstddef>
#include <string_view>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"

namespace deka::server {

inline constexpr std::string_view kErrorDomain = "deka.bridge";

// What travels of a message and, in all, of its metadata; longer ones are cut. Together with their
// encodings they stay below the 8 KiB that gRPC's clients take as headers.
inline constexpr size_t kErrorMessageBytesMax = 1024;
inline constexpr size_t kErrorMetadataBytesMax = 2048;

google::rpc::Status ToRpcStatus(const absl::Status& status);

// The details are the serialized google.rpc.Status, as gRPC's libraries expect it.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace deka::server

#endif  // SERVER_STATUS_H_
