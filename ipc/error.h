// Errors with a typed reason.
//
//   MakeError(Reason::kQueueFull, "...", {{"limit", "4194304"}})
//     -> absl::Status: canonical code RESOURCE_EXHAUSTED, the message, and as payloads the reason
//        and the metadata, which survive copies of the status and become gRPC's ErrorInfo
//
// The canonical code tells a caller what to do next, the reason which thing it was. One table in
// error.cc holds name, code and retry delay of each reason. A message says which thing, why, and
// what to do next.
#ifndef IPC_ERROR_H_
#define IPC_ERROR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace deka::ipc {

enum class Reason : uint8_t {
  // A channel and what goes through it.
  kQueueFull,          // the child's send queue has no room; nothing was queued
  kChannelClosed,      // the channel was open once and is not any more
  kChannelFailed,      // an I/O error closed the channel
  kNoChannel,          // the child was forked without a channel
  kMessageTooLarge,    // longer than the child's message limit
  kInvalidJson,        // not one JSON value in UTF-8, or nested too deep
  kEnvelopeMissing,    // a line of dialect deka that is no {"cmd":"NODE_HANDLE","msg":...}
  kFrameTruncated,     // the stream ended in the middle of a frame
  kReservedMessage,    // would be taken for Node's own protocol and end the child
  kHandleUnsupported,  // a file descriptor cannot travel here

  // Starting and finding children.
  kProgramNotFound,
  kProgramNotExecutable,
  kSpawnFailed,           // a step before exec, or exec itself, for another cause
  kDescriptorsExhausted,  // the process or the system has no descriptor left
  kChildNotFound,
  kChildAmbiguous,  // a name that two live children have
  kChildExited,
  kNoProcess,           // its channel was adopted without it: there is nobody to signal
  kSignalNotPermitted,  // its process runs as another user now
  kChildrenLimit,
  kKeeperGone,  // who starts children and outlives the agent has ended

  // Requests.
  kInvalidArgument,
  kRequestIdReused,   // the same request id with another body
  kPageTokenInvalid,  // of another query, or not ours
  kNotSentCancelled,  // the message left the queue before its first byte: it was not sent
  kNotSentDeadline,   // the same, by the deadline
  kOutcomeUnknown,    // it may have been done or not: look before repeating

  // Observing.
  kCursorExpired,     // events after the cursor are no longer in the log
  kCursorOtherEpoch,  // the cursor belongs to another life of the log
  kStalled,           // the observer did not read for too long: its call was ended
  kTooSlow,           // the log turned over before the observer had read it, and its call was ended
  kHeldByObserver,    // a lossless observer holds the child back
  kObserversLimit,

  // The agent.
  kConnectionsLimit,
  kAgentStopping,
  kAgentNotFound,   // another one than the agent that was asked
  kAddressInUse,    // another agent serves there
  kAddressUnsafe,   // others than the agent's user can open the socket's directory
  kUpgradeRefused,  // the agent goes on as it is; metadata `what` says why
  kConfigInvalid,   // the configuration, with file, line and field
  kInternal,        // a bug of ours
};

// Names and values that say more than the message does to a program: {"limit", "1048576"}.
using ErrorMetadata = std::vector<std::pair<std::string, std::string>>;

// Of a key that is given twice the last value counts.
absl::Status MakeError(Reason reason, std::string_view message, const ErrorMetadata& metadata = {});

// Unset if `status` is OK or was not made by MakeError.
std::optional<Reason> ReasonOf(const absl::Status& status);

// Sorted by key. Empty if there is none.
ErrorMetadata MetadataOf(const absl::Status& status);

// The value of one key; unset if there is none.
std::optional<std::string> MetadataOf(const absl::Status& status, std::string_view key);

// "QUEUE_FULL": what gRPC callers see as ErrorInfo.reason.
std::string_view ReasonName(Reason reason);
std::optional<Reason> ReasonFromName(std::string_view name);

absl::StatusCode CodeOf(Reason reason);

// How long to wait before the same call may succeed; 0 where waiting does not help.
int RetryDelayMs(Reason reason);

}  // namespace deka::ipc

#endif  // IPC_ERROR_H_
